"""How large a number may be, where nothing else bounds it; what it must be at least is checked with its group.

The limits are beyond any use. They catch a slip of the keyboard, which would otherwise fill the memory, hang before the
first step, or overflow within a library.
"""

from __future__ import annotations

import math
import re
from typing import Any

from distillcli.config.ranges import numbers
from distillcli.errors import UserError

_SEED = 2**63 - 1
_EPOCHS = 1_000_000
_PIXELS = 8192
_RATE = 1000

HIGHEST: dict[str, float] = {
    "seed": _SEED,
    "generations": 100,
    "peers.image_size": _PIXELS,
    "student.image_size": _PIXELS,
    "teacher.image_size": _PIXELS,
    "teacher.fit.epochs": _EPOCHS,
    "teacher.fit.lr": _RATE,
    "teacher.fit.weight_decay": _RATE,
    "teacher.cache.views": _EPOCHS,
    "teacher.cache.max_gb": 1_000_000,
    "teacher.members.image_size": _PIXELS,
    "teacher.members.weight": 1_000_000,
    "teacher.members.temperature": 1000,
    "teacher.members.seed": _SEED,
    "teacher.assistants.image_size": _PIXELS,
    "teacher.assistants.seed": _SEED,
    "dataset.image_size": _PIXELS,
    "dataset.channels": 1024,
    "dataset.split_seed": 2**32 - 1,  # NumPy's
    "dataset.memory_gb": 1_000_000,
    "dataset.classes": 100_000,
    "dataset.samples": 100_000_000,
    "distill.temperature": 1000,
    "distill.temperature_end": 1000,
    "optimizer.lr": _RATE,
    "optimizer.weight_decay": _RATE,
    "schedule.warmup_epochs": _EPOCHS,
    "schedule.warmup_lr": _RATE,
    "schedule.min_lr": _RATE,
    "schedule.decay_epochs": _EPOCHS,
    "schedule.decay_rate": 1000,
    "schedule.milestones": _EPOCHS,
    "augment.crop_ratio": 100,
    "augment.rotate": 360,
    "augment.zoom": 100,
    "augment.policy_ops": 100,
    "augment.mixup": 1000,
    "augment.cutmix": 1000,
    "augment.repeats": 1000,
    "trainer.epochs": _EPOCHS,
    "trainer.batch_size": 1_000_000,
    "trainer.accumulate": 1_000_000,
    "trainer.clip_grad": 1_000_000_000,
    "trainer.workers": 1024,
    "trainer.threads": 1024,
    "trainer.checkpoint_minutes": 1_000_000,
}
# Options of terms, by the last part of distill.terms.NAME.OPTION.
HIGHEST_OPTION: dict[str, float] = {
    "ramp": _EPOCHS,
    "fade": _EPOCHS,
    "prepare_epochs": _EPOCHS,
    "temperature": 1000,
    "temperature_end": 1000,
    "temperatures": 1000,
    "size": 10_000_000,
    "negatives": 10_000_000,
    "width": 100_000,
    "reduction": 100_000,
    "order": 100,
    "power": 100,
}
_ANY_OPTION = 1_000_000_000


def check_highest(config: dict[str, Any]) -> None:
    """Raise UserError for the first number of a config, as a plain dict, that is beyond all use."""
    for key, value in numbers(config):
        limit = highest(key)
        if value > limit:
            raise UserError(f"{key}={shown(value)}: must be at most {limit:,}")


def highest(key: str) -> float:
    """The limit of a dotted key, whose places in lists may be numbered; infinite where something else bounds it."""
    key = re.sub(r"\[\d+\]", "", key)
    if key.startswith("distill.terms."):
        return HIGHEST_OPTION.get(key.rsplit(".", 1)[-1], _ANY_OPTION)
    return HIGHEST.get(key, math.inf)


def shown(value: float) -> str:
    """A number as one reads it: without the hundreds of digits that a typed one may have."""
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}... ({len(text)} digits)"

"""What batches, views, terms and processes require of each other.

Every refusal is a UserError of one line: key, value, fix.
"""

from __future__ import annotations

from distillcli.config.job import process_count
from distillcli.config.schema import TrainConfig
from distillcli.config.terms import KNOWN_TERMS, active_terms, remembering_terms, whole_batch_terms
from distillcli.errors import UserError


def check_batches(config: TrainConfig) -> None:
    _check_parts(config)
    _check_terms(config)
    if config.trainer.progressive is not None:
        _check_growth(config, config.trainer.progressive)


def _check_parts(config: TrainConfig) -> None:
    """Every part of a batch has the same size."""
    trainer, repeats, processes = config.trainer, config.augment.repeats, process_count()
    if trainer.batch_size % repeats:
        raise UserError(
            f"augment.repeats={repeats}: trainer.batch_size={trainer.batch_size} is not divisible by it; all views of "
            "an image must be in the same batch"
        )
    if trainer.batch_size % (processes * trainer.accumulate):
        raise UserError(
            f"trainer.batch_size={trainer.batch_size}: not divisible by {processes} processes times "
            f"trainer.accumulate={trainer.accumulate}; images would be left out"
        )


def _check_terms(config: TrainConfig) -> None:
    trainer, augment, processes = config.trainer, config.augment, process_count()
    whole, remembering = whole_batch_terms(config.distill), remembering_terms(config.distill)
    if trainer.accumulate > 1 and whole:
        raise UserError(
            f"trainer.accumulate={trainer.accumulate}: {', '.join(whole)} compares the samples of a whole batch; use "
            "trainer.accumulate=1"
        )
    if processes > 1 and remembering:
        raise UserError(
            f"distill.terms: {', '.join(remembering)} remembers what it has seen, and {processes} processes would "
            "remember different images; train in one process"
        )
    for name in active_terms(config.distill) if augment.mixup or augment.cutmix else ():
        if KNOWN_TERMS[name].refuses_mixing:
            raise UserError(
                f"distill.terms.{name}: it cannot be used with mixup or CutMix, as its memory has one row per training "
                "image; set augment.mixup=0 and augment.cutmix=0, or leave the term out"
            )


def _check_growth(config: TrainConfig, shares: list[float]) -> None:
    if round(shares[0] * config.dataset.image_size) < 8:
        raise UserError(
            f"trainer.progressive={list(shares)}: with dataset.image_size={config.dataset.image_size} the first views "
            "would have fewer than 8 pixels; raise its first number or dataset.image_size"
        )
    if config.teacher.cache.views:
        raise UserError("trainer.progressive: views that grow cannot be repeated; use teacher.cache.views=0")

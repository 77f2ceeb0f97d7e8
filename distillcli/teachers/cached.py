"""A teacher whose outputs are stored in files, and the key that names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillcli.config.schema import TrainConfig
from distillcli.config.terms import hottest_temperature
from distillcli.models.weights import weights_fingerprint
from distillcli.runs.folder import versions
from distillcli.runtime import Runtime
from distillcli.teachers.frozen import FrozenTeacher, Teacher, output_settings
from distillcli.teachers.rows import RowCache, choose_format, open_cache
from distillcli.types import Batch, Output, Taps
from distillcli.views.loader import Data
from distillcli.views.showing import showing
from distillcli.views.upload import send


@dataclasses.dataclass(frozen=True)
class CachedTeacher:
    """A teacher that is run once for each view of an image. Rows hold the logits, then the embedding if it is tapped.

    The first run uses the stored, rounded row as well: otherwise it would differ from later ones.
    """

    live: FrozenTeacher
    cache: RowCache

    def __call__(self, batch: Batch) -> Output:
        device = batch.images.device
        rows, present = self.cached_rows(batch)
        if not present.all():
            fresh = self.live_rows(batch)
            for view, of_view, index in _by_view(batch):
                absent = of_view & ~present
                rows[absent] = self.cache.write(view, index[absent], fresh[absent])
        outputs = send(rows, device)
        classes = self.live.backbone.spec.classes
        embedding = outputs[:, classes:] if self.live.taps.embedding else None
        return Output(outputs[:, :classes], embedding, {})

    @property
    def repaired(self) -> int:
        return self.cache.damaged

    def cached_rows(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The rows of a batch, B x width, and which of them are there; the others are undefined."""
        rows = np.zeros((len(batch.index), self.cache.width), dtype=np.float32)
        present = np.zeros(len(batch.index), dtype=bool)
        for view, of_view, index in _by_view(batch):
            rows[of_view], present[of_view] = self.cache.read(view, index[of_view])
        return rows, present

    def live_rows(self, batch: Batch) -> NDArray[np.float32]:
        """The rows of a batch as the live teacher gives them."""
        output = self.live(batch)
        parts = [output.logits] if output.embedding is None else [output.logits, output.embedding]
        rows: NDArray[np.float32] = torch.cat([part.float() for part in parts], dim=1).cpu().numpy()
        return rows


def _by_view(batch: Batch) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.int64]]]:
    """Each view in the batch, which rows show it, and the positions of all rows."""
    index: NDArray[np.int64] = batch.index.numpy()
    views = np.broadcast_to(batch.view, index.shape)
    for view in np.unique(views):
        yield int(view), views == view, index


def is_cacheable(taps: Taps) -> bool:
    """Feature maps are too large to be kept."""
    return not (taps.stages or taps.class_maps or taps.features or taps.preactivations)


def with_cache(config: TrainConfig, data: Data, teacher: FrozenTeacher, runtime: Runtime) -> tuple[Teacher, str, str]:
    """The teacher, its outputs cached if ``teacher.cache`` and the objective allow it; the format; and why so.

    Raises OSError when the folder of the cache cannot be written.
    """
    cache, images = config.teacher.cache, len(data.train)
    if cache.mode == "off":
        return teacher, "off", "teacher cache: off, as asked"
    if not is_cacheable(teacher.taps):
        return teacher, "off", "teacher cache: off, the objective compares feature maps"
    spec, embedding = teacher.backbone.spec, teacher.taps.embedding
    width = spec.classes + (spec.embedding_width if embedding else 0)
    views = (cache.views or config.trainer.epochs) * data.train.views_per_pass(config.augment)
    hottest = hottest_temperature(config.distill)
    row_format, why = choose_format(cache.mode, width, images, views, cache.max_gb, hottest, embedding)
    if row_format == "off":
        return teacher, "off", why
    root = Path(cache.dir) if cache.dir else Path(config.runs) / "cache"
    rows = open_cache(root, cache_key(config, data, teacher, runtime), row_format, width, images, runtime.rank)
    return CachedTeacher(teacher, rows), row_format, why


def cache_key(config: TrainConfig, data: Data, teacher: FrozenTeacher, runtime: Runtime) -> dict[str, Any]:
    """Everything that can change the teacher's output for (view, index), in plain words."""
    recipe = dataclasses.asdict(config.augment)
    del recipe["name"]
    return {
        "teacher": [teacher.backbone.spec.name, weights_fingerprint(teacher.backbone.state_dict())],
        "settings": output_settings(config),
        "arithmetic": [
            *(teacher.precision, config.trainer.channels_last, runtime.device.type),
            "plain" if teacher.inference_copy is None else "folded",
        ],
        "embedding": teacher.taps.embedding,
        "data": data.source.fingerprint,
        "views": [recipe, config.seed, *data.train.rendering(config.augment)],
        "progressive": config.trainer.progressive and [*config.trainer.progressive, config.trainer.epochs],
        "versions": {name: versions()[name] for name in ("torch", "torchvision", "timm")},
    }


def compare_with_live(config: TrainConfig, data: Data, teacher: CachedTeacher, count: int) -> tuple[int, float, float]:
    """Ask the live teacher again for up to ``count`` of its cached rows, spread over the views.

    Returns how many rows were compared, the largest difference of a number, and the largest that rounding explains.
    """
    compared, largest, allowed = 0, 0.0, 0.0
    epochs, batch_size = config.teacher.cache.views or config.trainer.epochs, config.trainer.batch_size
    per_view = max(1, -(-count // (epochs * batch_size)))
    whole = dataclasses.replace(showing(config, data.train), micro_batches=1)
    for epoch in range(1, epochs + 1):
        for number, parts in enumerate(whole.epoch(epoch)):
            if number == per_view or compared >= count:
                break
            batch = parts[0]
            stored, present = teacher.cached_rows(batch)
            fresh = teacher.live_rows(batch)
            rounded = teacher.cache.format.decode(teacher.cache.format.encode(fresh), teacher.cache.width)
            if present.any():
                compared += int(present.sum())
                largest = max(largest, float(abs(stored - fresh)[present].max()))
                # Twice the rounding, and what other shapes of a sum may add.
                allowed = max(allowed, 2 * float(abs(rounded - fresh).max()) + 1e-3 * float(abs(fresh).max()))
    return compared, largest, allowed

"""``dataset.on_error=skip``: images that cannot be decoded are left out before images are numbered.

Every image is decoded once, in threads, when the data is opened. If a damaged image were found during training, another
would have to take its index, under which the teacher's outputs for it may be cached.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillcli.errors import UserError
from distillcli.sources.source import ArrayImages, Images, MinimumSize, Source, Split
from distillcli.sources.tree import PARTS, quoted_names


@dataclass(frozen=True)
class PickedImages:
    """The ``images`` at these ``rows``."""

    images: Images
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int, minimum_size: MinimumSize | None = None) -> NDArray[np.uint8]:
        return self.images.read(int(self.rows[index]), minimum_size)

    def name(self, index: int) -> str:
        return self.images.name(int(self.rows[index]))


def without_unreadable(source: Source) -> Source:
    """``source`` without the images that cannot be decoded; ``skipped`` says which and why.

    Raises UserError if a class has no training image left. The fingerprint changes only if something was left out.
    """
    readable = {part: _readable(split) for part, split in source.parts.items()}
    broken = {part: readable[part][1] if part in readable else {} for part in PARTS}
    skipped = tuple(problem for problems in broken.values() for problem in problems.values())
    if not skipped:
        return source
    splits = {part: split for part, (split, _) in readable.items()}
    lost = np.setdiff1d(source.train.labels, splits["train"].labels)
    empty = sorted({source.classes[label] for label in lost if label >= 0})
    if empty:
        example = next(iter(broken["train"].values()))
        raise UserError(f"{source.name}: no training image of {quoted_names(empty)} can be decoded; {example}")
    rows = json.dumps([source.fingerprint, [list(problems) for problems in broken.values()]])
    fingerprint = hashlib.sha256(rows.encode()).hexdigest()[:32]
    return dataclasses.replace(
        source,
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        fingerprint=fingerprint,
        skipped=skipped,
    )


def _readable(split: Split) -> tuple[Split, dict[int, str]]:
    """The split without its unreadable images, and what is wrong with each, by row."""
    if isinstance(split.images, ArrayImages):
        return split, {}

    def problem(row: int) -> str | None:
        try:
            split.images.read(row)
        except UserError as error:
            return str(error)
        return None

    count = len(split.images)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        broken = {row: found for row, found in enumerate(threads.map(problem, range(count))) if found is not None}
    rows = np.setdiff1d(np.arange(count), list(broken)).astype(np.int64)
    return Split(PickedImages(split.images, rows), split.labels[rows]), broken

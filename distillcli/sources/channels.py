"""``dataset.channels=1``: every image in one channel, whatever its file or array contains."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillcli.sources.decode import luma
from distillcli.sources.source import ArrayImages, Images, MinimumSize, Source, Split


@dataclass(frozen=True)
class GrayImages:
    """The luma of ``images``: H x W x 1."""

    images: Images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, minimum_size: MinimumSize | None = None) -> NDArray[np.uint8]:
        return luma(self.images.read(index, minimum_size))

    def name(self, index: int) -> str:
        return self.images.name(index)


def with_channels(source: Source, channels: int) -> Source:
    """``source`` with its RGB images in one channel if ``channels`` is 1; for other numbers it is already right."""
    if channels != 1:
        return source
    return dataclasses.replace(
        source,
        train=_gray(source.train),
        val=None if source.val is None else _gray(source.val),
        test=None if source.test is None else _gray(source.test),
        fingerprint=hashlib.sha256(f"{source.fingerprint}/channels/1".encode()).hexdigest()[:32],
    )


def _gray(split: Split) -> Split:
    if isinstance(split.images, ArrayImages):
        images: Images = ArrayImages(luma(split.images.pixels), split.images.label)
    else:
        images = GrayImages(split.images)
    return Split(images, split.labels)

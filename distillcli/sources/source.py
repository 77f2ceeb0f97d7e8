"""What every data set looks like to other rooms: classes, up to three splits of images with labels, and a fingerprint.

Nothing here imports torch, so that a missing folder or an empty class is reported within a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

# Width and height of a whole image -> the smallest width and height that are enough for the crop wanted.
MinimumSize = Callable[[int, int], tuple[int, int]]


class Images(Protocol):
    """Random access to decoded images."""

    def __len__(self) -> int: ...

    def read(self, index: int, minimum_size: MinimumSize | None = None) -> NDArray[np.uint8]:
        """The image as H x W x C, RGB unless ``dataset.channels`` says otherwise; smaller if ``minimum_size`` allows.

        Raises UserError naming the file if it cannot be decoded.
        """
        ...

    def name(self, index: int) -> str:
        """The image's name in messages: its path, or the data set and the position in it."""
        ...


@runtime_checkable
class EncodedImages(Images, Protocol):
    """Images that are decoded when read."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their names within the data set, wherever that is stored; they enter the fingerprint."""
        ...

    def content(self, index: int) -> bytes:
        """The encoded image. Raises UserError naming it if it cannot be fetched."""
        ...

    def size(self, index: int) -> int:
        """Bytes of the encoded image, known without reading it; 0 where the data set does not say."""
        ...


@dataclass(frozen=True)
class ArrayImages:
    """Decoded images of one size. ``pixels``: N x H x W x C."""

    pixels: NDArray[np.uint8]
    label: str

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int, minimum_size: MinimumSize | None = None) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self.pixels[index]
        return image

    def name(self, index: int) -> str:
        return f"{self.label}[{index}]"


@dataclass(frozen=True)
class Split:
    """Images with their labels. ``labels``: N, int64, each in [0, number of classes), or -1 if it is not known."""

    images: Images
    labels: NDArray[np.int64]

    @property
    def labelled(self) -> int:
        """How many images have a label."""
        return int((self.labels >= 0).sum())


@dataclass(frozen=True)
class Source:
    """A data set. Training never sees ``val`` or ``test``; ``val`` chooses the best epoch; ``test`` is reported.

    Without a test part, ``test`` is None, and results are reported on ``val``, as every table says. Without a part for
    validation and with ``dataset.val_fraction=0``, ``val`` is None: nothing chooses an epoch. A set that has neither
    can only be evaluated, as a whole.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    fingerprint: str  # over class names, image names, sizes or pixels, and labels: equal data has equal fingerprints
    skipped: tuple[str, ...] = ()  # what dataset.on_error=skip left out, and why
    ignored: tuple[str, ...] = ()  # files that look like images and are not read, and why
    notes: tuple[str, ...] = ()  # what else was left aside or looks wrong, a line each

    @staticmethod
    def of(
        name: str, classes: tuple[str, ...], splits: Mapping[str, Split], fingerprint: str, notes: Sequence[str] = ()
    ) -> Source:
        """The inverse of ``parts``: a set with the ``splits`` train, and perhaps val and test."""
        return Source(
            name, classes, splits["train"], splits.get("val"), splits.get("test"), fingerprint, notes=tuple(notes)
        )

    @property
    def parts(self) -> dict[str, Split]:
        """The splits there are, by name: ``train``, and perhaps ``val`` and ``test``."""
        known = {"train": self.train, "val": self.val, "test": self.test}
        return {part: split for part, split in known.items() if split is not None}

    @property
    def count(self) -> int:
        """The images of all parts."""
        return sum(len(split.labels) for split in self.parts.values())

    @property
    def evaluated_on(self) -> str:
        """``test``, ``val``, or ``all`` where the set has no parts."""
        return "test" if self.test is not None else "val" if self.val is not None else "all"

    @property
    def evaluation(self) -> Split:
        """The split on which results are reported."""
        return self.test or self.val or self.train

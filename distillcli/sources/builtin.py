"""Data sets that need no files: handwritten digits that come with scikit-learn, and a synthetic toy."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.listing import split_kind
from distillcli.sources.source import ArrayImages, Source, Split

SAMPLED_IMAGES = 64  # of each split, whose pixels enter the fingerprint

_DIGITS_SEED = 0  # the split is part of the data set: published numbers stay comparable
_DIGITS_VAL, _DIGITS_TEST = 200, 300  # of 1,797 images


def open_digits(_config: DatasetConfig) -> Source:
    """1,797 real 8 x 8 handwritten digits in a fixed stratified split of 1,297 train, 200 val and 300 test images.

    ``val_fraction`` and ``split_seed`` are not used. The images keep their native size; views resize them.
    """
    return _digits()


@functools.cache  # every job of a sweep would read them again
def _digits() -> Source:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    gray = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # N x 8 x 8, published with values 0..16
    pixels = np.repeat(gray[..., None], 3, axis=3)

    rest, test = train_test_split(
        np.arange(len(labels)), test_size=_DIGITS_TEST, stratify=labels, random_state=_DIGITS_SEED
    )
    train, val = train_test_split(rest, test_size=_DIGITS_VAL, stratify=labels[rest], random_state=_DIGITS_SEED)
    rows = {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}
    splits = {part: Split(ArrayImages(pixels[row], f"digits/{part}"), labels[row]) for part, row in rows.items()}
    return array_source("digits", tuple(str(name) for name in digits.target_names), splits)


def open_fake(config: DatasetConfig) -> Source:
    """A toy that can be learned: every class has its own smooth random pattern, to which every image adds noise.

    ``config.samples`` training images and a quarter as many for val and for test, each ``config.image_size`` square.
    """
    if config.classes < 2:
        raise UserError(f"dataset.classes={config.classes}: a classifier needs at least 2")
    if config.samples < 4:
        raise UserError(f"dataset.samples={config.samples}: needs at least 4, a quarter of them for val and for test")
    size = config.image_size
    random = np.random.RandomState(0)
    coarse = random.randint(48, 208, size=(config.classes, 4, 4, 3)).astype(np.uint8)
    patterns = np.stack(
        [np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)) for grid in coarse]
    ).astype(np.int16)  # classes x H x W x 3

    def split(part: str, count: int) -> Split:
        labels = random.permutation(np.arange(count) % config.classes).astype(np.int64)
        pixels = np.empty((count, size, size, 3), np.uint8)
        for row, label in enumerate(labels):  # one at a time: the noise of all images at once could fill the memory
            noise = random.randint(-48, 49, size=(size, size, 3), dtype=np.int16)
            pixels[row] = np.clip(patterns[label] + noise, 0, 255)
        return Split(ArrayImages(pixels, f"fake/{part}"), labels)

    counts = {"train": config.samples, "val": config.samples // 4, "test": config.samples // 4}
    splits = {part: split(part, count) for part, count in counts.items()}
    return array_source("fake", tuple(f"pattern {number}" for number in range(config.classes)), splits)


def array_source(name: str, classes: tuple[str, ...], splits: dict[str, Split]) -> Source:
    """A Source from splits of ArrayImages: ``train``, and perhaps ``val`` and ``test``."""
    return Source.of(name, classes, splits, array_fingerprint(name, classes, splits))


def array_fingerprint(name: str, classes: Sequence[str], splits: Mapping[str, Split]) -> str:
    """32 hex digits over the name, class names, shapes, labels, and the pixels of 64 images of each split."""
    digest = hashlib.sha256(json.dumps([split_kind(name, splits), list(classes)]).encode())
    for split in splits.values():
        assert isinstance(split.images, ArrayImages)
        pixels: NDArray[np.uint8] = split.images.pixels
        digest.update(json.dumps([pixels.shape, split.labels.tolist()]).encode())
        digest.update(pixels[np.unique(np.linspace(0, len(pixels) - 1, num=SAMPLED_IMAGES).astype(int))].tobytes())
    return digest.hexdigest()[:32]

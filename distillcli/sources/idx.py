"""Fashion-MNIST (Xiao et al., 2017), read from its four published files wherever they lie, compressed or not.

The files are IDX: two zero bytes, 8 for unsigned bytes, the number of dimensions, each as four bytes with the highest
first, and the values.
"""

from __future__ import annotations

import dataclasses
import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.builtin import array_source
from distillcli.sources.decode import show_path
from distillcli.sources.listing import hold_out
from distillcli.sources.source import ArrayImages, Source, Split

OWN_FOLDER = "data/fashion_mnist"
SYSTEM_FOLDER = "/usr/share/datasets/fashion-mnist"  # where Debian's package puts them
_WITHIN = ("", "raw", "FashionMNIST/raw")  # the last one is torchvision's
_PARTS = {"train": "train", "test": "t10k"}
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def open_fashion_mnist(config: DatasetConfig) -> Source:
    """60,000 training and 10,000 test images of 28 x 28 pixels; val is held out of train.

    Without a root, the files may lie in data/fashion_mnist or where Debian's package puts them. Raises UserError where
    they are missing or damaged.
    """
    places = [Path(config.root)] if config.root else [Path(OWN_FOLDER), Path(SYSTEM_FOLDER)]
    folder = next((place / inner for place in places for inner in _WITHIN if _holds_all(place / inner)), None)
    if folder is None and config.download:
        from distillcli.sources.torchvision_sets import open_torchvision

        return open_torchvision(dataclasses.replace(config, root=config.root or OWN_FOLDER))
    if folder is None:
        searched = " or ".join(show_path(place) for place in places)
        raise UserError(
            f"dataset=fashion_mnist: its four files, such as train-{_IMAGES} or train-{_IMAGES}.gz, are not in "
            f"{searched}; install them with apt-get install dataset-fashion-mnist, or set dataset.download=true, or "
            "dataset.root to their folder"
        )
    splits = {part: _split(folder, part) for part in _PARTS}
    if config.val_fraction > 0:
        train = splits["train"]
        rows = hold_out(train.labels, _CLASSES, config.val_fraction, config.split_seed, config.name)
        splits |= {part: _take(train, row, part) for part, row in zip(("train", "val"), rows, strict=True)}
    return array_source(config.name, _CLASSES, splits)


def _holds_all(folder: Path) -> bool:
    names = (f"{start}-{end}" for start in _PARTS.values() for end in (_IMAGES, _LABELS))
    return all(_file(folder, name) is not None for name in names)


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _split(folder: Path, part: str) -> Split:
    gray = _read(folder, f"{_PARTS[part]}-{_IMAGES}", dimensions=3)
    labels = _read(folder, f"{_PARTS[part]}-{_LABELS}", dimensions=1)
    return Split(ArrayImages(np.repeat(gray[..., None], 3, axis=3), _name(part)), labels.astype(np.int64))


def _take(split: Split, rows: NDArray[np.int64], part: str) -> Split:
    assert isinstance(split.images, ArrayImages)
    return Split(ArrayImages(split.images.pixels[rows], _name(part)), split.labels[rows])


def _name(part: str) -> str:
    return f"fashion_mnist/{part}"


def _read(folder: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    """The values of one file. Raises UserError for anything but whole bytes in as many dimensions."""
    path = _file(folder, name)
    assert path is not None
    start = 4 + 4 * dimensions
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack_from(f">I{dimensions}I", content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{show_path(path)}: cannot be read ({error}); copy it again") from error
    count = int(np.prod(shape, dtype=np.int64))
    if magic != (8 << 8) + dimensions or len(content) != start + count:
        raise UserError(
            f"{show_path(path)}: {len(content):,} bytes that are no IDX file of unsigned bytes in {dimensions} "
            f"dimension{'s' * (dimensions > 1)}; copy it again"
        )
    return np.frombuffer(content, np.uint8, count, start).reshape(shape)

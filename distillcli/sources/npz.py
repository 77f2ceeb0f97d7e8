"""Images and labels as NumPy arrays in one .npz file.

    x_train, y_train, x_val, y_val, x_test, y_test                        as in Keras
    train_images, train_labels, val_images, val_labels, test_images, ...  as in MedMNIST
    images, labels                                                        one part
    classes                                                               optional: the class names, by label

Without val arrays, ``dataset.val_fraction`` of each class is held out. Images are uint8, N x H x W, or N x H x W x C
with 1 or 3 channels or ``dataset.channels`` of them. Floating point has no agreed range, so it is refused rather than
guessed. Labels are N whole numbers, from 0 if ``classes`` names them, or text. Arrays of Python objects
are never unpickled.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.builtin import array_fingerprint
from distillcli.sources.decode import show_path
from distillcli.sources.listing import hold_out, index_labels
from distillcli.sources.overlap import array_overlap_notes
from distillcli.sources.source import ArrayImages, Source, Split

_SPELLINGS = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels")),
    "val": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


def open_npz(config: DatasetConfig) -> Source:
    """The arrays in ``config.root``. Raises UserError for names, shapes and types that could be misread."""
    if not config.root:
        raise UserError("dataset=npz needs dataset.root=FILE.npz")
    file = Path(config.root)
    arrays = _load(file)
    parts = {part: pair for part in _SPELLINGS if (pair := _find(file, arrays, part)) is not None}
    if "train" not in parts:
        expected = "x_train and y_train, train_images and train_labels, or images and labels"
        raise UserError(f"{show_path(file)}: contains {', '.join(sorted(arrays))}; expected {expected}")
    pixels = {part: _pixels(file, images, arrays[images], config.channels) for part, (images, _) in parts.items()}
    names = [str(name) for name in arrays["classes"].ravel()] if "classes" in arrays else None
    values = {part: _values(file, labels, arrays[labels]) for part, (_, labels) in parts.items()}
    for part, (images, labels) in parts.items():
        if len(pixels[part]) != len(values[part]):
            raise UserError(
                f"{show_path(file)}: {len(pixels[part])} images in {images} but {len(values[part])} labels in {labels};"
                " every image needs one"
            )
    classes, rows = index_labels(show_path(file), values, names)
    notes = array_overlap_notes(show_path(file), _splits(file, pixels, rows))
    if "val" not in parts and config.val_fraction > 0:
        kept, held = hold_out(rows["train"], classes, config.val_fraction, config.split_seed, show_path(file))
        pixels |= {"train": pixels["train"][kept], "val": pixels["train"][held]}
        rows |= {"train": rows["train"][kept], "val": rows["train"][held]}
        sides = {part: pixels[part] for part in ("train", "val")}
        notes += array_overlap_notes(show_path(file), _splits(file, sides, rows), held_out=True)
    splits = _splits(file, pixels, rows)
    return Source.of(file.stem, classes, splits, array_fingerprint("npz", classes, splits), notes)


def _splits(file: Path, pixels: dict[str, NDArray[np.uint8]], labels: dict[str, NDArray[np.int64]]) -> dict[str, Split]:
    found = [part for part in _SPELLINGS if part in pixels]
    return {part: Split(ArrayImages(pixels[part], f"{file.stem}/{part}"), labels[part]) for part in found}


def _load(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with file.open("rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as archive:
            _check_size(file, archive.zip)
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise UserError(f"dataset.root={show_path(file)}: cannot be read ({error.strerror or error})") from error
    except (ValueError, AttributeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        detail = " ".join(str(error).split())
        raise UserError(
            f"dataset.root={show_path(file)}: is not an .npz file of plain arrays ({detail}); write it with numpy.savez"
        ) from error


def _check_size(file: Path, archive: zipfile.ZipFile) -> None:
    """A small archive can unpack to any size: refused where the machine could not hold it."""
    unpacked = sum(entry.file_size for entry in archive.infolist())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if unpacked > memory:
        raise UserError(
            f"dataset.root={show_path(file)}: unpacks to {unpacked / 1e9:.1f} GB, and this machine has"
            f" {memory / 1e9:.1f} GB of memory; make the arrays smaller, or save the images as files"
        )


def _find(file: Path, arrays: dict[str, NDArray[Any]], part: str) -> tuple[str, str] | None:
    """The names of the arrays of images and labels of one part."""
    found = [pair for pair in _SPELLINGS[part] if pair[0] in arrays or pair[1] in arrays]
    if len(found) > 1:
        raise UserError(f"{show_path(file)}: {found[0][0]} and {found[1][0]} could each be the {part} part; remove one")
    for pair in found:
        missing = [name for name in pair if name not in arrays]
        if missing:
            raise UserError(f"{show_path(file)}: contains {', '.join(sorted(arrays))} but no {missing[0]}; add it")
    return found[0] if found else None


def _pixels(file: Path, name: str, array: NDArray[Any], channels: int) -> NDArray[np.uint8]:
    """N x H x W x 3 for 1 or 3 ``channels``, else N x H x W x ``channels``."""
    where = f"{show_path(file)}: {name} is {array.dtype}, {' x '.join(str(side) for side in array.shape)}"
    if array.dtype != np.uint8:
        raise UserError(f"{where}; images must be uint8, 0..255; scale them, since other types have no agreed range")
    if array.ndim == 3:
        array = array[..., None]
    if channels not in (1, 3):
        if array.ndim != 4 or array.shape[3] != channels:
            raise UserError(f"{where}; expected N x H x W x C with dataset.channels={channels}, in this order")
    elif array.ndim != 4 or array.shape[3] not in (1, 3):
        raise UserError(
            f"{where}; expected N x H x W or N x H x W x C with 1 or 3 channels, in this order; for other numbers set "
            "dataset.channels=C"
        )
    if 0 in array.shape[1:]:
        raise UserError(f"{where}; the images have no pixels")
    pixels: NDArray[np.uint8] = array.astype(np.uint8, copy=False)
    return np.repeat(pixels, 3, axis=3) if array.shape[3] == 1 else pixels


def _values(file: Path, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """N labels; MedMNIST's are N x 1."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        shape = " x ".join(str(side) for side in array.shape)
        raise UserError(f"{show_path(file)}: {name} is {array.dtype}, {shape}; expected N whole numbers or text")
    return array

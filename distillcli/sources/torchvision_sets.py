"""The classification data sets of torchvision, described by one table.

Data sets that torchvision loads as arrays are kept in memory. For all others it only lists files and labels; we decode
the files, so that the rules of :mod:`distillcli.sources.decode` apply and errors name the file.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.builtin import array_source
from distillcli.sources.decode import show_path
from distillcli.sources.folder import FileImages
from distillcli.sources.listing import file_fingerprint, hold_out
from distillcli.sources.source import ArrayImages, Source, Split

Read = Callable[[Any], Any]


@dataclass(frozen=True)
class TorchvisionSet:
    """How to load one data set. Exactly one of ``pixels`` and ``files`` is given."""

    cls: str  # the class in torchvision.datasets
    parts: dict[str, dict[str, Any]]  # train, and val and test if they exist: arguments of the class
    count: int  # classes
    labels: Read  # dataset -> N integers
    pixels: Read | None = None  # dataset -> N x H x W or N x H x W x 3, uint8
    files: Read | None = None  # dataset -> N paths
    names: str | None = "classes"  # the attribute with the class names; None: they are numbered
    manual: str = ""  # where to get the files, if torchvision cannot download them


def open_torchvision(config: DatasetConfig) -> Source:
    """The data set called ``config.name``. Raises UserError if it is missing, before importing torch where possible.

    Without an official val part, val is held out of train; without a labelled test part, test is None.
    """
    record = TORCHVISION_SETS[config.name]
    root = _check_available(config, record)
    datasets = {part: _load(config, record, root, arguments) for part, arguments in record.parts.items()}
    classes = _class_names(record, datasets["train"])
    for part, dataset in datasets.items():
        if _class_names(record, dataset) != classes:
            raise UserError(
                f"{config.name}: the {part} part in {show_path(root)} has other classes than train; the files are"
                " incomplete, download them again"
            )

    splits = {part: _split(config.name, part, record, dataset, root) for part, dataset in datasets.items()}
    if "val" not in splits and config.val_fraction > 0:
        train = splits["train"]
        kept, held = hold_out(train.labels, classes, config.val_fraction, config.split_seed, config.name)
        splits |= {"train": _take(train, kept, f"{config.name}/train"), "val": _take(train, held, f"{config.name}/val")}
    if record.pixels is not None:
        return array_source(config.name, classes, splits)
    return Source.of(config.name, classes, splits, file_fingerprint(config.name, classes, splits))


def _check_available(config: DatasetConfig, record: TorchvisionSet) -> Path:
    """The root, after the checks that do not need torch."""
    if not config.root:
        raise UserError(f"dataset={config.name} needs dataset.root=PATH, the folder of its files")
    root = Path(config.root)
    if root.exists() and not root.is_dir():
        raise UserError(
            f"dataset.root={show_path(root)}: is a file, not a folder; give the folder that contains the files"
        )
    if config.download and record.manual:
        raise UserError(f"dataset={config.name} cannot be downloaded by torchvision: {_remedy(record, root)}")
    if not root.exists() and not config.download:
        raise UserError(f"dataset={config.name}: no folder {show_path(root)}; {_remedy(record, root)}")
    return root


def _load(config: DatasetConfig, record: TorchvisionSet, root: Path, arguments: dict[str, Any]) -> Any:
    import torchvision.datasets

    switch = {} if record.manual else {"download": config.download}
    try:
        with warnings.catch_warnings():
            # CIFAR was pickled by a version of NumPy so old that today's warns about it.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            return getattr(torchvision.datasets, record.cls)(str(root), **arguments, **switch)
    except (
        RuntimeError,
        OSError,
        ValueError,
        EOFError,
        ImportError,
    ) as error:  # what torchvision raises for missing files
        detail = " ".join(str(error).split()) or type(error).__name__
        if config.download:
            fix = f"check the network and the disk space, or put the files of {record.cls} there by hand"
            raise UserError(
                f"dataset={config.name} could not be downloaded into {show_path(root)} ({detail}); {fix}"
            ) from error
        detail = detail.split(". You can")[0].rstrip(".")
        raise UserError(
            f"dataset={config.name} was not found in {show_path(root)} ({detail}); {_remedy(record, root)}"
        ) from error


def _remedy(record: TorchvisionSet, root: Path) -> str:
    if record.manual:
        return f"put {record.manual} into {show_path(root)}"
    return (
        f"set dataset.download=true to download it, or dataset.root to the folder with the files of"
        f" torchvision.datasets.{record.cls}"
    )


def _split(name: str, part: str, record: TorchvisionSet, dataset: Any, root: Path) -> Split:
    labels = np.asarray(record.labels(dataset)).astype(np.int64)
    if record.pixels is not None:
        pixels = np.asarray(record.pixels(dataset))
        if pixels.ndim == 3:
            pixels = np.repeat(pixels[..., None], 3, axis=3)
        return Split(ArrayImages(np.ascontiguousarray(pixels), f"{name}/{part}"), labels)
    assert record.files is not None
    names = [Path(os.path.relpath(path, root)).as_posix() for path in record.files(dataset)]
    # SUN397 lists its files in the order of the file system; sorted, an index means the same image everywhere.
    order = sorted(range(len(names)), key=names.__getitem__)
    return Split(FileImages(root, tuple(names[row] for row in order)), labels[order])


def _take(split: Split, rows: NDArray[np.int64], label: str) -> Split:
    if isinstance(split.images, ArrayImages):
        return Split(ArrayImages(split.images.pixels[rows], label), split.labels[rows])
    assert isinstance(split.images, FileImages)
    names = tuple(split.images.names[row] for row in rows)
    return Split(FileImages(split.images.root, names), split.labels[rows])


def _class_names(record: TorchvisionSet, dataset: Any) -> tuple[str, ...]:
    """torchvision's names, or numbers. Synonyms are joined; a name that occurs twice is followed by its number."""
    found: Sequence[Any] | None = getattr(dataset, record.names, None) if record.names else None
    if found is None:
        return tuple(str(number) for number in range(record.count))
    names = [", ".join(name) if isinstance(name, tuple) else str(name) for name in found]
    times = Counter(names)  # ImageNet has two classes called crane
    return tuple(f"{name} ({number})" if times[name] > 1 else name for number, name in enumerate(names))


def _of_pairs(attribute: str, position: int) -> Read:
    """Reads one column of a list of (path, label) pairs."""

    def read(dataset: Any) -> list[Any]:
        return [pair[position] for pair in attrgetter(attribute)(dataset)]

    return read


def _channels_last(dataset: Any) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.asarray(dataset.data).transpose(0, 2, 3, 1)
    return pixels


def _qmnist_labels(dataset: Any) -> Any:
    return np.asarray(dataset.targets)[:, 0]  # the other columns say who wrote the digit


def _caltech101_files(dataset: Any) -> list[Path]:
    folder = Path(dataset.root) / "101_ObjectCategories"
    return [
        folder / dataset.categories[label] / f"image_{number:04d}.jpg"
        for label, number in zip(dataset.y, dataset.index, strict=True)
    ]


def _caltech256_files(dataset: Any) -> list[Path]:
    folder = Path(dataset.root) / "256_ObjectCategories"
    return [
        folder / dataset.categories[label] / f"{label + 1:03d}_{number:04d}.jpg"
        for label, number in zip(dataset.y, dataset.index, strict=True)
    ]


_DATA, _TARGETS, _LABELS = attrgetter("data"), attrgetter("targets"), attrgetter("_labels")
_IMAGE_FILES = attrgetter("_image_files")
_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_ONE: dict[str, dict[str, Any]] = {"train": {}}
_EMNIST = {part: {"split": "balanced", **arguments} for part, arguments in _FLAG.items()}
_PLACES = {"train": {"split": "train-standard", "small": True}, "val": {"split": "val", "small": True}}
_COUNTRY = {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}}
_ILSVRC = {"train": {"split": "train"}, "val": {"split": "val"}}

_IMAGENET = (
    "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from image-net.org (if train/"
    " and val/ are already unpacked into class folders, use dataset=folder)"
)
_CARS = "the folder stanford_cars with devkit/, cars_train/, cars_test/ and cars_test_annos_withlabels.mat"

TORCHVISION_SETS: dict[str, TorchvisionSet] = {
    "cifar10": TorchvisionSet("CIFAR10", _FLAG, 10, _TARGETS, pixels=_DATA),
    "cifar100": TorchvisionSet("CIFAR100", _FLAG, 100, _TARGETS, pixels=_DATA),
    "mnist": TorchvisionSet("MNIST", _FLAG, 10, _TARGETS, pixels=_DATA),
    "fashion_mnist": TorchvisionSet("FashionMNIST", _FLAG, 10, _TARGETS, pixels=_DATA),
    "kmnist": TorchvisionSet("KMNIST", _FLAG, 10, _TARGETS, pixels=_DATA),
    # Transposed, as published and as torchvision loads it.
    "emnist": TorchvisionSet("EMNIST", _EMNIST, 47, _TARGETS, pixels=_DATA),
    "qmnist": TorchvisionSet("QMNIST", _FLAG, 10, _qmnist_labels, pixels=_DATA),
    "usps": TorchvisionSet("USPS", _FLAG, 10, _TARGETS, pixels=_DATA, names=None),
    "svhn": TorchvisionSet("SVHN", _TWO, 10, attrgetter("labels"), pixels=_channels_last, names=None),
    "stl10": TorchvisionSet("STL10", _TWO, 10, attrgetter("labels"), pixels=_channels_last),
    "flowers102": TorchvisionSet("Flowers102", _THREE, 102, _LABELS, files=_IMAGE_FILES),
    "oxfordiiitpet": TorchvisionSet(
        "OxfordIIITPet",
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
        37,
        _LABELS,
        files=attrgetter("_images"),
    ),
    "food101": TorchvisionSet("Food101", _TWO, 101, _LABELS, files=_IMAGE_FILES),
    "dtd": TorchvisionSet("DTD", _THREE, 47, _LABELS, files=_IMAGE_FILES),
    "fgvc_aircraft": TorchvisionSet("FGVCAircraft", _THREE, 100, _LABELS, files=_IMAGE_FILES),
    "stanford_cars": TorchvisionSet(
        "StanfordCars",
        _TWO,
        196,
        _of_pairs("_samples", 1),
        files=_of_pairs("_samples", 0),
        manual=_CARS,
    ),
    "gtsrb": TorchvisionSet("GTSRB", _TWO, 43, _of_pairs("_samples", 1), files=_of_pairs("_samples", 0), names=None),
    "eurosat": TorchvisionSet("EuroSAT", _ONE, 10, _TARGETS, files=_of_pairs("samples", 0)),
    "country211": TorchvisionSet("Country211", _COUNTRY, 211, _TARGETS, files=_of_pairs("samples", 0)),
    "sun397": TorchvisionSet("SUN397", _ONE, 397, _LABELS, files=_IMAGE_FILES),
    "caltech101": TorchvisionSet("Caltech101", _ONE, 101, attrgetter("y"), files=_caltech101_files, names="categories"),
    "caltech256": TorchvisionSet("Caltech256", _ONE, 257, attrgetter("y"), files=_caltech256_files, names="categories"),
    "places365": TorchvisionSet("Places365", _PLACES, 365, _TARGETS, files=_of_pairs("imgs", 0)),
    "imagenette": TorchvisionSet(
        "Imagenette",
        _ILSVRC,
        10,
        _of_pairs("_samples", 1),
        files=_of_pairs("_samples", 0),
    ),
    "imagenet": TorchvisionSet(
        "ImageNet",
        _ILSVRC,
        1000,
        _TARGETS,
        files=_of_pairs("samples", 0),
        manual=_IMAGENET,
    ),
}

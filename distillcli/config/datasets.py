"""The data sets, by the name in ``dataset.name``. The table imports no reader, so that it can be read at once."""

from __future__ import annotations

from dataclasses import dataclass

from distillcli.errors import UserError, did_you_mean


@dataclass(frozen=True)
class KnownDataset:
    reader: str  # module and function in distillcli.sources: DatasetConfig -> Source
    keys: tuple[str, ...] = ()  # the dataset.* keys that it reads and others do not
    local: bool = False  # dataset.root must exist: nothing downloads it
    any_channels: bool = False  # reads images of other channels than 1 or 3


_TORCHVISION_SETS = (
    *("cifar10", "cifar100", "mnist", "kmnist", "emnist", "qmnist", "usps", "svhn", "stl10"),
    *("flowers102", "oxfordiiitpet", "food101", "dtd", "fgvc_aircraft", "stanford_cars", "gtsrb", "eurosat"),
    *("country211", "sun397", "caltech101", "caltech256", "places365", "imagenette", "imagenet"),
)

_HELD_OUT = ("val_fraction", "split_seed")  # of those that may come without a validation part
_FILES = ("root", "on_error", *_HELD_OUT)

DATASETS: dict[str, KnownDataset] = {
    "digits": KnownDataset("builtin.open_digits"),
    "fake": KnownDataset("builtin.open_fake", keys=("classes", "samples")),
    "folder": KnownDataset("folder.open_folder", keys=(*_FILES, "labels", "class_map"), local=True),
    "archive": KnownDataset("archive.open_archive", keys=(*_FILES, "labels", "class_map"), local=True),
    "npz": KnownDataset("npz.open_npz", keys=("root", *_HELD_OUT), local=True, any_channels=True),
    "webdataset": KnownDataset("webdataset.open_webdataset", keys=(*_FILES, "class_map"), local=True),
    "unlabeled": KnownDataset("unlabeled.open_unlabeled", keys=_FILES, local=True),
    "hf": KnownDataset("hf.open_hf", keys=("path", "image_column", "label_column", "on_error", *_HELD_OUT)),
    "fashion_mnist": KnownDataset("idx.open_fashion_mnist", keys=(*_FILES, "download")),
    **dict.fromkeys(_TORCHVISION_SETS, KnownDataset("torchvision_sets.open_torchvision", keys=(*_FILES, "download"))),
}


def known_dataset(name: str) -> KnownDataset:
    """The data set called ``name``. Raises UserError for an unknown name, which is never taken for a folder."""
    if name not in DATASETS:
        raise UserError(
            f"unknown data set {name!r}{did_you_mean(name, DATASETS)}"
            " (a folder of images is dataset=folder dataset.root=PATH; all sets: distill show datasets)"
        )
    return DATASETS[name]

"""The table of data sets, and the checks that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError, did_you_mean
from distillcli.sources.archive import open_archive
from distillcli.sources.builtin import open_digits, open_fake
from distillcli.sources.channels import with_channels
from distillcli.sources.folder import open_folder
from distillcli.sources.hf import open_hf
from distillcli.sources.labels import keep_labels
from distillcli.sources.npz import open_npz
from distillcli.sources.source import Source
from distillcli.sources.torchvision_sets import TORCHVISION_SETS, open_torchvision
from distillcli.sources.unlabeled import open_unlabeled
from distillcli.sources.verify import without_unreadable
from distillcli.sources.webdataset import open_webdataset


@dataclass(frozen=True)
class KnownDataset:
    open: Callable[[DatasetConfig], Source]
    about: str  # one line


DATASETS: dict[str, KnownDataset] = {
    "digits": KnownDataset(open_digits, "handwritten digits, 8 x 8 gray, comes with scikit-learn: 10 classes"),
    "folder": KnownDataset(open_folder, "your images: dataset.root=PATH with a folder per class, or train/ and val/"),
    "archive": KnownDataset(open_archive, "your images in a .zip or .tar, not unpacked: dataset.root=FILE"),
    "npz": KnownDataset(open_npz, "your images as NumPy arrays: dataset.root=FILE.npz"),
    "hf": KnownDataset(open_hf, "a Hugging Face dataset or parquet files: dataset.path=NAME or PATH"),
    "webdataset": KnownDataset(open_webdataset, "shards of images and labels: dataset.root=FOLDER_OF_TARS"),
    "unlabeled": KnownDataset(open_unlabeled, "your images without labels, at any depth: dataset.root=PATH"),
    "fake": KnownDataset(open_fake, "synthetic patterns to try things out: dataset.classes and dataset.samples"),
} | {
    name: KnownDataset(open_torchvision, f"{record.about}: {record.count} classes")
    for name, record in TORCHVISION_SETS.items()
}


def open_source(config: DatasetConfig) -> Source:
    """The data set called ``config.name``, checked. Raises UserError, naming the row, for a label that is no class.

    An unknown name is an error and never taken for a folder.
    """
    if config.name not in DATASETS:
        raise UserError(
            f"unknown data set {config.name!r}{did_you_mean(config.name, DATASETS)}"
            " (a folder of images is dataset=folder dataset.root=PATH; all sets: distill show datasets)"
        )
    source = with_channels(DATASETS[config.name].open(config), config.channels)
    if config.on_error == "skip":
        source = without_unreadable(source)
    check_source(source)
    return keep_labels(source, config.labelled, config.split_seed)


def check_source(source: Source) -> None:
    """What training relies on. Raises UserError for data with fewer than two classes, empty parts or stray labels.

    -1, for no label, may stand in train; in val and test only, as the absence of classes, if train has no label at all.
    """
    count = len(source.classes)
    unlabelled = bool((source.train.labels == -1).all())
    if count < 2 and not (unlabelled and not count):
        raise UserError(f"{source.name}: {count} class; a classifier needs at least two")
    if len(set(source.classes)) < count:
        twice = sorted(name for name in set(source.classes) if source.classes.count(name) > 1)
        raise UserError(f"{source.name}: two classes are called {twice[0]!r}; rename one")
    for part, split in (("train", source.train), ("val", source.val), ("test", source.test)):
        if split is None:
            continue
        if len(split.images) != len(split.labels):
            raise UserError(
                f"{source.name}: the {part} part has {len(split.images)} images but {len(split.labels)} labels;"
                " the files are incomplete, fetch them again"
            )
        if not len(split.labels):
            raise UserError(f"{source.name}: the {part} part is empty; add images to it")
        assert split.labels.dtype == np.int64
        lowest = -1 if part == "train" or unlabelled else 0
        stray = np.flatnonzero((split.labels < lowest) | (split.labels >= count))
        if len(stray):
            row = int(stray[0])
            raise UserError(
                f"{source.name}: row {row} of the {part} part ({split.images.name(row)!r}) has label"
                f" {split.labels[row]}, outside 0..{count - 1}; correct or remove it"
            )

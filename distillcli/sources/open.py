"""Opens a data set by its name, and checks what training relies on."""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np

from distillcli.config.datasets import known_dataset
from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.channels import with_channels
from distillcli.sources.labels import keep_labels, with_label_noise
from distillcli.sources.remarks import absent_classes, dark_images
from distillcli.sources.source import Source
from distillcli.sources.verify import without_unreadable


def open_source(config: DatasetConfig) -> Source:
    """The data set called ``config.name``, checked.

    Raises UserError for an unknown name and, naming the row, for a label outside the classes.
    """
    module, function = known_dataset(config.name).reader.split(".")
    read = getattr(importlib.import_module(f"distillcli.sources.{module}"), function)
    source = read(config)
    source = dataclasses.replace(source, notes=(*source.notes, *dark_images(source)))
    source = with_channels(source, config.channels)
    if config.on_error == "skip":
        source = without_unreadable(source)
    check_source(source)
    source = dataclasses.replace(source, notes=(*source.notes, *absent_classes(source)))
    source = with_label_noise(source, config.label_noise, config.split_seed)
    return keep_labels(source, config.labelled, config.split_seed)


def check_reported(source: Source) -> None:
    """Raise UserError where a run would have no data to report on."""
    if source.evaluated_on == "all":
        raise UserError(
            f"dataset.val_fraction=0: {source.name} has neither a test nor a val part, so there would be nothing to "
            "report on; add one, or hold some images out with e.g. dataset.val_fraction=0.1"
        )


def check_source(source: Source) -> None:
    """Raise UserError for fewer than two classes, duplicate class names, an empty part or a label outside the classes.

    -1, for no label, is allowed in train; in val and test only if train has no labels at all.
    """
    count = len(source.classes)
    unlabelled = bool((source.train.labels == -1).all())
    if count < 2 and not (unlabelled and not count):
        raise UserError(f"{source.name}: has {count} class{'es' * (count != 1)}; a classifier needs at least two")
    if len(set(source.classes)) < count:
        twice = sorted(name for name in set(source.classes) if source.classes.count(name) > 1)
        raise UserError(f"{source.name}: two classes are named {twice[0]!r}; rename one")
    for part, split in source.parts.items():
        if len(split.images) != len(split.labels):
            raise UserError(
                f"{source.name}: the {part} part has {len(split.images)} images but {len(split.labels)} labels;"
                " the files are incomplete, download them again"
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

"""Images without labels (-1), for a student that learns from its teacher alone.

    ROOT/train/...   or simply ROOT/...    images at any depth; folder names do not matter
    ROOT/val/...   ROOT/test/...           labelled if they contain class folders, the same in both

Without a val folder, ``dataset.val_fraction`` of the images is held out, unlabelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.class_folders import list_classes, part_folders
from distillcli.sources.folder import DiskTree, FileImages, folder_root
from distillcli.sources.image_names import ignored_words
from distillcli.sources.listing import Listing, hold_out, listed_source
from distillcli.sources.source import Source
from distillcli.sources.tree import quoted_names

_LAYOUT = "expected images at any depth, and perhaps labelled ones in val/CLASS/ and test/CLASS/"


def open_unlabeled(config: DatasetConfig) -> Source:
    """The images below ``config.root``. ``classes``: those of val and test; none if both are unlabelled."""
    root = folder_root(config, _LAYOUT)
    tree = DiskTree(root)
    folders = part_folders(tree, tree.listing("")[0])
    parts = {part: _part(tree, folder) for part, folder in folders.items() if part != "train"}
    labelled = [part for part, listing in parts.items() if listing.classes]
    classes = parts[labelled[0]].classes if labelled else ()
    if len(labelled) == 2:
        _check_same_classes(tree, folders, classes, parts["test"].classes)

    prefix = f"{folders['train']}/" if "train" in folders else ""
    elsewhere = () if prefix else tuple(f"{folder}/" for folder in folders.values())
    images = [(f"{prefix}{name}", size) for name, size in tree.images_below(prefix) if not name.startswith(elsewhere)]
    if len(images) < 2:
        raise UserError(f"{tree.shown('')}: needs at least 2 training images but has {len(images)}; {_LAYOUT}")
    train = _without_labels(images)
    if "val" not in parts and config.val_fraction > 0:
        one_class = np.zeros(len(images), np.int64)
        kept, held = hold_out(one_class, ("unlabelled",), config.val_fraction, config.split_seed, tree.shown(""))
        train, parts["val"] = train.take(kept), train.take(held)
    parts = {part: replace(listing, classes=classes) for part, listing in ({"train": train} | parts).items()}
    source = listed_source("unlabeled", root.resolve().name, tree.shown(""), parts, partial(FileImages, root), config)
    ignored = tuple(f"{file}: {why}" for file, why in tree.ignored.items())
    notes = (f"{tree.shown('')}: {ignored_words(tree.ignored)}",) if ignored else ()
    return replace(source, ignored=ignored, notes=(*notes, *source.notes))


def _check_same_classes(tree: DiskTree, folders: dict[str, str], of_val: Sequence[str], of_test: Sequence[str]) -> None:
    """Raise UserError naming the classes that only one of the two parts has: no training image says which exist."""
    differences = [
        f"{quoted_names(only)} only in {folders[part]}/"
        for part, only in (("val", sorted(set(of_val) - set(of_test))), ("test", sorted(set(of_test) - set(of_val))))
        if only
    ]
    if differences:
        raise UserError(
            f"{tree.shown('')}: {folders['val']}/ and {folders['test']}/ have different classes: "
            f"{', '.join(differences)}; every class needs a folder in each"
        )


def _part(tree: DiskTree, folder: str) -> Listing:
    """Labelled if ``folder`` contains class folders and no other images."""
    classes, loose = tree.listing(folder)
    if classes and not loose:
        return list_classes(tree, folder)
    return _without_labels([(f"{folder}/{name}", size) for name, size in tree.images_below(folder)])


def _without_labels(images: list[tuple[str, int]]) -> Listing:
    names = tuple(name for name, _ in images)
    return Listing((), names, np.full(len(images), -1), np.array([size for _, size in images], np.int64))

"""Images without labels (-1), for a student that learns from its teacher alone.

    ROOT/train/...   or simply ROOT/...    images at any depth; folder names do not matter
    ROOT/val/...   ROOT/test/...           labelled if they contain class folders, the same in both

Without a val folder, ``dataset.val_fraction`` of the images is held out, unlabelled.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.class_folders import check_same_classes, list_classes, part_folders
from distillcli.sources.folder import DiskTree, FileImages, folder_root
from distillcli.sources.listing import Listing, hold_out, listed_source
from distillcli.sources.source import Source

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
        check_same_classes(tree, folders["val"], folders["test"], classes, parts["test"].classes)

    prefix = f"{folders['train']}/" if "train" in folders else ""
    elsewhere = () if prefix else tuple(f"{folder}/" for folder in folders.values())
    images = [(f"{prefix}{name}", size) for name, size in tree.images_below(prefix) if not name.startswith(elsewhere)]
    if len(images) < 2:
        raise UserError(f"{tree.shown('')}: needs at least 2 training images but has {len(images)}; {_LAYOUT}")
    train = _without_labels(images)
    if "val" not in parts:
        one_class = np.zeros(len(images), np.int64)
        kept, held = hold_out(one_class, ("unlabelled",), config.val_fraction, config.split_seed, tree.shown(""))
        train, parts["val"] = train.take(kept), train.take(held)
    parts = {part: replace(listing, classes=classes) for part, listing in ({"train": train} | parts).items()}
    return listed_source("unlabeled", root.resolve().name, tree.shown(""), parts, partial(FileImages, root), config)


def _part(tree: DiskTree, folder: str) -> Listing:
    """Labelled if ``folder`` contains class folders and no other images."""
    classes, loose = tree.listing(folder)
    if classes and not loose:
        return list_classes(tree, folder)
    return _without_labels([(f"{folder}/{name}", size) for name, size in tree.images_below(folder)])


def _without_labels(images: list[tuple[str, int]]) -> Listing:
    names = tuple(name for name, _ in images)
    return Listing((), names, np.full(len(images), -1), np.array([size for _, size in images], np.int64))

"""The supported layouts of class folders; layouts that could be misread are refused.

    ROOT/train/CLASS/...  ROOT/val/CLASS/...  ROOT/test/CLASS/...    also training, validation, valid, testing, ..._set
    ROOT/CLASS/...                                                   dataset.val_fraction of each class becomes val

Without a val folder, val is held out of train and test stays the test part. Images may lie at any depth below the
folder of their class. Classes are in lexicographic order, as in torchvision (timm puts class10 after class9), so
every checkpoint carries its class names, which are compared. A class may be absent from val or test. Images in val or
test outside any class folder have no label: that part is left aside. Hidden files and leftovers of archivers are
ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.image_names import ignored_words
from distillcli.sources.label_files import map_classes, read_labels
from distillcli.sources.listing import Listing, listed_source
from distillcli.sources.source import EncodedImages, Source
from distillcli.sources.tree import (
    PARTS,
    Tree,
    composed,
    images_words,
    join_path,
    part_of,
    parts_hinted,
    quoted_names,
)

LAYOUT = "expected ROOT/CLASS/IMAGES, or ROOT/train/CLASS/IMAGES with ROOT/val/CLASS/IMAGES"


def open_tree(
    kind: str, name: str, tree: Tree, images: Callable[[tuple[str, ...]], EncodedImages], config: DatasetConfig
) -> Source:
    """The images of ``tree``, labelled by ``dataset.labels`` or by their folders, renamed by ``dataset.class_map``."""
    if config.labels:
        parts, notes = read_labels(Path(config.labels), tree)
    else:
        parts, notes = read_layout(tree, known_to_be_classes=config.class_map is not None)
    if config.class_map:
        parts = map_classes(Path(config.class_map), parts)
    source = listed_source(kind, name, tree.shown(""), parts, images, config)
    if tree.ignored:
        notes.append(f"{tree.shown('')}: {ignored_words(tree.ignored)}")
    ignored = tuple(f"{file}: {why}" for file, why in tree.ignored.items())
    return dataclasses.replace(source, ignored=ignored, notes=(*notes, *source.notes))


def read_layout(tree: Tree, known_to_be_classes: bool = False) -> tuple[dict[str, Listing], list[str]]:
    """``train``, and ``val`` and ``test`` if they exist and have labels; and what was left aside, a line each.

    ``known_to_be_classes``: a class map names the folders, so that they are not taken for parts. Raises UserError for
    every layout that could be misread.
    """
    folders = find_parts(tree)
    if "train" not in folders:
        names = list(folders.values())
        raise UserError(
            f"{tree.shown('')}: has {quoted_names(names)} but no train/; {LAYOUT} (to evaluate one part,"
            f" {tree.as_root(names[0])})"
        )
    if not folders["train"] and not known_to_be_classes:
        check_are_classes(tree)
    parts = {"train": list_classes(tree, folders["train"])}
    notes = _beside(tree, folders)
    for part, folder in folders.items():
        if part == "train":
            continue
        classes, loose = tree.listing(folder)
        if loose and not classes:
            without = images_words(len(tree.images_below(folder)))
            notes.append(f"{tree.shown(folder)}: left aside, {without} outside class folders, so without labels")
        else:
            parts[part] = list_classes(tree, folder, parts["train"].classes)
    return parts, notes


def part_folders(tree: Tree, folders: Iterable[str]) -> dict[str, str]:
    """Part -> the folder named after it, in upper or lower case. Raises UserError if two are named after one part."""
    found: dict[str, str] = {}
    for part in PARTS:
        matches = [name for name in folders if part_of(name) == part]
        if len(matches) > 1:
            raise UserError(
                f"{tree.shown('')}: {quoted_names(matches)} could each be the {part} part; rename or remove one"
            )
        if matches:
            found[part] = matches[0]
    return found


def find_parts(tree: Tree) -> dict[str, str]:
    """Part -> its folder: train, and val and test if they exist. A folder without parts is its own train part."""
    folders, _ = tree.listing("")
    named = [name for name in folders if part_of(name)]  # "Train" and "Val" are no classes either
    # Folders that all directly contain images are classes: a data set of vehicles has a class called train.
    one_part = len({part_of(name) for name in named}) <= 1
    if one_part and len(named) < len(folders) and all(tree.listing(name)[1] for name in named):
        return {"train": ""}
    found = part_folders(tree, named)
    if not found:
        return {"train": ""}
    if list(found) == ["train"]:
        others = [name for name in folders if name != found["train"] and tree.images_below(name)]
        if others:
            raise UserError(
                f"{tree.shown('')}: train/ beside {quoted_names(others)}, but neither val/ nor test/; rename train/ if"
                f" it is a class, or {tree.as_root(found['train'])}"
            )
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if one in found and other in found and tree.same(found[one], found[other]):
            raise UserError(
                f"{tree.shown(found[one])} and {tree.shown(found[other])} are the same folder: {other} would repeat"
                f" {one}; remove {other}/ or point it at other images"
            )
    return found


def check_are_classes(tree: Tree) -> None:
    """Raise UserError if the folders of a set without known parts look like parts: by their names, or because the
    same folders are in all of them."""
    folders, _ = tree.listing("")
    fix = "rename them to train, val and test, or, if they are the classes, name them in dataset.class_map=FILE"
    hinted = {name: parts for name in folders if (parts := parts_hinted(name))}
    nested = all(not tree.listing(name)[1] for name in hinted)
    if len(set().union(*hinted.values())) > 1 and (nested or len(hinted) == len(folders)):
        raise UserError(
            f"{tree.shown('')}: {quoted_names(list(hinted))} look like parts, not like classes; {fix}, with the class"
            " folders directly inside"
        )
    shared: set[str] | None = None
    for name in folders:
        inside, images = tree.listing(name)
        shared = set(inside) if shared is None else shared & set(inside)
        if images or len(shared) < 2:
            return
    if shared and len(folders) > 1:
        raise UserError(
            f"{tree.shown('')}: every class folder holds the same sub-folders ({quoted_names(sorted(shared))}): these"
            f" look like parts ({quoted_names(folders)}); {fix}"
        )


def list_classes(tree: Tree, part: str, known: Sequence[str] | None = None) -> Listing:
    """All images of a folder of class folders.

    ``known``: the classes of train, for another part, which may lack some of them.
    """
    folders, loose = tree.listing(part)
    if loose:
        raise UserError(
            f"{tree.shown(part)}: {images_words(len(loose))} outside the class folders, such as"
            f" {loose[0]!r}; move them into a folder named after their class, or list them in dataset.labels=FILE"
        )
    if not folders:
        raise UserError(f"{tree.shown(part)}: no class folders; {LAYOUT}")
    if len(folders) == 1 and known is None:
        raise UserError(
            f"{tree.shown(part)}: only one class folder, {folders[0]!r}, but a classifier needs two"
            f" (if that folder holds the classes, {tree.as_root(join_path(part, folders[0]))})"
        )
    of_class = {name: tree.images_below(join_path(part, folder)) for name, folder in _named(tree, part, folders)}
    places = {name: join_path(part, folder) for name, folder in _named(tree, part, folders)}
    if known is None:
        for name, images in of_class.items():
            if not images:
                raise UserError(f"{tree.shown(places[name])}: class folder without images{_unread(tree, places[name])}")
        known = tuple(of_class)
    extra = [name for name, images in of_class.items() if images and name not in known]
    if extra:
        raise UserError(
            f"{tree.shown(part)}: {quoted_names(extra)} only in {part}/, no training image has that class; add some to"
            f" train, or move the folder out of {part}/"
        )
    found = [
        (f"{places[name]}/{path}", label, size)
        for label, name in enumerate(known)
        for path, size in of_class.get(name, ())
    ]
    if not found:
        raise UserError(f"{tree.shown(part)}: no image in its class folders; add some or remove it")
    names, labels, sizes = zip(*found, strict=True)
    return Listing(tuple(known), names, np.array(labels, np.int64), np.array(sizes, np.int64))


def _named(tree: Tree, part: str, folders: Sequence[str]) -> list[tuple[str, str]]:
    """Class names with their folders, sorted: names that differ only in how accents are written mean one class."""
    named: dict[str, str] = {}
    for folder in folders:
        if composed(folder) in named:
            raise UserError(
                f"{tree.shown(part)}: two folders are named {composed(folder)!r}, with accents written in two ways"
                " (NFC and NFD); merge them"
            )
        named[composed(folder)] = folder
    return sorted(named.items())


def _unread(tree: Tree, folder: str) -> str:
    inside = {name: why for name, why in tree.ignored.items() if name.startswith(f"{folder}/")}
    return f"; {ignored_words(inside)}; convert or rename them" if inside else "; add some or remove it"


def _beside(tree: Tree, folders: dict[str, str]) -> list[str]:
    """What lies beside the parts, which are all that is read."""
    if not folders["train"]:
        return []
    others = {name: len(tree.images_below(name)) for name in tree.listing("")[0] if name not in folders.values()}
    return [
        f"{tree.shown(name)}: left aside, {images_words(count)}, as {name!r} is none of train, val and test"
        for name, count in others.items()
        if count
    ]

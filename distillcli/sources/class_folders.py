"""The layouts of class folders that are understood, and the refusal of those that could be misread.

    ROOT/train/CLASS/...  ROOT/val/CLASS/...  ROOT/test/CLASS/...    val may also be called validation or valid
    ROOT/CLASS/...                                                   dataset.val_fraction of each class becomes val

Without a val folder, val is held out of train and test stays the test part. Images may lie at any depth below the
folder of their class. Classes are in lexicographic order, as in torchvision (timm puts class10 after class9), so
class names travel with every checkpoint and are compared. Hidden files and what archivers leave behind are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.label_files import map_classes, read_labels
from distillcli.sources.listing import Listing, listed_source
from distillcli.sources.source import EncodedImages, Source
from distillcli.sources.tree import PART_OF, PARTS, Tree, join_path, quoted_names

LAYOUT = "expected ROOT/CLASS/IMAGES, or ROOT/train/CLASS/IMAGES with ROOT/val/CLASS/IMAGES"


def open_tree(
    kind: str, name: str, tree: Tree, images: Callable[[tuple[str, ...]], EncodedImages], config: DatasetConfig
) -> Source:
    """The images of ``tree``, labelled by ``dataset.labels`` or by their folders, renamed by ``dataset.class_map``."""
    parts = read_labels(Path(config.labels), tree) if config.labels else read_layout(tree)
    if config.class_map:
        parts = map_classes(Path(config.class_map), parts)
    return listed_source(kind, name, tree.shown(""), parts, images, config)


def read_layout(tree: Tree) -> dict[str, Listing]:
    """``train``, and ``val`` and ``test`` if there are any. Raises UserError for every layout that could be misread."""
    folders = find_parts(tree)
    if "train" not in folders:
        raise UserError(f"{tree.shown('')}: has {quoted_names(list(folders.values()))} but no train/; {LAYOUT}")
    parts = {part: list_classes(tree, folder) for part, folder in folders.items()}
    for part, listing in parts.items():
        check_same_classes(tree, folders["train"], folders[part], parts["train"].classes, listing.classes)
    return parts


def called_parts(tree: Tree, folders: Iterable[str]) -> dict[str, str]:
    """Which of the folders is called like which part, in any case. Raises UserError where two are called like one."""
    found: dict[str, str] = {}
    for part, spellings in PARTS.items():
        matches = [name for name in folders if name.lower() in spellings]
        if len(matches) > 1:
            raise UserError(
                f"{tree.shown('')}: {quoted_names(matches)} may each be the {part} part; rename or remove one"
            )
        if matches:
            found[part] = matches[0]
    return found


def find_parts(tree: Tree) -> dict[str, str]:
    """The folders of class folders: train, and val and test if there are any. A flat folder is its own train part."""
    folders, _ = tree.listing("")
    named = [name for name in folders if name.lower() in PART_OF]  # in any case: "Train" and "Val" are not classes
    # Folders that all have images of their own are classes: data about vehicles has one called train.
    if len(named) < len(folders) and all(tree.listing(name)[1] for name in named):
        return {"train": ""}
    found = called_parts(tree, named)
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


def list_classes(tree: Tree, part: str) -> Listing:
    """All images of a folder of class folders."""
    classes, loose = tree.listing(part)
    if loose:
        raise UserError(
            f"{tree.shown(part)}: {len(loose)} image{'s' * (len(loose) > 1)} outside any class folder, such as"
            f" {loose[0]!r}; move them into a folder named after their class, or list them in dataset.labels=FILE"
        )
    if not classes:
        raise UserError(f"{tree.shown(part)}: no class folders; {LAYOUT}")
    if len(classes) == 1:
        raise UserError(
            f"{tree.shown(part)}: only one class folder, {classes[0]!r}; a classifier needs two"
            f" (if that folder holds the classes, {tree.as_root(join_path(part, classes[0]))})"
        )
    names: list[str] = []
    labels: list[int] = []
    sizes: list[int] = []
    for label, name in enumerate(classes):
        folder = join_path(part, name)
        images = tree.images_below(folder)
        if not images:
            raise UserError(f"{tree.shown(folder)}: class folder without images; add some or remove the folder")
        names += [f"{folder}/{path}" for path, _ in images]
        sizes += [size for _, size in images]
        labels += [label] * len(images)
    return Listing(tuple(classes), tuple(names), np.array(labels, np.int64), np.array(sizes, np.int64))


def check_same_classes(tree: Tree, train: str, part: str, expected: Sequence[str], found: Sequence[str]) -> None:
    """Raise UserError naming the classes that only one of two parts has."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if not missing and not extra:
        return
    differences = [f"{quoted_names(missing)} only in {train}/"] if missing else []
    differences += [f"{quoted_names(extra)} only in {part}/"] if extra else []
    raise UserError(
        f"{tree.shown('')}: {train}/ and {part}/ have different classes: {', '.join(differences)};"
        " every class needs a folder in each"
    )

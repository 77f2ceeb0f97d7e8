"""The supported layouts of class folders; layouts that could be misread are refused.

    ROOT/train/CLASS/...  ROOT/val/CLASS/...  ROOT/test/CLASS/...    val may also be called validation or valid
    ROOT/CLASS/...                                                   dataset.val_fraction of each class becomes val

Without a val folder, val is held out of train and test stays the test part. Images may lie at any depth below the
folder of their class. Classes are in lexicographic order, as in torchvision (timm puts class10 after class9), so
every checkpoint carries its class names, which are compared. Hidden files and leftovers of archivers are ignored.
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
    """``train``, and ``val`` and ``test`` if they exist. Raises UserError for every layout that could be misread."""
    folders = find_parts(tree)
    if "train" not in folders:
        raise UserError(f"{tree.shown('')}: has {quoted_names(list(folders.values()))} but no train/; {LAYOUT}")
    parts = {part: list_classes(tree, folder) for part, folder in folders.items()}
    for part, listing in parts.items():
        check_same_classes(tree, folders["train"], folders[part], parts["train"].classes, listing.classes)
    return parts


def part_folders(tree: Tree, folders: Iterable[str]) -> dict[str, str]:
    """Part -> the folder named after it, in upper or lower case. Raises UserError if two are named after one part."""
    found: dict[str, str] = {}
    for part, spellings in PARTS.items():
        matches = [name for name in folders if name.lower() in spellings]
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
    named = [name for name in folders if name.lower() in PART_OF]  # "Train" and "Val" are no classes either
    # Folders that all directly contain images are classes: a data set of vehicles has a class called train.
    if len(named) < len(folders) and all(tree.listing(name)[1] for name in named):
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


def list_classes(tree: Tree, part: str) -> Listing:
    """All images of a folder of class folders."""
    classes, loose = tree.listing(part)
    if loose:
        raise UserError(
            f"{tree.shown(part)}: {len(loose)} image{'s' * (len(loose) > 1)} outside the class folders, such as"
            f" {loose[0]!r}; move them into a folder named after their class, or list them in dataset.labels=FILE"
        )
    if not classes:
        raise UserError(f"{tree.shown(part)}: no class folders; {LAYOUT}")
    if len(classes) == 1:
        raise UserError(
            f"{tree.shown(part)}: only one class folder, {classes[0]!r}, but a classifier needs two"
            f" (if that folder holds the classes, {tree.as_root(join_path(part, classes[0]))})"
        )
    names: list[str] = []
    labels: list[int] = []
    sizes: list[int] = []
    for label, name in enumerate(classes):
        folder = join_path(part, name)
        images = tree.images_below(folder)
        if not images:
            raise UserError(f"{tree.shown(folder)}: class folder without images; add some or remove it")
        names += [f"{folder}/{path}" for path, _ in images]
        sizes += [size for _, size in images]
        labels += [label] * len(images)
    return Listing(tuple(classes), tuple(names), np.array(labels, np.int64), np.array(sizes, np.int64))


def check_same_classes(tree: Tree, train: str, part: str, expected: Sequence[str], found: Sequence[str]) -> None:
    """Raise UserError naming the classes that only one of the two parts has."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if not missing and not extra:
        return
    differences = [f"{quoted_names(missing)} only in {train}/"] if missing else []
    differences += [f"{quoted_names(extra)} only in {part}/"] if extra else []
    raise UserError(
        f"{tree.shown('')}: {train}/ and {part}/ have different classes: {', '.join(differences)};"
        " every class needs a folder in each"
    )

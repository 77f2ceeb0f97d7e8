"""Labels and class names from files beside the images: ``dataset.labels`` and ``dataset.class_map``.

Labels: CSV or TSV with a header, or JSONL, with the columns

    file (or file_name, filename, path, image)   the path of an image below dataset.root, or below the labels' folder
    label (or class, target)                     its class
    split                                        optional: train, val (validation, valid) or test

Class map: the class name of each folder or label. Folders with the same class name become one class. The files of
``teacher.class_map`` follow the same rules: they give the teacher's name for each class of the data set.
``teacher.classes``: names for the outputs of a classifier, in their order; one a line, or a JSON list.

    .json          {"n02123045": "cat", "n02123159": "cat", "n02084071": "dog"}
    .csv, .tsv     two columns, with or without the header folder,class
    other text     a line per folder: its name, a tab or a space, its class name
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from distillcli.errors import UserError
from distillcli.sources.decode import show_path
from distillcli.sources.listing import Listing, named_listings
from distillcli.sources.tables import cell_text, lines_of, one_column, parse_object, read_cells, read_table, read_text
from distillcli.sources.tree import Tree, composed, images_words, part_of, quoted_names

FILE_COLUMNS = ("file", "file_name", "filename", "path", "image")
LABEL_COLUMNS = ("label", "class", "target")


def read_labels(file: Path, tree: Tree) -> tuple[dict[str, Listing], list[str]]:
    """The images of ``tree`` that ``file`` lists, by part, and a line about those it does not list.

    Classes are those of train. Raises UserError for rows without a file or label, files that are missing or listed
    twice, and unknown splits.
    """
    columns, rows = read_table("dataset.labels", file, _is_label_header)
    file_column = one_column(file, columns, FILE_COLUMNS, "file")
    label_column = one_column(file, columns, LABEL_COLUMNS, "label")
    split_column = next((column for column in columns if column.lower() == "split"), None)

    sizes = dict(tree.images_below(""))
    written = [cell_text(row, file_column, f"{show_path(file)}, line {number}") for number, row in rows]
    names = _Names(file, tree, sizes).found(written)
    listed: dict[str, int] = {}
    parts: dict[str, dict[str, str]] = {}
    for (number, row), name, shown in zip(rows, names, written, strict=True):
        where = f"{show_path(file)}, line {number}"
        if name is None:
            why = tree.ignored.get(posixpath.normpath(shown))
            problem = f"{shown!r} is no image that is read ({why})" if why else f"no image {shown!r}"
            raise UserError(f"{where}: {problem} in {tree.shown('')}; correct the path or remove the line")
        if name in listed:
            raise UserError(f"{where}: {name!r} is already listed in line {listed[name]}; keep one")
        listed[name] = number
        split = "train" if split_column is None else cell_text(row, split_column, where)
        part = part_of(split)
        if part is None:
            raise UserError(f"{where}: split {split!r} is none of train, val and test; correct it")
        parts.setdefault(part, {})[name] = composed(cell_text(row, label_column, where))
    if "train" not in parts:
        raise UserError(f"{show_path(file)}: lists no training images; add some")
    rest = len(sizes) - len(listed)
    aside = f"{tree.shown('')}: {images_words(rest)} left aside, as {show_path(file)} does not list them"
    return named_listings(show_path(file), parts, sizes), [aside] if rest else []


class _Names:
    """How the paths in a labels file name the images of a tree.

    They are below the root or, as in the metadata files of Hugging Face, below the folder of the file: whichever all
    of them are. Backslashes, and accents written in another way, mean the image that is there if only one can be meant.
    """

    def __init__(self, file: Path, tree: Tree, images: Collection[str]) -> None:
        self._images = images
        self._by_composed: dict[str, list[str]] = {}
        for name in images:
            self._by_composed.setdefault(composed(name), []).append(name)
        # Only a file inside the root has a folder there.
        root, folder = Path(tree.shown("")).absolute(), file.absolute().parent
        self._folder = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else "."

    def found(self, written: Sequence[str]) -> list[str | None]:
        below_root = [self._image("", name) for name in written]
        if None not in below_root or self._folder == ".":
            return below_root
        below_folder = [self._image(self._folder, name) for name in written]
        return below_root if None in below_folder else below_folder

    def _image(self, folder: str, name: str) -> str | None:
        for spelling in (name, name.replace("\\", "/")):
            path = posixpath.normpath(posixpath.join(folder, spelling))
            if path in self._images:
                return path
            similar = self._by_composed.get(composed(path), [])
            if len(similar) == 1:
                return similar[0]
        return None


def _is_label_header(cells: Sequence[str]) -> bool:
    names = {cell.strip().lower() for cell in cells}
    return not names.isdisjoint(FILE_COLUMNS) and not names.isdisjoint(LABEL_COLUMNS)


def map_classes(file: Path, parts: dict[str, Listing]) -> dict[str, Listing]:
    """``parts`` with renamed and merged classes, in the order of their first folders.

    Raises UserError if a folder has no class in ``file``. Folders in the file that the data set lacks are ignored.
    """
    names = read_class_map("dataset.class_map", file)
    folders = parts["train"].classes
    missing = [folder for folder in folders if folder not in names]
    if missing:
        raise UserError(
            f"dataset.class_map={show_path(file)}: has no class for {quoted_names(missing)}; add a line for each"
        )
    classes = tuple(dict.fromkeys(names[folder] for folder in folders))
    moved = np.array([classes.index(names[folder]) for folder in folders], np.int64)
    return {
        part: Listing(classes, listing.names, moved[listing.labels], listing.sizes) for part, listing in parts.items()
    }


def read_class_map(key: str, file: Path) -> dict[str, str]:
    """Name -> class, from the file that ``key`` names. Raises UserError for malformed lines and a second class."""
    where, suffix, text = f"{key}={show_path(file)}", file.suffix.lower(), read_text(key, file)
    if suffix == ".json":
        content = parse_object(where, text)
        pairs = [[name, cell_text(content, name, where)] for name in content]
    elif suffix in (".csv", ".tsv"):
        pairs = [cells for _, cells in read_cells(file, text, lambda cells: len(cells) == 2)]
        header = [cell.strip().lower() for cell in pairs[0]] if pairs else []
        pairs = pairs[1:] if header == ["folder", "class"] else pairs
    else:
        pairs = [_two_words(line) for line in lines_of(text) if line.strip()]
    names: dict[str, str] = {}
    for pair in pairs:
        parts = [composed(part.strip()) for part in pair]
        if len(parts) != 2 or not all(parts):
            raise UserError(
                f"{where}: {','.join(parts)!r} is not a name and its class; quote names that contain commas"
            )
        folder, name = parts
        if names.setdefault(folder, name) != name:
            raise UserError(f"{where}: {folder!r} is both {names[folder]!r} and {name!r}; remove one line")
    return names


def _two_words(line: str) -> list[str]:
    """Parted at the first tab, or else at the first blanks; other blanks of Unicode belong to a name."""
    return line.strip().split("\t", 1) if "\t" in line.strip() else line.strip().split(" ", 1)


def read_names(key: str, file: Path) -> tuple[str, ...]:
    """Class names in the order of a classifier's outputs, from the file that ``key`` names: one a line, or a JSON list.

    Raises UserError for an empty name or file. A name may occur twice, as two of ImageNet's do.
    """
    where, text = f"{key}={show_path(file)}", read_text(key, file)
    if file.suffix.lower() == ".json":
        try:
            names = json.loads(text)
        except ValueError as error:
            raise UserError(f"{where}: is not JSON ({error}); correct it") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{where}: is not a JSON list of names; write the names in the order of the outputs")
    else:
        names = lines_of(text.rstrip("\r\n"))
    names = [composed(name.strip()) for name in names]
    if not names or "" in names:
        place = f"name {names.index('') + 1} of {len(names)} is empty" if any(names) else "holds no name"
        raise UserError(f"{where}: {place}; write one for every output of the classifier")
    return tuple(names)

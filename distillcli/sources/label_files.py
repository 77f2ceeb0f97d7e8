"""Labels and class names from files beside the images: ``dataset.labels`` and ``dataset.class_map``.

Labels: CSV or TSV with a header, or JSONL, with the columns

    file (or filename, path, image)      the path of an image below dataset.root
    label (or class, target)             its class
    split                                optional: train, val (validation, valid) or test

Class map: the class name of each folder or label. Folders with the same class name become one class. The files of
``teacher.class_map`` follow the same rules: they give the teacher's name for each class of the data set.
``teacher.classes``: names for the outputs of a classifier, in their order; one a line, or a JSON list.

    .json          {"n02123045": "cat", "n02123159": "cat", "n02084071": "dog"}
    .csv, .tsv     two columns, with or without the header folder,class
    other text     a line per folder: its name, a tab or a space, its class name
"""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillcli.errors import UserError
from distillcli.sources.decode import show_path
from distillcli.sources.listing import Listing, named_listings
from distillcli.sources.tree import PART_OF, Tree, quoted_names

FILE_COLUMNS = ("file", "filename", "path", "image")
LABEL_COLUMNS = ("label", "class", "target")


def read_labels(file: Path, tree: Tree) -> dict[str, Listing]:
    """The images of ``tree`` that ``file`` lists, by part; others are left out. Classes are those of train.

    Raises UserError for rows without a file or label, files that are missing or listed twice, and unknown splits.
    """
    rows = _rows("dataset.labels", file)
    columns = sorted({column for _, row in rows for column in row})
    file_column = _one_column(file, columns, FILE_COLUMNS, "file")
    label_column = _one_column(file, columns, LABEL_COLUMNS, "label")
    split_column = next((column for column in columns if column.lower() == "split"), None)

    sizes = dict(tree.images_below(""))
    listed: dict[str, int] = {}
    parts: dict[str, dict[str, str]] = {}
    for number, row in rows:
        where = f"{show_path(file)}, line {number}"
        name = posixpath.normpath(_text(row, file_column, where))
        if name not in sizes:
            raise UserError(f"{where}: no image {name!r} in {tree.shown('')}; correct the path or remove the line")
        if name in listed:
            raise UserError(f"{where}: {name!r} is already listed in line {listed[name]}; keep one")
        listed[name] = number
        split = "train" if split_column is None else _text(row, split_column, where)
        if split.lower() not in PART_OF:
            raise UserError(f"{where}: split {split!r} is none of train, val and test; correct it")
        parts.setdefault(PART_OF[split.lower()], {})[name] = _text(row, label_column, where)
    if "train" not in parts:
        raise UserError(f"{show_path(file)}: lists no training images; add some")
    return named_listings(show_path(file), parts, sizes)


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
    where, suffix, text = f"{key}={show_path(file)}", file.suffix.lower(), _read_text(key, file)
    if suffix == ".json":
        content = _json(where, "".join(text))
        pairs = [[name, _text(content, name, where)] for name in content]
    elif suffix in (".csv", ".tsv"):
        pairs = [cells for _, cells in _cells(file, text)]
        header = [cell.strip().lower() for cell in pairs[0]] if pairs else []
        pairs = pairs[1:] if header == ["folder", "class"] else pairs
    else:
        pairs = [line.split("\t" if "\t" in line else None, 1) for line in text if line.strip()]
    names: dict[str, str] = {}
    for pair in pairs:
        parts = [part.strip() for part in pair]
        if len(parts) != 2 or not all(parts):
            raise UserError(
                f"{where}: {','.join(parts)!r} is not a name and its class; quote names that contain commas"
            )
        folder, name = parts
        if names.setdefault(folder, name) != name:
            raise UserError(f"{where}: {folder!r} is both {names[folder]!r} and {name!r}; remove one line")
    return names


def read_names(key: str, file: Path) -> tuple[str, ...]:
    """Class names in the order of a classifier's outputs, from the file that ``key`` names: one a line, or a JSON list.

    Raises UserError for an empty name or file. A name may occur twice, as two of ImageNet's do.
    """
    where, text = f"{key}={show_path(file)}", _read_text(key, file)
    if file.suffix.lower() == ".json":
        try:
            names = json.loads("".join(text))
        except ValueError as error:
            raise UserError(f"{where}: is not JSON ({error}); correct it") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{where}: is not a JSON list of names; write the names in the order of the outputs")
    else:
        names = "".join(text).rstrip("\n").split("\n") if text else []
    names = [name.strip() for name in names]
    if not names or "" in names:
        place = f"name {names.index('') + 1} of {len(names)} is empty" if any(names) else "holds no name"
        raise UserError(f"{where}: {place}; write one for every output of the classifier")
    return tuple(names)


def _rows(key: str, file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a table as column -> value, with the numbers of their lines."""
    text = _read_text(key, file)
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        rows = [(number, _json(f"{show_path(file)}, line {number}", line)) for number, line in enumerate(text, 1)]
    elif file.suffix.lower() in (".csv", ".tsv"):
        (_, header), *body = _cells(file, text) or [(1, [])]
        uneven = [number for number, cells in body if len(cells) != len(header)]
        if uneven:
            raise UserError(f"{show_path(file)}, line {uneven[0]}: its columns do not match the header; correct it")
        rows = [(number, dict(zip(header, cells, strict=True))) for number, cells in body]
    else:
        raise UserError(f"{key}={show_path(file)}: must end in .csv, .tsv or .jsonl")
    if not rows:
        raise UserError(f"{key}={show_path(file)}: has no rows below the header; add some")
    return rows


def _cells(file: Path, text: Sequence[str]) -> list[tuple[int, list[str]]]:
    """The rows of a CSV or TSV file that are not empty, with the numbers of their lines."""
    reader = csv.reader(text, delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"{show_path(file)}, line {reader.line_num}: {error}; correct it") from error


def _read_text(key: str, file: Path) -> list[str]:
    try:
        return file.expanduser().read_text("utf-8-sig").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{key}={show_path(file)}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key}={show_path(file)}: is not UTF-8 text; save it as UTF-8") from error


def _json(where: str, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error}); correct it") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: is not a JSON object; correct it")
    return content


def _one_column(file: Path, columns: Sequence[str], known: Sequence[str], what: str) -> str:
    matches = [column for column in columns if column.lower() in known]
    if not matches:
        raise UserError(
            f"{show_path(file)}: no column {', '.join(known)} among {quoted_names(columns)}; rename a column"
        )
    if len(matches) > 1:
        raise UserError(f"{show_path(file)}: {quoted_names(matches)} could each be the {what}; rename or remove one")
    return matches[0]


def _text(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise UserError(f"{where}: {column} is {value!r}; write text or a whole number")
    return str(value).strip()

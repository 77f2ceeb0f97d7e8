"""Labels and class names that lie in a file beside the images: ``dataset.labels`` and ``dataset.class_map``.

Labels: CSV or TSV with a header, or JSONL, with the columns

    file (or filename, path, image)      the path of an image below dataset.root
    label (or class, target)             its class
    split                                optional: train, val (validation, valid) or test

Class map: which class a folder, or a label, stands for. Folders with one class name become one class.

    .json          {"n02123045": "cat", "n02123159": "cat", "n02084071": "dog"}
    .csv, .tsv     with the columns folder and class
    other text     a line per folder: its name, a space, the name of its class
"""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillcli.data.decode import shown
from distillcli.data.listing import Listing, named_listings
from distillcli.data.tree import PART_OF, Tree, quoted
from distillcli.errors import UserError

FILE_COLUMNS = ("file", "filename", "path", "image")
LABEL_COLUMNS = ("label", "class", "target")


def read_labels(file: Path, tree: Tree) -> dict[str, Listing]:
    """The images of ``tree`` that ``file`` lists, by part; others are left out. Classes are those of train.

    Raises UserError for rows without a file or label, files that are not there or listed twice, and unknown splits.
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
        where = f"{shown(file)}, line {number}"
        name = posixpath.normpath(_text(row, file_column, where))
        if name not in sizes:
            raise UserError(f"{where}: no image {name!r} in {tree.shown('')}; correct the path or remove the line")
        if name in listed:
            raise UserError(f"{where}: {name!r} is listed in line {listed[name]} already; an image has one label")
        listed[name] = number
        split = "train" if split_column is None else _text(row, split_column, where)
        if split.lower() not in PART_OF:
            raise UserError(f"{where}: split {split!r} is none of train, val and test; correct it")
        parts.setdefault(PART_OF[split.lower()], {})[name] = _text(row, label_column, where)
    if "train" not in parts:
        raise UserError(f"{shown(file)}: lists no image of the train part; add some")
    return named_listings(shown(file), parts, sizes)


def map_classes(file: Path, parts: dict[str, Listing]) -> dict[str, Listing]:
    """``parts`` with renamed and merged classes, in the order in which their first folders were.

    Raises UserError if a folder has no class in ``file``. Folders in the file that the data lacks do not matter.
    """
    names = _read_class_map(file)
    folders = parts["train"].classes
    missing = [folder for folder in folders if folder not in names]
    if missing:
        raise UserError(f"dataset.class_map={shown(file)}: has no class for {quoted(missing)}; add a line for each")
    classes = tuple(dict.fromkeys(names[folder] for folder in folders))
    moved = np.array([classes.index(names[folder]) for folder in folders], np.int64)
    return {
        part: Listing(classes, listing.names, moved[listing.labels], listing.sizes) for part, listing in parts.items()
    }


def _rows(key: str, file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a table as column -> value, with the numbers of their lines."""
    text = _read_text(key, file)
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        rows = [(number, _json(f"{shown(file)}, line {number}", line)) for number, line in enumerate(text, 1)]
    elif file.suffix.lower() in (".csv", ".tsv"):
        reader = csv.DictReader(text, delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            rows = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise UserError(f"{shown(file)}, line {reader.line_num}: {error}; correct it") from error
        uneven = [number for number, row in rows if None in row or None in row.values()]
        if uneven:
            raise UserError(f"{shown(file)}, line {uneven[0]}: has other columns than the header; correct it")
    else:
        raise UserError(f"{key}={shown(file)}: must end in .csv, .tsv or .jsonl")
    if not rows:
        raise UserError(f"{key}={shown(file)}: has no rows; the first line of a CSV or TSV file names its columns")
    return rows


def _read_class_map(file: Path) -> dict[str, str]:
    if file.suffix.lower() in (".csv", ".tsv"):
        pairs = [
            (
                _text(row, "folder", f"{shown(file)}, line {number}"),
                _text(row, "class", f"{shown(file)}, line {number}"),
            )
            for number, row in _rows("dataset.class_map", file)
        ]
    elif file.suffix.lower() == ".json":
        content = _json(shown(file), "".join(_read_text("dataset.class_map", file)))
        pairs = [(folder, _text(content, folder, shown(file))) for folder in content]
    else:
        lines = [line.split(maxsplit=1) for line in _read_text("dataset.class_map", file) if line.strip()]
        short = [words for words in lines if len(words) == 1]
        if short:
            raise UserError(f"dataset.class_map={shown(file)}: {short[0][0]!r} has no class name behind it")
        pairs = [(folder, name.strip()) for folder, name in lines]
    names: dict[str, str] = {}
    for folder, name in pairs:
        if names.setdefault(folder, name) != name:
            raise UserError(f"dataset.class_map={shown(file)}: {folder!r} is both {names[folder]!r} and {name!r}")
    return names


def _read_text(key: str, file: Path) -> list[str]:
    try:
        return file.read_text("utf-8-sig").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{key}={shown(file)}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key}={shown(file)}: is not UTF-8 text; save it as UTF-8") from error


def _json(where: str, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error}); correct it") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: is not a JSON object with a name for every value; correct it")
    return content


def _one_column(file: Path, columns: Sequence[str], known: Sequence[str], what: str) -> str:
    matches = [column for column in columns if column.lower() in known]
    if not matches:
        raise UserError(f"{shown(file)}: no column {', '.join(known)} among {quoted(columns)}; name the {what}s so")
    if len(matches) > 1:
        raise UserError(f"{shown(file)}: {quoted(matches)} may each be the {what}; rename or remove one")
    return matches[0]


def _text(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise UserError(f"{where}: {column} is {value!r}; write text or a whole number")
    return str(value).strip()

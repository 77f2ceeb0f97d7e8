"""Tables and lists that people write by hand or export from other programs: text from files, cells from text.

What is unambiguous is read: any of the usual encodings with a mark, comma, semicolon or tab, blanks around cells. What
could be read in two ways is refused with its line.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distillcli.errors import UserError
from distillcli.sources.decode import show_path
from distillcli.sources.tree import quoted_names

# A row with the number of its line.
Cells = list[tuple[int, list[str]]]
Row = tuple[int, dict[str, Any]]

_DELIMITERS = (",", ";", "\t")
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(key: str, file: Path) -> str:
    """Raises UserError for what cannot be read, or is neither UTF-8 nor UTF-16 with its mark."""
    where = f"{key}={show_path(file)}"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from error
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{where}, line {line}: is not UTF-8 text (byte {content[error.start]:#04x}); save it as UTF-8 (in Excel:"
            " CSV UTF-8)"
        ) from error
    if "\0" in text:
        raise UserError(f"{where}: is no text, or UTF-16 without its mark; save it as UTF-8")
    return text


def lines_of(text: str) -> list[str]:
    """Parted at line ends alone: Unicode knows other characters that part lines, and they are allowed in names."""
    return text.replace("\r\n", "\n").split("\n")


def read_table(key: str, file: Path, is_header: Callable[[Sequence[str]], bool]) -> tuple[list[str], list[Row]]:
    """The columns of a CSV, TSV or JSONL file, and its rows as column -> value.

    ``is_header``: whether these cells name the columns that are needed, which tells the delimiter.
    """
    text, suffix = read_text(key, file), file.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        lines = [(number, line) for number, line in enumerate(lines_of(text), 1) if line.strip()]
        rows = [(number, parse_object(f"{show_path(file)}, line {number}", line)) for number, line in lines]
        columns = sorted({column for _, row in rows for column in row})
    elif suffix in (".csv", ".tsv"):
        (_, header), *body = read_cells(file, text, is_header) or [(1, [])]
        columns = [cell.strip() for cell in header]
        uneven = [number for number, cells in body if len(cells) != len(columns)]
        if uneven:
            raise UserError(f"{show_path(file)}, line {uneven[0]}: its columns do not match the header; correct it")
        twice = sorted({column for column in columns if column and columns.count(column) > 1})
        if twice:
            raise UserError(f"{show_path(file)}: two columns are named {twice[0]!r}; rename or remove one")
        rows = [(number, dict(zip(columns, cells, strict=True))) for number, cells in body]
    else:
        raise UserError(f"{key}={show_path(file)}: must end in .csv, .tsv or .jsonl")
    if not rows:
        raise UserError(f"{key}={show_path(file)}: has no rows below the header; add some")
    return columns, rows


def read_cells(file: Path, text: str, is_header: Callable[[Sequence[str]], bool]) -> Cells:
    """The rows of a CSV or TSV file that are not empty.

    The delimiter is the one of comma, semicolon and tab by which the first row is a header; if none or several make it
    one, that of the file's ending.
    """
    usual = "\t" if file.suffix.lower() == ".tsv" else ","
    if text[:3] == "sep" and text[3:4] == "=" and text[5:6] in ("\n", "\r"):  # Excel's way to name the delimiter
        usual, text = text[4], text[5:]
    possible = [delimiter for delimiter in _DELIMITERS if is_header(_first_row(text, delimiter))]
    delimiter = possible[0] if len(possible) == 1 else usual
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(f"{show_path(file)}, line {reader.line_num}: {error}; correct it") from error


def _first_row(text: str, delimiter: str) -> list[str]:
    try:
        return next((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row), [])
    except csv.Error:
        return []


def parse_object(where: str, text: str) -> dict[str, Any]:
    """Raises UserError if ``text`` is not a JSON object."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({error}); correct it") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: is not a JSON object; correct it")
    return content


def one_column(file: Path, columns: Sequence[str], known: Sequence[str], what: str) -> str:
    """The column that has one of the ``known`` names, in upper or lower case. Raises UserError for none or several."""
    matches = sorted(column for column in columns if column.lower() in known)
    if not matches:
        raise UserError(
            f"{show_path(file)}: no column {', '.join(known)} among {quoted_names(columns)}; rename a column"
        )
    if len(matches) > 1:
        raise UserError(f"{show_path(file)}: {quoted_names(matches)} could each be the {what}; rename or remove one")
    return matches[0]


def cell_text(row: dict[str, Any], column: str, where: str) -> str:
    """Text or a whole number, as text without blanks around it. Raises UserError for anything else."""
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise UserError(f"{where}: {column} is {value!r}; write text or a whole number")
    return str(value).strip()

"""Hugging Face datasets: from the hub, from ``save_to_disk``, or as parquet or arrow files, alone or in a folder.

The package ``datasets`` keeps every table as memory-mapped arrow files, so rows can be read in any order. Images are
taken undecoded, so that the rules of :mod:`distillcli.sources.decode` apply. Splits other than train, validation and
test are left out, and so is a test part without labels (all -1), as benchmarks publish it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.decode import decode_bytes, read_file, show_path
from distillcli.sources.label_files import LABEL_COLUMNS
from distillcli.sources.listing import file_fingerprint, hold_out, index_labels
from distillcli.sources.overlap import MOST_READ, overlap_notes
from distillcli.sources.source import MinimumSize, Source, Split
from distillcli.sources.tree import PARTS, part_of, quoted_names


@dataclass(frozen=True)
class TableImages:
    """Images in one column of a table, decoded when read. ``rows``: N, their rows in the table."""

    table: Any  # datasets.Dataset
    column: str
    path: str
    split: str
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.split}[{row}]" for row in self.rows)

    def content(self, index: int) -> bytes:
        value = self.table[int(self.rows[index])][self.column]
        if isinstance(value, dict):  # an image as the package stores it: its bytes, or the path to them
            value = value["bytes"] or read_file(Path(value["path"] or "/"))
        if not isinstance(value, bytes):
            raise UserError(f"{self.name(index)}: no image in column {self.column!r}; remove the row")
        return value

    def size(self, index: int) -> int:
        return 0

    def read(self, index: int, minimum_size: MinimumSize | None = None) -> NDArray[np.uint8]:
        return decode_bytes(self.content(index), self.name(index), minimum_size)

    def name(self, index: int) -> str:
        return f"{show_path(self.path)}/{self.split}[{self.rows[index]}]"


def open_hf(config: DatasetConfig) -> Source:
    """The tables of ``config.path``. Raises UserError if the package, the data, or a column is missing or ambiguous."""
    path = config.path
    if not path:
        raise UserError("dataset=hf needs dataset.path=USER/NAME on the hub, or the path of a parquet file or a folder")
    tables = _parts(path, _load(path))
    image = _column(path, tables["train"], config.image_column, "dataset.image_column", _image_columns)
    label = _column(path, tables["train"], config.label_column, "dataset.label_column", _label_columns)
    values = {part: _values(path, part, table, label) for part, table in tables.items()}
    values = {part: found for part, found in values.items() if part == "train" or not (found == -1).all()}
    classes, labels = index_labels(show_path(path), values, _class_names(tables["train"], label))

    def rows_of(part: str, rows: NDArray[np.int64]) -> Split:
        return Split(TableImages(_undecoded(tables[part], image), image, path, part, rows), labels[part][rows])

    splits = {part: rows_of(part, np.arange(len(labels[part]))) for part in PARTS if part in labels}
    notes = _overlap(show_path(path), splits)
    if "val" not in splits and config.val_fraction > 0:
        kept, held = hold_out(labels["train"], classes, config.val_fraction, config.split_seed, show_path(path))
        sides = {"train": rows_of("train", kept), "val": rows_of("train", held)}
        notes += _overlap(show_path(path), sides, held_out=True)
        splits = {part: (splits | sides)[part] for part in PARTS if part in splits | sides}
    return Source.of(Path(path).name, classes, splits, file_fingerprint("hf", classes, splits), notes)


def _overlap(where: str, splits: dict[str, Split], held_out: bool = False) -> list[str]:
    """What ``overlap_notes`` says; nothing of large tables, which tell no sizes, so that all would have to be read."""
    if sum(len(split.labels) for split in splits.values()) > MOST_READ:
        return []
    return overlap_notes(where, splits, {part: [0] * len(split.labels) for part, split in splits.items()}, held_out)


def _load(path: str) -> Any:
    """A datasets.DatasetDict, or a single datasets.Dataset."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("dataset=hf needs the package datasets: pip install 'distillcli[hf]'") from error
    local = Path(path)
    try:
        if local.is_file():
            if local.suffix not in (".parquet", ".arrow"):
                raise UserError(
                    f"dataset.path={show_path(path)}: must end in .parquet or .arrow, or be a folder of them"
                )
            return datasets.load_dataset(local.suffix[1:], data_files={"train": str(local)})
        if any((local / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(str(local))
        return datasets.load_dataset(str(local) if local.is_dir() else path)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        detail = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise UserError(
            f"dataset.path={show_path(path)}: cannot be opened ({detail}); check the path or name"
        ) from error


def _parts(path: str, found: Any) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for name, table in found.items() if isinstance(found, dict) else [("train", found)]:
        part = part_of(name)
        if part in tables:
            raise UserError(f"dataset.path={show_path(path)}: two splits could each be the {part} part; remove one")
        if part is not None:
            tables[part] = table
    if "train" not in tables:
        raise UserError(f"dataset.path={show_path(path)}: has the splits {quoted_names(list(found))} but no train")
    return tables


def _column(path: str, table: Any, chosen: str | None, key: str, candidates: Any) -> str:
    if chosen is not None:
        if chosen not in table.column_names:
            raise UserError(f"{key}={chosen}: {show_path(path)} has the columns {quoted_names(table.column_names)}")
        return chosen
    found: list[str] = candidates(table)
    if len(found) != 1:
        several = (
            f"{quoted_names(found)} are possible" if found else f"not found among {quoted_names(table.column_names)}"
        )
        raise UserError(f"{show_path(path)}: {several}; choose with {key}=NAME")
    return found[0]


def _image_columns(table: Any) -> list[str]:
    import datasets

    def is_image(feature: Any) -> bool:
        if isinstance(feature, dict):  # an image in a file written without the package
            return set(feature) == {"bytes", "path"}
        return isinstance(feature, datasets.Image) or (
            isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
        )

    return [name for name, feature in table.features.items() if is_image(feature)]


def _label_columns(table: Any) -> list[str]:
    import datasets

    declared = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    return declared or [name for name in table.column_names if name.lower() in LABEL_COLUMNS]


def _class_names(table: Any, column: str) -> list[str] | None:
    import datasets

    feature = table.features[column]
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def _values(path: str, part: str, table: Any, column: str) -> NDArray[Any]:
    if column not in table.column_names:
        raise UserError(f"{show_path(path)}: the {part} part has no column {column!r}; add it or remove the part")
    found = list(table[column][:])
    if None in found:
        raise UserError(
            f"{show_path(path)}: row {found.index(None)} of the {part} part has no label, {column!r} is null"
            f" ({found.count(None):,} such rows); fill them in or remove them"
        )
    values = np.array(found)
    if values.dtype.kind not in "iuU":
        raise UserError(
            f"{show_path(path)}: column {column!r} is {values.dtype} in {part}; labels are whole numbers or text"
        )
    return values


def _undecoded(table: Any, column: str) -> Any:
    import datasets

    if isinstance(table.features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))
    return table.select_columns([column])

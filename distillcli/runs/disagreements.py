"""``disagreements/``: a few images that the student and another model answer differently, and what each says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distillcli.runs.folder import write_json
from distillcli.runs.reading import try_json

NAME = "disagreements"


@dataclass(frozen=True)
class Disagreement:
    """``image``: its picture in the folder. ``name``: what the data set calls it. The others are names of classes."""

    image: str
    name: str
    label: str
    student: str
    other: str


@dataclass(frozen=True)
class Disagreements:
    """``other``: "control" or "teacher"."""

    other: str
    shown: tuple[Disagreement, ...]


def write_disagreements(folder: Path, other: str, shown: Sequence[Disagreement]) -> None:
    """List the pictures of a run folder, which are there already."""
    write_json(folder / NAME / "list.json", {"other": other, "shown": [asdict(one) for one in shown]})


def read_disagreements(folder: Path) -> Disagreements | None:
    """None where there are none, or where the list cannot be read; a picture that is gone is left out."""
    content = try_json(folder / NAME / "list.json") or {}
    other, rows = content.get("other"), content.get("shown")
    if other not in ("control", "teacher") or not isinstance(rows, list):
        return None
    known = [one for row in rows if (one := _read(row)) is not None]
    shown = tuple(one for one in known if (folder / NAME / one.image).is_file())
    return Disagreements(other, shown) if shown else None


def _read(row: Any) -> Disagreement | None:
    names = Disagreement.__dataclass_fields__.keys()
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
        return None
    found = Disagreement(**{name: row[name] for name in names})
    return found if Path(found.image).name == found.image else None  # a picture elsewhere is none of the run

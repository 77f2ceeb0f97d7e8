"""The report of one run as a list of sections, which the terminal and ``report.md`` show each in its own way.

A new section is one more entry in ``report_sections``. Names, paths and errors stand in it as the user gave them: only
a renderer knows what they could do on a terminal or in a document, and makes them harmless.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distillcli.report.format import Grid
from distillcli.report.grids import closing_grid, lost_classes_grid, quality_grid, settings_grid
from distillcli.report.models import measured_models
from distillcli.report.sentences import (
    QUALITY_WORDS,
    best_sentence,
    exported_sentence,
    gap_sentence,
    heading,
    latency_sentence,
    status_sentence,
    time_sentence,
    verdict_sentence,
)
from distillcli.runs.reading import try_json
from distillcli.runs.result import Result

PLACE = "# the path from here; another one once the run has moved"


@dataclass(frozen=True)
class Sentence:
    words: str
    tone: Literal["plain", "strong", "alarming"] = "plain"


@dataclass(frozen=True)
class Table:
    """The columns from ``numbers_from`` on hold numbers."""

    grid: Grid
    numbers_from: int = 1


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Lines to be copied."""

    text: str
    language: Literal["sh", "python"]


@dataclass(frozen=True)
class Picture:
    """An image file in the run folder, and what it shows."""

    file: Path
    shows: str


Block = Sentence | Table | Bullets | Code | Picture


@dataclass(frozen=True)
class Section:
    """Blocks under a title; without one they continue the section before.

    ``brief``: whether the terminal shows them at the end of a run, too; it shows no titles.
    """

    title: str
    blocks: tuple[Block, ...]
    brief: bool = False


def report_sections(result: Result, folder: Path) -> list[Section]:
    """The sections of a run's report in their order, without those that have nothing to show."""
    command = Code(result.command or "", "sh")
    everything = [
        _section("", Sentence(heading(result), "strong"), Sentence(status_sentence(result), "alarming"), brief=True),
        _section("", command),
        _section(
            "Result",
            Table(closing_grid(result)),
            Sentence(verdict_sentence(result), "strong"),
            Sentence(gap_sentence(result)),
            Sentence(exported_sentence(result)),
            Sentence(best_sentence(result)),
            Sentence(latency_sentence(measured_models(result))),
            Sentence(time_sentence(result)),
            brief=True,
        ),
        _section("Calibration and fidelity", *_quality(result)),
        _section(_lost_title(result), *_lost_classes(result)),
        _section("", Picture(folder / "curves.png", "Accuracy on val and training loss per epoch")),
        _section("Warnings", Bullets(result.warnings)),
        _section("Use the student", *_loading(folder), brief=True),
        _section("", *_measuring(folder)),
        _section("Settings", Table(settings_grid(result), numbers_from=2)),
        _section("Run it again", command),
    ]
    return [section for section in everything if section.blocks]


def _section(title: str, *blocks: Block, brief: bool = False) -> Section:
    return Section(title, tuple(block for block in blocks if _shows_something(block)), brief)


def _shows_something(block: Block) -> bool:
    match block:
        case Table(grid):
            return len(grid) > 1
        case Picture(file):
            return file.is_file()
        case Sentence(content) | Bullets(content) | Code(content):
            return bool(content)


def _quality(result: Result) -> list[Block]:
    table = Table(quality_grid(result))
    return [table, Sentence(QUALITY_WORDS)] if _shows_something(table) else []


def _lost_title(result: Result) -> str:
    other = "its teacher" if result.baseline is None else "the same student trained without a teacher"
    return f"Classes in which the student falls behind {other}"


def _lost_classes(result: Result) -> list[Block]:
    return [] if result.student is None else [Table(lost_classes_grid(result))]


def _loading(folder: Path) -> list[Block]:
    if not (folder / "student").is_dir():
        return []
    lines = ["import timm", *own_imports(folder), PLACE, f"student = {load_expression(folder)}"]
    return [Sentence("Load the student:"), Code("\n".join(lines), "python")]


def _measuring(folder: Path) -> list[Block]:
    if not (folder / "student").is_dir():
        return []
    return [Sentence("Measure it again:"), Code(f"distill eval checkpoint={shlex.quote(str(folder))}", "sh")]


def load_expression(folder: Path) -> str:
    """The Python expression that loads the student of a run folder; a valid literal for any path."""
    return f"timm.create_model({'local-dir:' + (folder / 'student').as_posix()!r}, pretrained=True)"


# What the names of models begin with that timm does not have, and what makes timm know them.
_OWN_MODELS = {"reused_head": "distillcli.reused_head", "cifar_": "distillcli.models.zoo"}


def own_imports(folder: Path) -> list[str]:
    """What has to be imported beside timm before it knows the exported student of a run folder."""
    exported = try_json(folder / "student" / "config.json")
    name = "" if exported is None else str(exported.get("architecture"))
    rooms = [room for start, room in _OWN_MODELS.items() if name.startswith(start)]
    return [f"import {room}  # timm does not know this model without it" for room in rooms]

"""What a report is made of. The terminal, ``report.md`` and ``report.html`` each show these blocks in their own way.

Names, paths and errors stand in them as the user gave them: only a renderer knows what they could do on a terminal or
in a document, and makes them harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distillcli.report.format import Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sentence:
    words: str
    tone: Literal["plain", "strong", "alarming"] = "plain"


@dataclass(frozen=True)
class Interval:
    """A difference in points with its interval: what it means, and the numbers in words, beginning after a colon."""

    headline: str
    words: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Table:
    """The columns from ``numbers_from`` on hold numbers. ``spare``: those that a narrow terminal leaves out."""

    grid: Grid
    numbers_from: int = 1
    spare: tuple[str, ...] = ()


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
    """What is drawn, and what it shows.

    ``figures``: drawn when called, a figure for each plot. ``file``: an image of them beside the report, for readers
    that draw nothing; None where the numbers in the text must do.
    """

    shows: str
    figures: Callable[[], Sequence[Figure]]
    file: Path | None = None


@dataclass(frozen=True)
class Gallery:
    """Images that stand in files, each with its captions in words, under the names of ``captions``."""

    captions: tuple[str, ...]
    images: tuple[tuple[Path, tuple[str, ...]], ...]


Block = Sentence | Interval | Table | Bullets | Code | Picture | Gallery


@dataclass(frozen=True)
class Section:
    """Blocks under a title; without one they continue the section before.

    ``brief``: whether the terminal shows them at the end of a run, too; it shows no titles. ``folded``: whether a page
    shows no more than the title at first.
    """

    title: str
    blocks: tuple[Block, ...]
    brief: bool = False
    folded: bool = False


def section(title: str, *blocks: Block | None, brief: bool = False, folded: bool = False) -> Section:
    """A section of those blocks that show something."""
    shown = tuple(block for block in blocks if block is not None and _shows_something(block))
    return Section(title, shown, brief, folded)


def _shows_something(block: Block) -> bool:
    match block:
        case Table(grid):
            return len(grid) > 1
        case Picture(file=file):
            return file is None or file.is_file()
        case Gallery(images=images):
            return bool(images)
        case Interval():
            return True
        case Sentence(content) | Bullets(content) | Code(content):
            return bool(content)


def known(sections: Sequence[Section]) -> list[Section]:
    """The sections that have something to show."""
    return [one for one in sections if one.blocks]

"""``report.md``: what a page says, without its pictures, for readers who know nothing else about it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from distillcli.report.blocks import Block, Bullets, Code, Gallery, Interval, Picture, Section, Sentence, Table
from distillcli.report.format import Grid, clean


def escaped(words: object) -> str:
    """User text as Markdown that shows exactly this text: no emphasis, links, images, HTML or table cells.

    An underscore within a word is left alone, because it means nothing there and model names are full of them.
    """
    plain = clean(words).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~$#]|(?<!\w)_|_(?!\w))", r"\\\1", plain)


def fenced(words: str, language: str = "") -> str:
    """A code block; its fence is longer than any run of backticks inside, so that the text cannot end it."""
    plain = "\n".join(clean(line) for line in words.split("\n"))
    longest = max((len(run) for run in re.findall(r"`+", plain)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{plain}\n{fence}"


def markdown_table(grid: Grid, numbers_from: int = 1) -> str:
    """A grid as a Markdown table; columns from ``numbers_from`` on are right-aligned."""
    rows = [[escaped(cell) for cell in row] for row in grid]
    ruler = [":--" if index < numbers_from else "--:" for index in range(len(grid[0]))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ruler, *rows[1:]])


def markdown_block(block: Block) -> str:
    match block:
        case Sentence(words, tone):
            return escaped(words) if tone == "plain" else f"**{escaped(words)}**"
        case Table(grid, numbers_from):
            return markdown_table(grid, numbers_from)
        case Bullets(items):
            return "\n".join(f"- {escaped(item)}" for item in items)
        case Code(text, language):
            return fenced(text, language)
        case Interval(headline, words):
            return f"**{escaped(headline)}: {escaped(words)}**"
        case Picture(shows, file=file):
            return "" if file is None else f"![{escaped(shows)}]({file.name})"
        case Gallery(captions, images):
            return markdown_table([list(captions), *(list(words) for _, words in images)], len(captions))


def markdown(title: str, sections: Sequence[Section]) -> str:
    blocks = [f"# {escaped(title)}"]
    for section in sections:
        blocks += [f"## {escaped(section.title)}"] if section.title else []
        blocks += [words for block in section.blocks if (words := markdown_block(block))]
    return "\n\n".join(blocks) + "\n"

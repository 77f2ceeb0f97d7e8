"""``report.md``: one run, for readers who know nothing else about it."""

from __future__ import annotations

import re
from pathlib import Path

from distillcli.report.format import Grid, clean
from distillcli.report.sections import Block, Bullets, Code, Picture, Sentence, Table, report_sections
from distillcli.runs.folder import write_text
from distillcli.runs.result import Result, read_result


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
        case Picture(file, shows):
            return f"![{escaped(shows)}]({file.name})"


def write_report(folder: Path) -> Path:
    """Write ``report.md`` of a run folder; ``curves.png`` is embedded if it has been drawn before.

    A run without a readable ``result.json`` gives a report that says it is incomplete.
    """
    result = read_result(folder) or Result()
    blocks = [f"# {escaped(result.name or folder.name)}"]
    for section in report_sections(result, folder):
        blocks += [f"## {section.title}"] if section.title else []
        blocks += [markdown_block(block) for block in section.blocks]
    path = folder / "report.md"
    write_text(path, "\n\n".join(blocks) + "\n")
    return path

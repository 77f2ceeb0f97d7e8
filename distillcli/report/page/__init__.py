"""``report.html``: one page that needs nothing else, neither network nor scripts, on any screen and on paper.

``page.html.j2`` shows each kind of block; ``page.css`` is its style.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillcli import __version__
from distillcli.report.blocks import Block, Bullets, Code, Gallery, Interval, Picture, Section, Sentence, Table
from distillcli.report.figures import svg
from distillcli.report.format import clean

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

HERE = Path(__file__).parent
MOST_IMAGE_BYTES = 100_000  # of one image in a page; larger ones are left out


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page. Every text is escaped by Jinja2; only what matplotlib draws is taken as it is."""
    from markupsafe import Markup

    shown = [_view(section, f"p{number}") for number, section in enumerate(sections)]
    style = Markup((HERE / "page.css").read_text("utf-8"))
    return _template().render(title=clean(title), sections=shown, style=style, version=__version__)


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")


def _view(section: Section, prefix: str) -> dict[str, Any]:
    blocks = [_block(block, f"{prefix}-{number}") for number, block in enumerate(section.blocks)]
    return {"title": clean(section.title), "folded": section.folded, "blocks": blocks}


def _block(block: Block, prefix: str) -> dict[str, Any]:
    """What the template shows of a block. ``prefix``: for ids."""
    from markupsafe import Markup

    match block:
        case Sentence(words, tone):
            return {"kind": "sentence", "words": clean(words), "tone": tone}
        case Interval(headline, words):
            return {"kind": "interval", "headline": clean(headline), "words": clean(words), **_bar(block)}
        case Table(grid, numbers_from):
            header = [[_breakable(clean(line)) for line in cell.split("\n")] for cell in grid[0]]
            rows = [[clean(cell) for cell in row] for row in grid[1:]]
            return {"kind": "table", "header": header, "rows": rows, "numbers_from": numbers_from}
        case Bullets(items):
            return {"kind": "bullets", "items": [clean(item) for item in items]}
        case Code(text):
            return {"kind": "code", "text": "\n".join(clean(line) for line in text.split("\n"))}
        case Picture(shows, figures):
            drawn = [Markup(svg(figure, f"{prefix}-{number}")) for number, figure in enumerate(figures())]
            return {"kind": "picture", "shows": clean(shows), "drawings": drawn}
        case Gallery(captions, images):
            return {"kind": "gallery", "images": _images(captions, images)}


def _breakable(words: str) -> Markup:
    """A dotted key may be broken after its dots, because its values are much shorter."""
    from markupsafe import Markup, escape

    return escape(words).replace(".", Markup(".<wbr>"))


def _bar(found: Interval) -> dict[str, Any]:
    """Where the ends of the bar, its middle and zero lie, in percent of a scale that holds them all."""
    ends = (found.low, found.high, found.difference, 0.0)
    margin = 0.08 * (max(ends) - min(ends)) or 1.0
    start, width = min(ends) - margin, max(ends) - min(ends) + 2 * margin
    low, high, middle, zero = (f"{100 * (value - start) / width:.2f}" for value in ends)
    mood = "good" if found.low > 0 else "bad" if found.high < 0 else "open"
    labels = {"difference": f"{found.difference:+.1f}", "from": f"{found.low:+.1f}", "to": f"{found.high:+.1f}"}
    return {"low": low, "high": high, "middle": middle, "zero": zero, "mood": mood, **labels}


def _images(captions: Sequence[str], images: Sequence[tuple[Path, tuple[str, ...]]]) -> list[dict[str, Any]]:
    shown = []
    for file, words in images:
        content = file.read_bytes()
        if len(content) <= MOST_IMAGE_BYTES:
            lines = [(clean(caption), clean(line)) for caption, line in zip(captions, words, strict=True)]
            data = base64.b64encode(content).decode("ascii")
            shown.append({"data": f"data:image/png;base64,{data}", "lines": lines})
    return shown

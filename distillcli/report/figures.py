"""What all pictures share: colours, figures, and how they become a PNG or a part of a page.

matplotlib is used through its objects and never through pyplot, whose state is global and which may ask for a display.
It takes a good part of a second to import and is therefore imported where something is drawn.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distillcli.report.format import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct with any colour vision, and by brightness in greyscale.
COLOURS = {"student": "#0072B2", "baseline": "#D55E00", "teacher": "#000000"}
TERM_COLOURS = ["#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
GRID_COLOUR = "#dddddd"
ON_BRIGHT = "#111111"  # letters on a bright field, which stay dark on a dark page
DPI = 120
PLOT_SIZE = (5.4, 3.5)  # inches of one plot on a page, which a phone shows without shrinking the letters

# The custom properties of page.css that stand for these colours, so that a dark page can choose others.
_PROPERTIES = {
    "#000000": "currentColor",
    "#0072b2": "var(--student)",
    "#d55e00": "var(--control)",
    "#dddddd": "var(--rule)",
    "#666666": "var(--quiet)",
    "#e69f00": "var(--term-1)",
    "#009e73": "var(--term-2)",
    "#cc79a7": "var(--term-3)",
    "#56b4e9": "var(--term-4)",
    "#f0e442": "var(--term-6)",
}


def plot_text(words: str) -> str:
    """User text for matplotlib, which takes text between dollar signs for mathematics."""
    return clean(words).replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot() -> tuple[Figure, Axes]:
    """A figure with one plot, as a page shows it."""
    figure = new_figure(*PLOT_SIZE)
    axes = figure.subplots()
    tidy(axes)
    return figure, axes


def tidy(axes: Axes) -> None:
    """Light grid lines behind the data, no box around it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=GRID_COLOUR, linewidth=0.8)
    axes.set_axisbelow(True)


@contextmanager
def _missing_letters_are_boxes() -> Iterator[None]:
    """A letter that the font lacks is drawn as a box, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with _missing_letters_are_boxes():
        canvas.print_png(path)  # type: ignore[no-untyped-call]  # savefig lays everything out and draws it twice
    return path


def svg(figure: Figure, prefix: str) -> str:
    """The figure as an ``svg`` element within a page: letters as text, colours as those of the page.

    ``prefix``: makes its ids different from those of the other figures.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    content = io.StringIO()
    for background in (figure.patch, *(axes.patch for axes in figure.axes)):
        background.set(facecolor="none", edgecolor="none")
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with _missing_letters_are_boxes(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "distillcli"}):
        # Not savefig, which lays everything out and draws it twice.
        FigureCanvasSVG(figure).print_svg(content, metadata=nothing)  # type: ignore[no-untyped-call]
    words = content.getvalue()
    words = words[words.index("<svg") :]
    words = re.sub(r"\s*<metadata>.*?</metadata>", "", words, flags=re.DOTALL)
    view = re.findall(r'viewBox\W"[^"]+"', words)[0]
    words = re.sub("<svg [^>]*>", f'<svg {view} aria-hidden="true">', words, count=1)
    words = re.sub(r'\bid\W"|href\W"#|url\(#', lambda found: f"{found[0]}{prefix}-", words)
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _PROPERTIES.get(found[0], found[0]), words)

"""Gains and losses by class, as bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from distillcli.report.figures import COLOURS, plot, plot_text
from distillcli.report.sentences import CLASS_LEVEL
from distillcli.runs.result import ClassVerdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 14  # more names do not fit below the bars
LONGEST_NAME = 14


def class_figures(by_class: Mapping[str, ClassVerdict]) -> list[Figure]:
    """One plot: student less control, from the class that lost most to the one that gained most."""
    figure, axes = plot()
    rows = sorted(by_class.items(), key=lambda row: (row[1].difference or 0, row[0]))
    heights = [one.difference or 0 for _, one in rows]
    colours = [COLOURS["baseline" if height < 0 else "student"] for height in heights]
    bars = axes.bar(range(len(rows)), heights, color=colours, width=0.8 if len(rows) <= 60 else 1.0)
    for bar, (_, one) in zip(bars, rows, strict=True):
        if one.adjusted is None or one.adjusted >= CLASS_LEVEL:
            bar.set_alpha(0.45)
    axes.axhline(0, color="#000000", linewidth=0.8)
    axes.grid(False, axis="x")
    axes.set_title("Student less control in each class (full colour: beyond chance)")
    axes.set_ylabel("points")
    if len(rows) <= NAMED:
        names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name, _ in rows]
        turned = sum(map(len, names)) > 50
        axes.set_xticks(range(len(rows)), [plot_text(name) for name in names], rotation=90 if turned else 0)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(rows)} classes")
    return [figure]

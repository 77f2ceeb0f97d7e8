"""``sweep.png``: accuracy over the swept value, where that is a number, or over the values of two keys."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distillcli.report.figures import COLOURS, ON_BRIGHT, new_figure, plot_text, tidy
from distillcli.report.format import DASH, fixed
from distillcli.report.models import MODELS
from distillcli.report.sweep_jobs import SweepJob, differs, value_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _numeric(words: str) -> float | None:
    try:
        value = float(words)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def drawn_keys(jobs: Sequence[SweepJob], keys: Sequence[str]) -> list[str]:
    """The keys over which a picture is drawn: one with numbers, or two of any kind; empty where there is none.

    The seed counts only if nothing else varies.
    """
    candidates = [key for key in keys if key != "seed"] or list(keys)
    shown = [job for job in jobs if job.top1() is not None]
    if not shown or len(candidates) not in (1, 2):
        return []
    numeric = all(_numeric(value_of(job, candidates[0])) is not None for job in shown)
    return candidates if numeric or len(candidates) == 2 else []


def sweep_figure(jobs: Sequence[SweepJob], keys: Sequence[str]) -> Figure:
    """Top-1 over ``keys``, of which there are one or two."""
    return _line(jobs, keys[0]) if len(keys) == 1 else _map(jobs, keys[0], keys[1])


def _map(jobs: Sequence[SweepJob], down: str, along: str) -> Figure:
    """The student's top-1 for each pair of values, the mean over seeds; a pair without a result stays white."""
    found: dict[tuple[str, str], list[float]] = {}
    for job in jobs:
        top1 = job.top1()
        if top1 is not None:
            found.setdefault((value_of(job, down), value_of(job, along)), []).append(top1)
    rows, columns = (sorted({pair[place] for pair in found}, key=_in_order) for place in (0, 1))
    means = {pair: statistics.fmean(values) for pair, values in found.items()}
    cells = [[means.get((row, column), math.nan) for column in columns] for row in rows]
    figure = new_figure(max(6.4, 2 + 0.9 * len(columns)), max(4.2, 2 + 0.5 * len(rows)))
    axes = figure.subplots()
    image = axes.pcolormesh(cells, cmap="cividis", edgecolors="white", linewidth=2)  # for any colour vision
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    middle = (min(means.values()) + max(means.values())) / 2
    for (row, column), mean in means.items():
        place = columns.index(column) + 0.5, rows.index(row) + 0.5
        colour = "white" if mean <= middle else ON_BRIGHT
        axes.text(*place, fixed(mean), ha="center", va="center", color=colour)
    for axis, values in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_ticks([place + 0.5 for place in range(len(values))], [plot_text(value or DASH) for value in values])
    axes.set_xlabel(plot_text(along))
    axes.set_ylabel(plot_text(down))
    figure.colorbar(image, label="top-1 of the student, %").outline.set_visible(False)
    return figure


def _in_order(value: str) -> tuple[float, str]:
    """Numbers by their size, then words."""
    number = _numeric(value)
    return (math.inf if number is None else number), value


def _line(jobs: Sequence[SweepJob], key: str) -> Figure:
    """Top-1 over the swept value: a point per job, a line through the means, control and teacher beside it."""
    from matplotlib.ticker import NullLocator

    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    tidy(axes)
    styles = {"teacher": (":", None), "student": ("-", "o"), "baseline": ("--", "s")}
    for name in MODELS:
        found: dict[float, list[float]] = {}
        for job in jobs:
            value, top1 = _numeric(value_of(job, key)), job.top1(name)
            if value is not None and top1 is not None:
                found.setdefault(value, []).append(top1)
        if not found:
            continue
        line, marker = styles[name]
        values = sorted(found)
        if name != "student" and not differs(jobs, name):
            level = found[values[0]][0]
            label = f"{MODELS[name]} {fixed(level)} %"
            axes.axhline(level, color=COLOURS[name], linestyle=line, linewidth=1.5, label=label)
            continue
        means = [statistics.fmean(found[value]) for value in values]
        several = any(len(found[value]) > 1 for value in values)
        label = MODELS[name] + (", mean" if several else "")
        axes.plot(values, means, color=COLOURS[name], linestyle=line, linewidth=2, marker=marker, label=label)
        if several:
            pairs = [(value, top1) for value in values for top1 in found[value]]
            axes.plot(*zip(*pairs, strict=True), "x", color=COLOURS[name], alpha=0.6, markersize=6, linestyle="none")
    measured = [job for job in jobs if job.top1() is not None]
    swept = sorted({value for job in measured if (value := _numeric(value_of(job, key))) is not None})
    if swept[0] > 0 and swept[-1] / swept[0] >= 8:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if len(swept) <= 12:
        axes.set_xticks(swept, [f"{value:g}" for value in swept])
    axes.set_xlabel(plot_text(key))
    axes.set_ylabel("top-1, %")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    return figure

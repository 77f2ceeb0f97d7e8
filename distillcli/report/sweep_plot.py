"""``sweep.png``: accuracy over the swept value, where that is a number."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from distillcli.report.curves import COLOURS, DPI, plot_text, save, tidy
from distillcli.report.format import fixed
from distillcli.report.models import MODELS
from distillcli.report.sweep_jobs import SweepJob, differs, value_of


def _numeric(words: str) -> float | None:
    try:
        value = float(words)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def swept_number(jobs: Sequence[SweepJob], keys: Sequence[str]) -> str | None:
    """The only varying key besides the seed (or the seed, if only that varies), if all its values are numbers."""
    candidates = [key for key in keys if key != "seed"] or list(keys)
    shown = [job for job in jobs if job.top1() is not None]
    if len(candidates) != 1 or not shown:
        return None
    numeric = all(_numeric(value_of(job, candidates[0])) is not None for job in shown)
    return candidates[0] if numeric else None


def draw_sweep(jobs: Sequence[SweepJob], key: str, path: Path) -> None:
    """Top-1 over the swept value: a point per job, a line through the means, control and teacher beside it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(7.5, 4.8), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
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
    save(figure, path)

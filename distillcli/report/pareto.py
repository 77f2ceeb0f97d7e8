"""Accuracy against cost: which models no other one beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distillcli.report.figures import COLOURS, plot
from distillcli.report.models import MODELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """``kind``: a key of MODELS. ``name``: short, written beside it. ``top1``: percent. ``costs``: by their names."""

    kind: str
    name: str
    top1: float
    costs: dict[str, float | None]


def front(points: Sequence[Point], cost: str) -> list[Point]:
    """The points that none beats in accuracy without costing more, cheapest first."""
    best: list[Point] = []
    known = [point for point in points if point.costs[cost] is not None]
    for point in sorted(known, key=lambda one: (one.costs[cost] or 0, -one.top1)):
        if not best or point.top1 > best[-1].top1:
            best.append(point)
    return best


def differing(points: Sequence[Point]) -> list[str]:
    """The costs in which models differ."""
    costs = points[0].costs if points else ()
    return [cost for cost in costs if len({point.costs[cost] for point in points} - {None}) > 1]


def pareto_figures(points: Sequence[Point]) -> list[Figure]:
    """One plot for each cost in which they differ."""
    return [_figure(points, cost) for cost in differing(points)]


def _figure(points: Sequence[Point], cost: str) -> Figure:
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = plot()
    best = front(points, cost)
    along = [point.costs[cost] or 0 for point in best]
    axes.step(along, [point.top1 for point in best], where="post", color="#666666", linewidth=1)
    for kind, marker in (("teacher", "^"), ("student", "o"), ("baseline", "s")):
        shown = [point for point in points if point.kind == kind and point.costs[cost] is not None]
        if not shown:
            continue
        values = [point.costs[cost] or 0 for point in shown]
        heights = [point.top1 for point in shown]
        axes.scatter(values, heights, s=34, c=COLOURS[kind], marker=marker, label=MODELS[kind], alpha=0.8, zorder=3)
        for point, value in zip(shown, values, strict=True):
            if point in best:
                axes.annotate(point.name, (value, point.top1), xytext=(6, 5), textcoords="offset points")
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.12)
    axes.set_title(f"Top-1 against {cost}")
    axes.set_xlabel(cost)
    axes.set_ylabel("top-1, %")
    axes.legend(frameon=False, loc="lower right")
    return figure

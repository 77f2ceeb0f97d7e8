"""Reliability diagrams: how often a model is right, over how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distillcli.report.figures import COLOURS, plot
from distillcli.report.models import MODELS, model_of
from distillcli.runs.predictions import Predictions, read_predictions
from distillcli.runs.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10
# Fewer images say nothing of how often a model is right.
FEWEST = 3


def reliability_of(result: Result, folder: Path) -> dict[str, NDArray[np.float64]]:
    """``reliability`` of each of MODELS whose predictions are there."""
    folders = {"student": folder}
    for name in ("teacher", "baseline"):
        model = model_of(result, name)
        if model is not None and model.run:
            folders[name] = Path(model.run)
    found = {name: read_predictions(folders[name]) for name in MODELS if name in folders}
    bins = {name: reliability(one) for name, one in found.items() if one is not None}
    return {name: rows for name, rows in bins.items() if len(rows)}


def reliability(predictions: Predictions) -> NDArray[np.float64]:
    """A row for each of ten equal bins of confidence that has images enough: mean confidence, share right, images.

    No row where confidences were not kept.
    """
    known = predictions.labels >= 0
    if predictions.confidence is None:
        return np.zeros((0, 3))
    sure, right = predictions.confidence[known].astype(float), predictions.hits
    place = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    rows = [(sure[place == k].mean(), right[place == k].mean(), (place == k).sum()) for k in np.unique(place)]
    return np.array([row for row in rows if row[2] >= FEWEST]).reshape(-1, 3)


def reliability_figures(found: Mapping[str, NDArray[np.float64]]) -> list[Figure]:
    """One plot of all models. Points below the diagonal are of a model that is too sure of itself."""
    figure, axes = plot()
    axes.plot([0, 1], [0, 1], color="#666666", linewidth=1, linestyle="-", label="as often as it is sure")
    most = max(rows[:, 2].max() for rows in found.values())
    styles = {"teacher": (":", "^"), "student": ("-", "o"), "baseline": ("--", "s")}
    for name, rows in found.items():
        line, marker = styles[name]
        axes.plot(rows[:, 0], rows[:, 1], color=COLOURS[name], linestyle=line, linewidth=1.5)
        axes.scatter(
            rows[:, 0], rows[:, 1], s=12 + 60 * rows[:, 2] / most, c=COLOURS[name], marker=marker, label=MODELS[name]
        )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_title("Reliability (the larger, the more images)")
    axes.set_xlabel("probability of the answer")
    axes.set_ylabel("share of answers that are right")
    axes.legend(frameon=False, loc="upper left")
    return [figure]

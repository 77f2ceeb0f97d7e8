"""``curves.png``: the student's accuracy and loss per epoch, beside its control and its teacher.

matplotlib is used through its objects and never through pyplot, whose state is global and which may ask for a display.
It takes a good part of a second to import and is therefore imported where something is drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillcli.report.format import clean, fixed
from distillcli.report.models import MODELS, trained_label
from distillcli.report.sentences import is_without_validation
from distillcli.runs.folder import read_metrics
from distillcli.runs.result import Measured, Result, finite, read_result, top1_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct with any colour vision, and by brightness in greyscale.
COLOURS = {"student": "#0072B2", "baseline": "#D55E00", "teacher": "#000000"}
TERM_COLOURS = ["#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
DPI = 120


def plot_text(words: str) -> str:
    """User text for matplotlib, which takes text between dollar signs for mathematics."""
    return clean(words).replace("$", r"\$")


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG. A letter that the font lacks is drawn as a box, without a warning."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        # The bytes of savefig, which lays everything out and draws it twice.
        FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]
    return path


def tidy(axes: Axes) -> None:
    """Light grid lines behind the data, no box around it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def points(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one metric, skipping rows without it."""
    pairs = [(finite(row.get("epoch")), finite(row.get(key))) for row in rows]
    known = [(epoch, value) for epoch, value in pairs if epoch is not None and value is not None]
    return [epoch for epoch, _ in known], [value for _, value in known]


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    rows = [row for row in read_metrics(folder) if row.get("kind") == "eval"]
    on_val = [row for row in rows if row.get("split") == "val"]
    return on_val or rows


def _other_run(model: Measured | None) -> list[dict[str, Any]]:
    """The evaluations in the run folder of the control or the teacher; none if the folder is gone."""
    return _evaluations(Path(model.run)) if model is not None and model.run else []


def _draw_accuracy(axes: Axes, folder: Path, result: Result, marker: str | None) -> None:
    axes.set_title("Top-1 accuracy on val")
    axes.set_ylabel("%")
    if is_without_validation(result):
        return
    if points(_evaluations(folder), "kl_to_teacher")[0]:  # measured only where there are no labels
        _draw_divergence(axes, folder, marker)
        return
    for name, rows in {"baseline": _other_run(result.baseline), "student": _evaluations(folder)}.items():
        epochs, top1 = points(rows, "top1")
        if epochs:
            label = trained_label(result) if name == "student" else MODELS[name]
            axes.plot(
                epochs,
                top1,
                color=COLOURS[name],
                linewidth=2,
                marker=marker,
                markersize=4,
                linestyle="--" if name == "baseline" else "-",
                label=f"{label} {fixed(top1[-1])} %",
            )
            if name == "student":
                best = result.best.epoch if result.best else None
                if best is not None and best in epochs:
                    at = epochs.index(best)
                    circle = {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.5}
                    axes.plot([best], [top1[at]], "o", color=COLOURS[name], label=f"best epoch {best}", **circle)  # type: ignore[arg-type]
    _, teacher = points(_other_run(result.teacher), "top1")
    level, where = (teacher[-1], None) if teacher else (top1_of(result.teacher), result.evaluated_on)
    if level is not None:
        label = f"teacher {fixed(level)} %" + (f" (on {where})" if where and where != "val" else "")
        axes.axhline(level, color=COLOURS["teacher"], linewidth=1.5, linestyle=":", label=label)


def _draw_divergence(axes: Axes, folder: Path, marker: str | None) -> None:
    epochs, values = points(_evaluations(folder), "kl_to_teacher")
    label = f"{MODELS['student']} {fixed(values[-1], 3)}"
    axes.plot(epochs, values, color=COLOURS["student"], linewidth=2, marker=marker, markersize=4, label=label)
    axes.set_title("KL divergence to the teacher on val, which has no labels")
    axes.set_ylabel("nats")


def _draw_loss(axes: Axes, folder: Path, marker: str | None) -> None:
    rows = [row for row in read_metrics(folder) if row.get("kind") == "train"]
    terms = list(dict.fromkeys(key for row in rows for key in row if key.startswith("loss/")))
    drawn: list[float] = []
    for index, key in enumerate(["loss", *terms]):
        epochs, values = points(rows, key)
        if not epochs:
            continue
        total = key == "loss"
        drawn += values
        axes.plot(
            epochs,
            values,
            color=COLOURS["teacher"] if total else TERM_COLOURS[(index - 1) % len(TERM_COLOURS)],
            linewidth=2.5 if total else 1.5,
            linestyle="-" if total else ["--", "-.", ":"][(index - 1) % 3],
            marker=marker,
            markersize=4,
            label="total" if total else plot_text(key.removeprefix("loss/")),
        )
    if drawn and min(drawn) > 0 and max(drawn) / min(drawn) > 50:
        axes.set_yscale("log")
    axes.set_title("Training loss and its terms")


def draw_curves(folder: Path) -> Path:
    """Draw ``curves.png`` from ``metrics.jsonl``: validation accuracy per epoch, and the loss with its terms.

    The curves of control and teacher come from the run folders named in ``result.json``. Without metrics, or without
    validation data, the picture says so in the place of the curves.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    result = read_result(folder) or Result()
    longest = max(len(_evaluations(folder)), len(_other_run(result.baseline)))
    marker = "o" if longest <= 30 else None  # a single epoch is a point, which a line alone does not show
    figure = Figure(figsize=(11, 4.2), dpi=DPI, layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    _draw_accuracy(accuracy, folder, result, marker)
    _draw_loss(loss, folder, marker)
    for axes in (accuracy, loss):
        tidy(axes)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if longest <= 1:
            axes.set_xlim(0.5, 1.5)
        if axes.lines:
            axes.legend(frameon=False)
        else:
            why = "no validation data" if axes is accuracy and is_without_validation(result) else "no finished epoch"
            axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", color="#666666")
    name = result.name
    if name:
        figure.suptitle(plot_text(name if len(name) <= 80 else name[:79] + "…"))
    return save(figure, folder / "curves.png")

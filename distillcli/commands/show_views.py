"""``distill show views``: a contact sheet of what teacher and student are shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distillcli.config.compose import compose
from distillcli.config.schema import TrainConfig
from distillcli.data.open import open_source
from distillcli.report.console import say

if TYPE_CHECKING:
    from distillcli.types import Batch

FILE = Path("views.png")
IMAGES, VIEWS = 6, 8


def run(overrides: list[str]) -> None:
    """Write ``views.png``: in each row an image, first as in evaluation, then in its first views.

    ``overrides``: as of ``distill train``. Raises UserError for a config or data that could not be trained on.
    """
    config = compose("train", overrides)
    assert isinstance(config, TrainConfig)
    source = open_source(config.dataset)

    import numpy as np

    from distillcli.config.schema import AugmentConfig
    from distillcli.data.epochs import side
    from distillcli.data.loader import Rows, open_data
    from distillcli.runtime import start

    with start(config.trainer) as runtime:
        train = open_data(source, config.dataset, config.trainer.workers, runtime).train
        images = np.unique(np.linspace(0, len(train) - 1, IMAGES).astype(np.int64))
        plain = train.views(AugmentConfig(name="none"), config.seed, [Rows(np.zeros_like(images), images)])
        sheet = {"evaluation": next(plain)}
        for view in range(1, VIEWS + 1):
            epoch = (view - 1) // train.views_per_pass(config.augment) + 1
            size = side(config.dataset.image_size, config.trainer.progressive, epoch, config.trainer.epochs)
            rows = Rows(np.full_like(images, view), images)
            sheet[f"view {view}"] = next(train.views(config.augment, config.seed, [rows], size))
    draw_sheet(sheet, source.classes, FILE)
    recipe = config.augment.name
    say(f"{FILE}: {len(images)} images of {source.name} in {VIEWS} views of augment={recipe}, seed {config.seed}")


def draw_sheet(columns: dict[str, Batch], classes: Sequence[str], path: Path) -> None:
    """A PNG of the batches, one in each column under its name; above each image its label or shares of labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from distillcli.report.curves import plot_text, save

    count = max(len(batch.images) for batch in columns.values())
    figure = Figure(figsize=(1.5 * len(columns), 1.75 * count + 0.3), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    cells = figure.subplots(count, len(columns), squeeze=False)
    for column, (name, batch) in enumerate(columns.items()):
        for row in range(count):
            axes = cells[row, column]
            axes.set_axis_off()
            axes.imshow(batch.images[row].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            words = plot_text(label_words(batch, row, classes))
            axes.set_title(f"{name}\n{words}" if row == 0 else words, fontsize=8)
    save(figure, path)


def label_words(batch: Batch, row: int, classes: Sequence[str]) -> str:
    """A class name; or, where images are mixed, each class with its share of the label, the largest first."""
    target = batch.targets[row]
    if target.ndim == 0:
        return classes[int(target)] if target >= 0 else "no label"
    shares = sorted(((share, number) for number, share in enumerate(target.tolist()) if share >= 0.005), reverse=True)
    return " + ".join(f"{share:.2f} {classes[number]}" for share, number in shares) or "no label"

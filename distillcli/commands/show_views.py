"""``distill show views``: a contact sheet of the views that teacher and student see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillcli.config.schema import AugmentConfig, TrainConfig
from distillcli.config.unread import compose_for_user
from distillcli.report.console import say
from distillcli.sources.open import open_source
from distillcli.views.epochs import view_size

# Images H x W x C in [0, 1], each with its caption.
Column = list[tuple[NDArray[np.float32], str]]

FILE = Path("views.png")
IMAGES, VIEWS = 6, 8


def run(overrides: list[str]) -> None:
    """Write ``views.png``: one image per row, first as in evaluation, then in its first views.

    ``overrides``: as for ``distill train``. Raises UserError for a config or data that cannot be trained on.
    """
    config = compose_for_user("train", overrides)
    assert isinstance(config, TrainConfig)
    source = open_source(config.dataset)

    from distillcli.runtime import start
    from distillcli.views.loader import open_data
    from distillcli.views.store import Rows

    with start(config.trainer) as runtime:
        train = open_data(source, config.dataset, config.trainer.workers, runtime).train
        images = np.unique(np.linspace(0, len(train) - 1, IMAGES).astype(np.int64))

        def column(recipe: AugmentConfig, view: int, size: int) -> Column:
            batch = next(train.views(recipe, config.seed, [Rows(np.full_like(images, view), images)], size))
            pictures = batch.images.permute(0, 2, 3, 1).cpu().numpy()
            words = [label_words(target, source.classes) for target in batch.targets.tolist()]
            return list(zip(pictures, words, strict=True))

        full = config.dataset.image_size
        columns = {"evaluation": column(AugmentConfig(name="none"), 0, full)}
        for view in range(1, VIEWS + 1):
            epoch = (view - 1) // train.views_per_pass(config.augment) + 1
            size = view_size(full, config.trainer.progressive, epoch, config.trainer.epochs)
            columns[f"view {view}"] = column(config.augment, view, size)
    draw_sheet(columns, FILE)
    recipe = config.augment.name
    say(f"{FILE}: {len(images)} images of {source.name} in {VIEWS} views of augment={recipe}, seed {config.seed}")


def draw_sheet(columns: dict[str, Column], path: Path) -> None:
    """A PNG of the columns, each under its name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from distillcli.report.figures import plot_text, save

    count = max(map(len, columns.values()))
    figure = Figure(figsize=(1.5 * len(columns), 1.75 * count + 0.3), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    cells = figure.subplots(count, len(columns), squeeze=False)
    for number, (name, column) in enumerate(columns.items()):
        for row, (picture, words) in enumerate(column):
            axes = cells[row, number]
            axes.set_axis_off()
            axes.imshow(visible(picture), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(f"{name}\n{plot_text(words)}" if row == 0 else plot_text(words), fontsize=8)
    save(figure, path)


def visible(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first three channels as RGB, or the first one alone where there are fewer than three."""
    return picture[..., : 3 if picture.shape[2] >= 3 else 1]


def label_words(target: int | list[float], classes: Sequence[str]) -> str:
    """A class name, or, for mixed images, each class with its share of the label, the largest first."""
    if isinstance(target, int):
        return classes[target] if target >= 0 else "no label"
    shares = sorted(((share, number) for number, share in enumerate(target) if share >= 0.005), reverse=True)
    if not shares:
        return "no label"
    if shares[0][0] > 0.995:
        return classes[shares[0][1]]
    return " + ".join(f"{share:.0%} {classes[number]}" for share, number in shares)

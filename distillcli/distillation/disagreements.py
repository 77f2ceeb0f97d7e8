"""Pictures of the images that the student answers differently from its control, or from its teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillcli.errors import UserError
from distillcli.runs.disagreements import NAME, Disagreement, write_disagreements
from distillcli.runs.predictions import Predictions
from distillcli.sources.source import Source

EACH = 6  # images that only the student gets right, and as many that only the other one does
SIDE = 128  # pixels of the longer side of a picture


def keep_disagreements(folder: Path, student: Predictions, other: Predictions, role: str, source: Source) -> None:
    """Keep the clearest disagreements with the model called ``role`` in the run folder; nothing where there are none.

    An image that can no longer be read is left out.
    """
    if not np.array_equal(student.labels, other.labels):
        return
    (folder / NAME).mkdir(exist_ok=True)
    images, names, shown = source.evaluation.images, source.classes, []
    for place, row in enumerate(clearest(student, other), 1):
        try:
            pixels = images.read(int(row))
        except UserError:
            continue
        file = f"{place:02}.png"
        thumbnail(pixels).save(folder / NAME / file, optimize=True)
        classes = (names[one[row]] for one in (student.labels, student.predicted, other.predicted))
        shown.append(Disagreement(file, images.name(int(row)), *classes))
    write_disagreements(folder, role, shown)


def clearest(student: Predictions, other: Predictions) -> NDArray[np.int64]:
    """Positions of images that one of two models gets right: those where they differ most in the label's probability.

    First those of the student, then those of the other.
    """
    right, others = (one.predicted == one.labels for one in (student, other))
    lead = student.likelihood - other.likelihood
    best_first = np.argsort(-lead, kind="stable"), np.argsort(lead, kind="stable")
    ours, theirs = (
        order[only[order]] for order, only in zip(best_first, (right & ~others, others & ~right), strict=True)
    )
    return np.concatenate([ours[:EACH], theirs[:EACH]])


def thumbnail(pixels: NDArray[np.uint8]) -> Image.Image:
    """A small picture with few colours of H x W x C pixels; channels that make no colours are averaged."""
    grey = pixels.shape[2] != 3
    image = Image.fromarray(pixels.mean(axis=2).astype(np.uint8) if grey else pixels)
    image.thumbnail((SIDE, SIDE))
    return image if grey else image.quantize(128)

"""``predictions.npz``: what a model answered for each image of the evaluated part, in the order of the data set."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

NAME = "predictions.npz"


@dataclass(frozen=True)
class Predictions:
    """Arrays of N images. ``labels``: class, -1 without a label. ``predicted``: the most likely class.

    ``likelihood``: the probability given to the label; 0 without one. ``confidence``: the probability given to the
    most likely class; None in files of earlier versions.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    likelihood: NDArray[np.float32]
    confidence: NDArray[np.float32] | None = None

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Which of the labelled images are right."""
        known = self.labels >= 0
        right: NDArray[np.bool_] = self.predicted[known] == self.labels[known]
        return right


def write_predictions(folder: Path, predictions: Predictions) -> None:
    """Write the file so that a reader sees the old one or the new one."""
    fresh = folder / f"{NAME}.tmp.{os.getpid()}"
    content = io.BytesIO()
    arrays = {name: array for name, array in vars(predictions).items() if array is not None}
    np.savez_compressed(content, **arrays)
    fresh.write_bytes(content.getvalue())
    fresh.replace(folder / NAME)


def read_predictions(folder: Path) -> Predictions | None:
    """The predictions of a run folder; None where it has none, as older ones, or they are damaged."""
    try:
        with np.load(folder / NAME, allow_pickle=False) as content:
            confidence = content["confidence"] if "confidence" in content.files else None
            found = Predictions(content["labels"], content["predicted"], content["likelihood"], confidence)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    whole = {array.shape for array in vars(found).values() if array is not None} == {found.labels.shape}
    return found if whole and found.labels.ndim == 1 else None

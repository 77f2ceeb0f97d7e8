"""Which images of a disagreement are kept, and as what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distillcli.distillation.disagreements import EACH, SIDE, clearest, keep_disagreements, thumbnail
from distillcli.errors import UserError
from distillcli.runs.disagreements import read_disagreements
from distillcli.runs.predictions import Predictions, read_predictions, write_predictions
from distillcli.sources.source import ArrayImages, Source, Split


def predictions(labels: list[int], predicted: list[int], likelihood: list[float]) -> Predictions:
    return Predictions(np.array(labels), np.array(predicted), np.array(likelihood, np.float32))


STUDENT = predictions([0, 1, 2, 0, -1, 1], [0, 1, 0, 2, 1, 1], [0.9, 0.6, 0.2, 0.1, 0.0, 0.8])
CONTROL = predictions([0, 1, 2, 0, -1, 1], [1, 0, 2, 0, 2, 1], [0.3, 0.4, 0.5, 0.9, 0.0, 0.9])


class Broken(ArrayImages):
    def read(self, index: int, minimum_size: object = None) -> np.ndarray:  # type: ignore[type-arg, override]
        if index == 1:
            raise UserError("gone")
        return super().read(index)


def source(labels: np.ndarray) -> Source:  # type: ignore[type-arg]
    pixels = np.random.default_rng(0).integers(0, 255, (len(labels), 200, 100, 3)).astype(np.uint8)
    split = Split(Broken(pixels, "made up"), labels)
    return Source("x", ("a", "<b>", "c"), split, None, split, "")


def test_the_clearest_come_first_and_agreement_or_no_label_is_left_out() -> None:
    assert clearest(STUDENT, CONTROL).tolist() == [0, 1, 3, 2]
    many = np.zeros(30, int)
    all_right, all_wrong = (Predictions(many, many + wrong, np.ones(30, np.float32)) for wrong in (0, 1))
    assert clearest(all_right, all_wrong).tolist() == list(range(EACH))


def test_pictures_are_small_and_one_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    keep_disagreements(tmp_path, STUDENT, CONTROL, "control", source(STUDENT.labels))
    found = read_disagreements(tmp_path)
    assert found is not None
    assert found.other == "control"
    assert [(one.name, one.label, one.student, one.other) for one in found.shown] == [
        ("made up[0]", "a", "a", "<b>"),
        ("made up[3]", "a", "c", "a"),
        ("made up[2]", "c", "a", "c"),
    ]
    for one in found.shown:
        with Image.open(tmp_path / "disagreements" / one.image) as image:
            assert image.size == (SIDE // 2, SIDE)


def test_nothing_is_kept_for_other_images(tmp_path: Path) -> None:
    other = predictions([0], [1], [0.1])
    keep_disagreements(tmp_path, STUDENT, other, "control", source(STUDENT.labels))
    assert read_disagreements(tmp_path) is None


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "P"), (5, "L")])
def test_any_number_of_channels_has_a_picture(channels: int, mode: str) -> None:
    assert thumbnail(np.zeros((4, 6, channels), np.uint8)).mode == mode


def test_confidences_are_kept_and_files_without_them_still_read(tmp_path: Path) -> None:
    write_predictions(tmp_path, STUDENT)
    older = read_predictions(tmp_path)
    assert older is not None
    assert older.confidence is None
    sure = np.linspace(0.5, 1, 6).astype(np.float32)
    write_predictions(tmp_path, Predictions(STUDENT.labels, STUDENT.predicted, STUDENT.likelihood, sure))
    fresh = read_predictions(tmp_path)
    assert fresh is not None
    assert fresh.confidence is not None
    assert np.array_equal(fresh.confidence, sure)

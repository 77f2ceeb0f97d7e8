"""NumPy arrays as a data set: spellings, types, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.open import open_source
from distillcli.sources.source import Source

IMAGES = np.random.RandomState(0).randint(0, 256, (20, 6, 5, 3)).astype(np.uint8)
LABELS = np.arange(20) % 2


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path / "mine.npz", **arrays)
    return path / "mine.npz"


def opened(file: Path, **options: Any) -> Source:
    return open_source(DatasetConfig(name="npz", root=str(file), **options))


def refused(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        opened(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_part_is_split(tmp_path: Path) -> None:
    source = opened(saved(tmp_path, images=IMAGES, labels=LABELS), val_fraction=0.2)
    assert (source.name, source.classes, source.test) == ("mine", ("0", "1"), None)
    assert np.bincount(source.val.labels).tolist() == [2, 2]
    shown = [
        tuple(split.images.read(row).ravel())
        for split in (source.train, source.val)
        for row in range(len(split.labels))
    ]
    assert sorted(shown) == sorted(tuple(image.ravel()) for image in IMAGES)
    for row, label in enumerate(source.val.labels):
        (place,) = np.flatnonzero((source.val.images.read(row) == IMAGES).all((1, 2, 3)))
        assert LABELS[place] == label


@pytest.mark.parametrize("spelling", ["{0}_{1}", "{1}_{0}"])
def test_parts_and_gray_images(tmp_path: Path, spelling: str) -> None:
    keras = spelling == "{0}_{1}"
    arrays = {}
    for part, rows in (("train", slice(0, 10)), ("val", slice(10, 16)), ("test", slice(16, 20))):
        arrays[spelling.format("x" if keras else "images", part)] = IMAGES[rows, ..., 0]
        arrays[spelling.format("y" if keras else "labels", part)] = LABELS[rows, None]  # N x 1, as MedMNIST has them
    source = opened(saved(tmp_path, **arrays))
    assert source.test is not None
    assert [len(split.images) for split in (source.train, source.val, source.test)] == [10, 6, 4]
    np.testing.assert_array_equal(source.val.images.read(1), np.repeat(IMAGES[11, ..., :1], 3, axis=2))
    assert source.test.labels.tolist() == [0, 1, 0, 1]


def test_classes_are_named_by_the_file_by_text_or_by_number(tmp_path: Path) -> None:
    assert opened(saved(tmp_path, images=IMAGES, labels=LABELS, classes=["cat", "dog"])).classes == ("cat", "dog")
    named = opened(saved(tmp_path, images=IMAGES, labels=np.array(["dog", "cat"])[LABELS]))
    assert named.classes == ("cat", "dog")
    assert np.bincount(named.train.labels).tolist() == [9, 9]
    assert opened(saved(tmp_path, images=IMAGES, labels=LABELS * 8 + 2)).classes == ("2", "10")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": IMAGES / 255, "labels": LABELS}, "images is float64, 20 x 6 x 5 x 3; images must be uint8"),
        ({"images": IMAGES.astype(np.uint16), "labels": LABELS}, "uint16"),
        ({"images": IMAGES.transpose(0, 3, 1, 2), "labels": LABELS}, "20 x 3 x 6 x 5; expected N x H x W"),
        ({"images": IMAGES[:, 0, 0], "labels": LABELS}, "20 x 3; expected"),
        ({"images": IMAGES, "labels": np.eye(2)[LABELS]}, "labels is float64, 20 x 2; expected N whole numbers"),
        ({"images": IMAGES, "labels": LABELS[:7]}, "20 images in images but 7 labels in labels"),
        ({"images": IMAGES, "labels": LABELS - 1}, "row 0 of the train part has label -1"),
        ({"images": IMAGES, "labels": LABELS, "classes": ["cat"]}, "row 1 of the train part has label '1', outside"),
        ({"images": IMAGES}, "contains images but no labels"),
        ({"pictures": IMAGES}, "contains pictures; expected x_train and y_train"),
        ({"images": IMAGES, "labels": LABELS, "x_train": IMAGES}, "could each be the train part"),
        (
            {"images": IMAGES, "labels": LABELS, "x_test": IMAGES, "y_test": LABELS + 1},
            "row 1 of the test part has label '2', which no training",
        ),
    ],
)
def test_what_could_be_misread_is_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    assert said in refused(saved(tmp_path, **arrays))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    assert "plain arrays" in refused(saved(tmp_path, images=IMAGES, labels=np.array([{}] * 20)))
    np.save(tmp_path / "one.npy", IMAGES)
    assert "is not an .npz file" in refused(tmp_path / "one.npy")
    (tmp_path / "text.npz").write_text("no arrays")
    assert "is not an .npz file" in refused(tmp_path / "text.npz")
    damaged = saved(tmp_path, images=IMAGES, labels=LABELS)
    damaged.write_bytes(damaged.read_bytes()[:-300])
    assert "is not an .npz file" in refused(damaged)
    assert "cannot be read" in refused(tmp_path / "none.npz")


def test_the_fingerprint_is_of_the_data(tmp_path: Path) -> None:
    first = opened(saved(tmp_path, images=IMAGES, labels=LABELS)).fingerprint
    (tmp_path / "mine.npz").rename(tmp_path / "other.npz")
    assert opened(tmp_path / "other.npz").fingerprint == first
    changed = IMAGES.copy()
    changed[0, 0, 0, 0] ^= 1
    assert opened(saved(tmp_path, images=changed, labels=LABELS)).fingerprint != first
    assert opened(saved(tmp_path, images=IMAGES, labels=1 - LABELS)).fingerprint != first


@pytest.mark.fault("F7.6")
def test_arrays_that_would_not_fit_into_memory_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path, images=IMAGES, labels=LABELS)
    monkeypatch.setattr("distillcli.sources.npz.os.sysconf", lambda _: 10)
    with pytest.raises(UserError, match=r"unpacks to .*, and this machine has 0\.0 GB of memory"):
        opened(file)

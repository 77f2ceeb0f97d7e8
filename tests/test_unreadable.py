"""``dataset.on_error=skip``, and data without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import put, put_classes

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.open import open_source
from distillcli.sources.source import Source


def opened(root: Path, name: str = "folder", **options: Any) -> Source:
    return open_source(DatasetConfig(name=name, root=str(root), **options))


def damaged(root: Path) -> Path:
    """Twelve training images, of which one is cut and one is no image; four of val, of which one is empty."""
    put_classes(root / "train", 6)
    put_classes(root / "val", 2)
    cut = root / "train" / "cat" / "2.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    (root / "train" / "dog" / "0.png").write_text("<html>")
    (root / "val" / "dog" / "1.png").write_bytes(b"")
    return root


@pytest.mark.fault("R21", "R22")
def test_unreadable_images_are_left_out_and_never_replaced(tmp_path: Path) -> None:
    source = opened(damaged(tmp_path), on_error="skip")
    assert [Path(line.split(": ")[0]).relative_to(tmp_path).as_posix() for line in source.skipped] == [
        "train/cat/2.png",
        "train/dog/0.png",
        "val/dog/1.png",
    ]
    assert "a web page" in source.skipped[1]
    assert source.train.labels.tolist() == [0] * 5 + [1] * 5
    values = [int(source.train.images.read(row)[0, 0, 0]) for row in range(10)]
    assert values == [0, 1, 3, 4, 5, 51, 52, 53, 54, 55]
    assert [Path(source.train.images.name(row)).name for row in range(3)] == ["0.png", "1.png", "3.png"]
    assert source.val.labels.tolist() == [0, 0, 1]
    assert source.fingerprint not in ("", opened(tmp_path).fingerprint)


def test_nothing_changes_without_unreadable_images(tmp_path: Path) -> None:
    put_classes(tmp_path)
    assert opened(tmp_path, on_error="skip").fingerprint == opened(tmp_path).fingerprint
    assert opened(tmp_path, on_error="skip").skipped == ()


def test_a_class_that_would_be_empty_is_named(tmp_path: Path) -> None:
    put_classes(tmp_path, 2)
    for number in range(2):
        (tmp_path / "dog" / f"{number}.png").write_text("text")
    with pytest.raises(UserError, match=r"no training image of 'dog' can be decoded; .*\.png: not an image"):
        opened(tmp_path, on_error="skip")


@pytest.mark.fault("R21", "R22")
@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_counts_and_says_what_it_left_out(distill: Any, tmp_path: Path, streamed: bool) -> None:
    data = ["dataset=folder", f"dataset.root={damaged(tmp_path / 'images')}", "dataset.image_size=32"]
    if streamed:
        data.append("dataset.memory_gb=0")
    run = ["train", "experiment=smoke", *data, "trainer.epochs=1", "trainer.batch_size=4", "baseline=false"]
    run += ["teacher.fit.epochs=1", "trainer.device=cpu", "trainer.threads=1", "out=run"]
    refused = distill(*run)
    assert refused.code == 2
    assert ".png: " in refused.stderr
    answer = distill(*run[:-1], "out=again", "dataset.on_error=skip")
    assert answer.code == 0, answer.stderr
    result = json.loads((tmp_path / "again" / "result.json").read_text())
    assert result["dataset"]["skipped"] == 3
    assert result["dataset"]["train"] == 10
    (warning,) = (line for line in result["warnings"] if "cannot be decoded" in line)
    assert "3 images" in warning


# without labels


def test_flat_and_nested_images_without_labels(tmp_path: Path) -> None:
    for number in range(6):
        put(tmp_path / f"{number}.png", number)
    put(tmp_path / "deep" / "er" / "x.png", 9)
    source = opened(tmp_path, "unlabeled", val_fraction=0.3)
    assert (source.classes, source.test) == ((), None)
    assert source.train.labels.tolist() == [-1] * 5
    assert source.val.labels.tolist() == [-1] * 2
    values = {int(s.images.read(row)[0, 0, 0]) for s in (source.train, source.val) for row in range(len(s.labels))}
    assert values == {0, 1, 2, 3, 4, 5, 9}


@pytest.mark.parametrize("train", ["train/", ""])
def test_labelled_parts_beside_them(tmp_path: Path, train: str) -> None:
    for number in range(4):
        put(tmp_path / f"{train}folder" / f"{number}.png", number)
    put_classes(tmp_path / "test", 3)
    source = opened(tmp_path, "unlabeled", val_fraction=0.25)
    assert source.classes == ("cat", "dog")
    assert [len(split.labels) for split in (source.train, source.val)] == [3, 1]
    assert source.test is not None
    assert source.test.labels.tolist() == [0] * 3 + [1] * 3
    put_classes(tmp_path / "val", 2)
    source = opened(tmp_path, "unlabeled")
    assert source.train.labels.tolist() == [-1] * 4
    assert source.val.labels.tolist() == [0, 0, 1, 1]
    put(tmp_path / "val" / "cow" / "a.png")
    with pytest.raises(UserError) as caught:
        opened(tmp_path, "unlabeled")
    assert "val/ and test/ have different classes: 'cow' only in val/" in str(caught.value)


def test_too_few_images_and_flat_val(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    with pytest.raises(UserError, match="needs at least 2 training images but has 1"):
        opened(tmp_path, "unlabeled")
    put(tmp_path / "b.png")
    put(tmp_path / "val" / "c.png")
    source = opened(tmp_path, "unlabeled")
    assert [split.labels.tolist() for split in (source.train, source.val)] == [[-1, -1], [-1]]
    assert source.train.labels.dtype == source.val.labels.dtype == np.int64

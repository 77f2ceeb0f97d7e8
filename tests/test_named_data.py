"""Data that is named to ``distill eval``, and runs without validation data: which images a number is about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distillcli.runs.folder import read_metrics
from distillcli.runs.result import read_result
from distillcli.training.checkpoint import read_checkpoint

QUICK = ("trainer.device=cpu", "trainer.threads=1")
TRAIN = (
    *("train", "trainer.epochs=2", "trainer.batch_size=8", "baseline=false", "distill=none"),
    *("student.name=test_efficientnet", "dataset=folder", "dataset.image_size=32", *QUICK),
)


def photos(folder: Path, count: int, classes: str = "abc", first: int = 0) -> Path:
    """``count`` images of every class, each another one: a class has its own brightness."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.RandomState(1000 * (first + number) + label).randint(0, 60, (12, 12, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{first + number}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a flat folder of 30 images, of which a tenth is held out."""
    from distillcli import cli

    place = tmp_path_factory.mktemp("trained")
    photos(place / "images", 10)
    assert cli.run([*TRAIN, f"dataset.root={place / 'images'}", f"out={place / 'run'}"]) == 0
    return place


def evaluated(distill: Any, *arguments: str) -> dict[str, Any]:
    answer = distill("eval", *QUICK, "format=json", *arguments)
    assert answer.code == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


@pytest.mark.fault("F1.4")
def test_a_folder_without_parts_that_is_named_is_evaluated_whole(distill: Any, trained: Path, tmp_path: Path) -> None:
    new = photos(tmp_path / "new", 7, first=50)
    named = (f"checkpoint={trained / 'run'}", "dataset=folder", f"dataset.root={new}", "dataset.image_size=32")
    found = evaluated(distill, *named)
    assert (found["evaluated_on"], found["images"], found["share"]) == ("all", 21, 1.0)
    answer = distill("eval", *QUICK, *named)
    assert "on all 21 images of new" in " ".join(answer.stdout.split())


@pytest.mark.fault("F1.4")
def test_the_data_of_the_run_is_never_evaluated_on_what_it_was_trained_on(
    distill: Any, trained: Path, tmp_path: Path
) -> None:
    own = evaluated(distill, f"checkpoint={trained / 'run'}")
    assert (own["evaluated_on"], own["images"], own["share"]) == ("val", 3, 0.1)
    named = ("dataset=folder", f"dataset.root={trained / 'images'}", "dataset.image_size=32")
    again = evaluated(distill, f"checkpoint={trained / 'run'}", *named)
    timed = dict.fromkeys(("latency_ms", "latency_spread_ms", "latency_setting", "latency_doubt"))
    assert again | timed == own | timed
    answer = distill("eval", *QUICK, f"checkpoint={trained / 'run'}")
    assert "on the val part of images, 3 of 30 images" in " ".join(answer.stdout.split())
    shutil.copytree(trained / "images", tmp_path / "copy")
    elsewhere = ("dataset=folder", f"dataset.root={tmp_path / 'copy'}", "dataset.image_size=32")
    moved = evaluated(distill, f"checkpoint={trained / 'run'}", *elsewhere)
    assert (moved["evaluated_on"], moved["images"], moved["nll"]) == ("val", 3, own["nll"])


@pytest.mark.fault("F1.4", "F5.7")
def test_named_data_may_lack_classes_of_the_model(distill: Any, trained: Path, tmp_path: Path) -> None:
    whole = photos(tmp_path / "whole", 4, first=70)
    some = photos(tmp_path / "some", 4, first=70)
    for file in (some / "a").iterdir():
        file.unlink()
    (some / "a").rmdir()
    named = (f"checkpoint={trained / 'run'}", "dataset=folder", "dataset.image_size=32")
    found = evaluated(distill, *named, f"dataset.root={some}")
    expected = evaluated(distill, *named, f"dataset.root={whole}")
    assert found["images"] == 8
    assert found["per_class"] == {name: expected["per_class"][name] for name in "bc"}


@pytest.mark.fault("F1.4")
def test_images_of_the_training_among_named_data_are_said(distill: Any, trained: Path, tmp_path: Path) -> None:
    named = (f"checkpoint={trained / 'run'}", "dataset=folder", "dataset.image_size=32", "dataset.root=mixed")
    mixed = photos(tmp_path / "mixed", 4, first=50)
    assert "trained on" not in distill("eval", *QUICK, *named).stderr
    for file in (trained / "images" / "a").iterdir():  # 10, of which 1 was held out
        shutil.copy(file, mixed / "a" / f"copy of {file.name}")
    answer = distill("eval", *QUICK, *named)
    assert (answer.code, answer.stderr.count("trained on")) == (0, 1)
    assert (
        "mixed: 9 of its 22 images are among those that the model was trained on, e.g. 'mixed/a/copy" in answer.stderr
    )


@pytest.mark.fault("F8.11", "F1.6")
def test_without_validation_data_the_last_epoch_is_the_student(distill: Any, tmp_path: Path) -> None:
    photos(tmp_path / "images" / "train", 8)
    photos(tmp_path / "images" / "test", 4, first=100)
    (tmp_path / "images" / "train" / "a" / "x.heic").write_bytes(b"x")
    arguments = [*TRAIN, "dataset.root=images", "dataset.val_fraction=0", "name=all"]
    arguments += ["distill=kd", "teacher.name=test_resnet", "teacher.fit.epochs=1", "baseline=true"]
    answer = distill(*arguments)
    assert answer.code == 0, answer.stderr
    run = tmp_path / "runs" / "all" / "latest"
    result = read_result(run)
    assert result is not None
    assert result.dataset is not None
    assert (result.dataset.train, result.dataset.val, result.dataset.test) == (24, 0, 12)
    assert result.dataset.ignored == 1
    (warning,) = (words for words in result.warnings if "not read" in words)
    assert answer.stderr.count(warning) == 1
    assert (result.evaluated_on, result.best) == ("test", None)
    assert json.loads((run / "result.json").read_text())["best"] is None
    assert result.last is not None
    assert result.student is not None
    assert (result.last.epoch, result.last.val_top1, result.last.top1) == (2, None, result.student.top1)
    assert [row["kind"] for row in read_metrics(run)] == ["train", "train"]
    assert not (run / "checkpoints" / "best.pt").exists()
    assert read_checkpoint(run / "checkpoints" / "last.pt")["best"] == {}
    shown = " ".join(answer.stdout.split())
    assert "No validation data: the last epoch is the student." in shown
    assert "Best epoch" not in shown
    assert "val top-1" not in shown
    assert "No validation data" in (run / "report.md").read_text()
    assert (run / "curves.png").is_file()
    found = evaluated(distill, f"checkpoint={run}")
    assert (found["evaluated_on"], found["images"], found["top1"]) == ("test", 12, result.student.top1)
    again = distill("train", f"resume={run}")
    assert again.code == 0


@pytest.mark.fault("F8.11")
def test_there_must_be_something_to_report_on(distill: Any, trained: Path) -> None:
    answer = distill(*TRAIN, f"dataset.root={trained / 'images'}", "dataset.val_fraction=0")
    assert answer.code == 2
    assert "dataset.val_fraction=0: images has neither a test nor a val part" in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.fault("R46", "F2.1")
def test_data_that_changed_since_the_run_began_is_counted(distill: Any, trained: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(trained / "images", images)
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    photos(images / "more", 2, "x", first=80)
    for file in (images / "more" / "x").iterdir():
        file.rename(images / "a" / file.name)
    shutil.rmtree(images / "more")
    (images / "b" / "0.png").unlink()
    place = f"dataset.root={images}"
    answer = distill("train", f"resume={tmp_path / 'run'}", place)
    assert answer.code == 2
    assert "the data has changed since the run began (train: 2 added, 1 removed)" in answer.stderr
    assert answer.stderr.splitlines()[-1].endswith("restore it, or start a new run")
    shutil.rmtree(images)
    shutil.copytree(trained / "images", images)
    (images / "b" / "0.png").write_bytes((images / "b" / "1.png").read_bytes())
    answer = distill("train", f"resume={tmp_path / 'run'}", place)
    assert "as many images of each class, but other names, sizes or contents" in answer.stderr


@pytest.mark.fault("F1.4", "R46")
def test_own_data_that_changed_is_evaluated_with_a_warning(distill: Any, trained: Path) -> None:
    added = trained / "images" / "c" / "99.png"
    shutil.copy(trained / "images" / "a" / "0.png", added)
    try:
        answer = distill("eval", *QUICK, f"checkpoint={trained / 'run'}")
    finally:
        added.unlink()
    assert answer.code == 0
    assert "images has changed since the run began (train: 1 added, 0 removed)" in answer.stderr


@pytest.mark.fault("F7.7", "F7.4", "R28", "R29")
def test_names_of_folders_cannot_rewrite_the_terminal_or_the_list_of_classes(distill: Any, tmp_path: Path) -> None:
    names = ["a\x1b[31mb\nc", "=cmd", "<img>"]
    for label, name in enumerate(names):
        photos(tmp_path / "images" / f"{label}", 4, "x", first=10 * label)
        (tmp_path / "images" / f"{label}" / "x").rename(tmp_path / "images" / name)
        (tmp_path / "images" / f"{label}").rmdir()
    answer = distill(*TRAIN, "dataset.root=images", "trainer.epochs=1", "out=run")
    assert answer.code == 0, answer.stderr
    assert "\x1b" not in answer.stdout + answer.stderr
    assert (tmp_path / "run" / "classes.txt").read_text().split("\n") == [*sorted(names[1:]), json.dumps(names[0]), ""]
    (tmp_path / "images" / names[0] / "0.png").write_bytes(b"")
    for arguments in (["dataset.root=images"], [f"dataset.root=images/{names[0]}"]):
        refused = distill(*TRAIN, *arguments)
        assert refused.code == 2
        assert "\x1b" not in refused.stderr
        assert refused.stderr.count("\n") == 1

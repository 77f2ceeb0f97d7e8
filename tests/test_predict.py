"""``distill predict``: the answers of ``distill eval``, image by image, from any form of the model."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distillcli.runs.predictions import Predictions, read_predictions
from tests.conftest import Answer, Distill

RUN = "runs/t/latest"
WORDS = [
    *("name=t", "trainer.epochs=1", "trainer.batch_size=8", "trainer.device=cpu", "baseline=false", "distill=none"),
    *("student.name=test_efficientnet", "dataset=folder", "dataset.root=photos", "dataset.image_size=32"),
]
SIZES = ((40, 30), (24, 24), (33, 57), (90, 64))


def draw_photos(root: Path) -> None:
    draws = np.random.RandomState(0)
    for part, count in (("train", 8), ("val", 7)):
        for label, name in enumerate(("cat", "dog", "emu")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                width, height = SIZES[number % len(SIZES)]
                pixels = draws.randint(0, 120, (height, width, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{number}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and two runs on them: ``t`` keeps its images in memory, ``streamed`` does not."""
    from distillcli import cli

    where = tmp_path_factory.mktemp("predict")
    draw_photos(where / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert cli.run(["train", *WORDS]) == 0
        assert cli.run(["train", *WORDS, "name=streamed", "dataset.memory_gb=1e-9", "trainer.channels_last=false"]) == 0
    return where


def rows(answer: Answer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("{")]


def chances(row: dict[str, Any]) -> dict[str, float]:
    return {one["class"]: one["probability"] for one in row["predictions"]}


@pytest.mark.parametrize("name", ["t", "streamed"])
@pytest.mark.parametrize("form", ["", "/student", "/checkpoints/last.pt"])
def test_the_answers_are_those_of_the_run_bit_for_bit(name: str, form: str, trained: Path, distill: Distill) -> None:
    run = trained / "runs" / name / "latest"
    done = distill("predict", f"checkpoint={run}{form}", "input=photos/val", "format=jsonl", cwd=trained)
    assert done.code == 0, done.stderr
    measured = read_predictions(run)
    assert isinstance(measured, Predictions)
    found = rows(done)
    assert [row["image"].split("/")[-2] for row in found] == [("cat", "dog", "emu")[k] for k in measured.labels]
    assert [next(iter(chances(row))) for row in found] == [("cat", "dog", "emu")[k] for k in measured.predicted]
    likelihood = [chances(row)[row["image"].split("/")[-2]] for row in found]
    np.testing.assert_array_equal(np.array(likelihood, np.float32), measured.likelihood)


def test_the_two_runs_look_at_other_pixels(trained: Path) -> None:
    """Otherwise the test above would not tell them apart."""
    records = [json.loads((trained / "runs" / name / "latest" / "data.json").read_text()) for name in ("t", "streamed")]
    assert [record["pixels"] for record in records] == ["squeezed", "cropped"]


def test_an_older_run_does_not_record_its_pixels_and_answers_the_same(trained: Path, distill: Distill) -> None:
    record = trained / RUN / "data.json"
    content = record.read_text("utf-8")
    asked = ("predict", f"checkpoint={RUN}", "input=photos/val", "format=jsonl")
    before = distill(*asked, cwd=trained)
    record.write_text(json.dumps({key: value for key, value in json.loads(content).items() if key != "pixels"}))
    try:
        assert distill(*asked, cwd=trained) == before
    finally:
        record.write_text(content)


def test_images_of_other_sizes_share_a_batch(trained: Path) -> None:
    """As arrays that are kept as they are: each is shown as it would be alone."""
    from distillcli.views.files import Look

    photos = sorted((trained / "photos" / "val" / "cat").iterdir())
    look = Look(64, 3, 0.9, "whole")
    kept = [look.read(str(path)) for path in photos]
    assert len({pixels.shape for pixels, _ in kept}) == 4
    for one, view in zip(kept, look.views(kept), strict=True):
        assert torch.equal(look.views([one])[0], view)


def test_an_onnx_file_alone_answers_as_the_run(trained: Path, distill: Distill, tmp_path: Path) -> None:
    file = tmp_path / "alone.onnx"
    assert distill("export", f"checkpoint={RUN}", f"out={file}", cwd=trained).code == 0
    asked = ("input=photos/val/**/*.png", "format=csv", "topk=3")
    own, alone = (
        list(csv.DictReader(io.StringIO(distill("predict", f"checkpoint={what}", *asked, cwd=trained).stdout)))
        for what in (RUN, file)
    )
    assert len(own) == 21
    for one, other in zip(own, alone, strict=True):
        assert (one["image"], one["class_1"]) == (other["image"], other["class_1"])
        assert float(one["probability_1"]) == pytest.approx(float(other["probability_1"]), abs=1e-5)


def test_what_cannot_be_read_is_said_and_left_out(
    trained: Path, distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = trained / "photos" / "val" / "cat" / "0.png"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{broken}\n\n{good}\nmissing.jpg\n"))
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a process of its own: nothing is said twice
    done = distill("predict", f"checkpoint={RUN}", "input=-", "topk=2", cwd=trained)
    assert done.code == 2
    assert done.stdout.startswith(f"{good}  ")
    assert done.stdout.count("\n") == 1
    assert done.stdout.count("%") == 2
    assert done.stderr.count(f"{broken}: ") == 1
    assert "missing.jpg: no such file" in done.stderr
    assert "error: input=-: 2 images could not be read" in done.stderr


MISTAKES = {
    ("input=photos",): "needs checkpoint=",
    (f"checkpoint={RUN}",): "needs input=",
    (f"checkpoint={RUN}", "input=nothing*"): "input=nothing*: no such file, and as a glob it matches none",
    (f"checkpoint={RUN}", "input=photos", "format=xml"): "format=xml: must be one of table, jsonl, csv",
    (f"checkpoint={RUN}", "input=photos", "topk=0"): "topk=0: must be at least 1",
    ("checkpoint=photos/val/cat/0.png", "input=photos"): "lies in no run folder",
    ("checkpoint=foreign.onnx", "input=photos"): "foreign.onnx: ONNX Runtime cannot open it",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line(words: tuple[str, ...], trained: Path, distill: Distill) -> None:
    (trained / "foreign.onnx").write_bytes(b"no graph")
    refused = distill("predict", *words, cwd=trained)
    assert refused.code == 2
    assert refused.stderr.count("\n") == 1
    assert MISTAKES[words] in refused.stderr


def test_few_images_are_in_memory_at_a_time(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distillcli.views import files

    monkeypatch.setattr(files, "EVALUATION_BATCH", 4)
    asked: list[str] = []

    def paths() -> Any:
        for path in sorted((trained / "photos" / "val").rglob("*.png")):
            asked.append(str(path))
            yield str(path)

    look = files.Look(32, 3, 1.0, "cropped")
    sizes = []
    for number, (names, views) in enumerate(files.batches(paths(), look, 0, lambda _: None), 1):
        sizes.append(len(names))
        assert views.shape == (len(names), 3, 32, 32)
        assert len(asked) <= 4 * number
    assert sizes == [4, 4, 4, 4, 4, 1]

"""``distill export``: what is written is what the model answers, and nothing else is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from distillcli.config.schema import ModelConfig
from distillcli.evidence.calibration import fitted_temperature
from distillcli.formats import formats
from distillcli.formats.deployed import Wanted
from distillcli.models.backbone import build
from distillcli.types import Inputs
from tests.conftest import Answer, Distill

RUN = "runs/t/latest"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run of a tiny student on digits."""
    from distillcli import cli

    where = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        words = "name=t trainer.epochs=1 trainer.batch_size=64 baseline=false distill=none dataset=digits"
        assert cli.run(["train", *words.split(), "student.name=test_efficientnet", "dataset.image_size=32"]) == 0
    return where


def record(trained: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((trained / RUN / "exports" / f"{name}.json").read_text("utf-8"))
    return content


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_onnx_file_answers_as_the_model_and_says_what_it_takes(trained: Path, distill: Distill) -> None:
    done = distill("export", f"checkpoint={RUN}", cwd=trained)
    assert done.code == 0, done.stderr
    path = trained / RUN / "exports" / "test_efficientnet.onnx"
    assert leftovers(path.parent) == [path.name, f"{path.name}.json"]
    check = record(trained, path.name)
    assert check["images"] == 200
    assert check["part"] == "val"
    assert check["share"] < 1e-4 < check["bound"]
    assert check["agreement"] == 100
    assert check["top1"] == check["top1_of_file"]
    assert "distill predict checkpoint=" in done.stdout
    assert done.stderr == ""
    told = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert told["classes"] == [str(digit) for digit in range(10)]
    assert (told["size"], told["channels"], len(told["mean"])) == (32, 3, 3)
    assert told["opset"] == onnx.load(path).opset_import[0].version
    session = onnxruntime.InferenceSession(path)
    for count in (1, 5):  # batches of any size
        given = np.zeros((count, 3, 32, 32), np.float32)
        assert session.run(None, {"images": given})[0].shape == (count, 10)


def test_preprocessing_and_calibrated_softmax_lie_inside(trained: Path, distill: Distill) -> None:
    path = trained / "inside.onnx"
    done = distill(
        "export", f"checkpoint={RUN}", "epoch=last", "preprocess=true", "softmax=true", f"out={path}", cwd=trained
    )
    assert done.code == 0, done.stderr
    pixels = np.random.RandomState(0).randint(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    found = onnxruntime.InferenceSession(path).run(None, {"images": pixels})[0]
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    told = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}

    from distillcli.distillation.reopening import open_checkpoint

    backbone = open_checkpoint(str(trained / RUN), None, Inputs(10, 32))[0].eval()
    with torch.no_grad():
        logits = backbone(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).logits
    np.testing.assert_allclose(found, (logits / told["temperature"]).softmax(dim=1).numpy(), atol=1e-5)


@pytest.mark.parametrize(("name", "file"), [("torch", "x.pt2"), ("openvino", "x.xml")])
def test_other_formats_go_through_the_same_command(name: str, file: str, trained: Path, distill: Distill) -> None:
    done = distill("export", f"checkpoint={RUN}", f"format={name}", f"out=other/{file}", "softmax=true", cwd=trained)
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    assert file in leftovers(trained / "other")
    check = json.loads((trained / "other" / f"{file}.json").read_text("utf-8"))
    assert check["share"] < 1e-4
    assert check["agreement"] == 100


def test_timm_folders_go_through_the_same_command(trained: Path, distill: Distill) -> None:
    asked = ("export", f"checkpoint={RUN}", "format=timm", "out=folder")
    assert distill(*asked, cwd=trained).code == 0
    assert {"config.json", "model.safetensors"} <= set(leftovers(trained / "folder"))
    again = distill(*asked, cwd=trained)
    assert again.code == 2
    assert "out=folder: a folder of this name exists" in again.stderr


def test_a_file_that_answers_otherwise_is_not_kept(
    trained: Path, distill: Distill, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = formats.FORMATS["timm"].opened
    lying = formats.Format(
        "", formats.FORMATS["timm"].write, lambda path: lambda images: honest(path)(images) * 1.01, 1e-3, "", ""
    )
    monkeypatch.setitem(formats.FORMATS, "timm", lying)
    before = leftovers(trained)
    done = distill("export", f"checkpoint={RUN}", "format=timm", "out=wrong", cwd=trained)
    assert done.code == 1
    assert "differs from the trained one" in done.stderr
    assert leftovers(trained) == before


MISTAKES = {
    (): "needs checkpoint=",
    ("format=onx",): "format=onx: must be one of",
    ("format=timm", "softmax=true"): "softmax=true: format=timm",
    ("epoch=first",): "epoch=first: must be one of last, best",
    ("out=model.pt",): "writes a file named .onnx",
    ("trainer.epochs=3",): "distill export trains nothing",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line(words: tuple[str, ...], trained: Path, distill: Distill) -> None:
    given = (*words, f"checkpoint={RUN}") if words else ()
    refused: Answer = distill("export", *given, cwd=trained)
    assert refused.code == 2
    assert refused.stderr.count("\n") == 1
    assert MISTAKES[words] in refused.stderr


def test_a_missing_package_names_the_extra(trained: Path, distill: Distill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    refused = distill("export", f"checkpoint={RUN}", cwd=trained)
    assert refused.code == 2
    assert "needs onnxscript, not installed here: pip install 'distillcli[onnx]'" in refused.stderr


def test_the_temperature_is_the_one_that_made_the_labels() -> None:
    draws = np.random.RandomState(0)
    logits = draws.randn(20_000, 5) * 2
    scaled = logits / 2.5
    chances = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    labels = (chances.cumsum(axis=1) < draws.rand(len(logits), 1)).sum(axis=1)
    assert fitted_temperature(logits, labels) == pytest.approx(2.5, rel=0.05)


def test_what_cannot_be_traced_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distillcli.errors import UserError

    backbone = build(ModelConfig("test_resnet"), Inputs(3, 32), "student")
    monkeypatch.setattr(
        backbone.net, "forward", lambda images: images.flatten(1)[:, : int(images.sum())]
    )  # its shape depends on the pixels
    with pytest.raises(UserError, match=r"format=onnx: test_resnet cannot be exported so .* format=timm"):
        formats.export(backbone, tmp_path / "x.onnx", Wanted(("a", "b", "c"), 1.0), [], "onnx")
    assert leftovers(tmp_path) == []

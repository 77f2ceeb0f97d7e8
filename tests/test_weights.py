"""Weights in every form people keep them in, and files that are not what they seem."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distillcli.config.schema import ModelConfig
from distillcli.errors import UserError
from distillcli.formats.timm_folder import write as export
from distillcli.models.backbone import Backbone, build
from distillcli.models.matching import knows_classes, load_into
from distillcli.models.weights import Weights, read_weights, weights_fingerprint
from distillcli.runs.result import EpochNumbers, Fingerprints, Result, write_result
from distillcli.runtime import seed_everything
from distillcli.training.checkpoint import read_checkpoint, save_checkpoint
from distillcli.types import Inputs

CLASSES = ("ant", "bee", "cat", "dog", "eel")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def backbone(seed: int = 0, name: str = "test_resnet", classes: int = 5) -> Backbone:
    seed_everything(seed, name)
    return build(ModelConfig(name=name), Inputs(classes, 32), "student").eval()


def state() -> dict[str, Tensor]:
    return backbone().net.state_dict()  # type: ignore[no-any-return]


def other() -> dict[str, Tensor]:
    return backbone(seed=9).net.state_dict()  # type: ignore[no-any-return]


@torch.no_grad()
def logits(model: Backbone) -> Tensor:
    answer: Tensor = model(IMAGES).logits
    return answer


def ours(**parts: Any) -> dict[str, Any]:
    """A checkpoint as the engine writes it, as far as reading weights goes."""
    content = {"student": state(), "ema": None, "model": {"name": "test_resnet", "args": {}}}
    return {**content, "classes": list(CLASSES), "image_size": 32, **parts}


def exported(folder: Path) -> Path:
    export(backbone(), folder, CLASSES, 0.9)
    return folder


def saved(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def our_checkpoint(path: Path, **parts: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, ours(**parts))
    return path


def safe(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


def timm_training_checkpoint(path: Path, **parts: Any) -> Path:
    """As timm's CheckpointSaver writes it, the command line included."""
    content = {"epoch": 3, "arch": "test_resnet", "state_dict": state(), "optimizer": {}, "version": 2, "metric": 71.5}
    return saved(path, {**content, "args": argparse.Namespace(model="test_resnet", lr=0.1), **parts})


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state().items()}


FORMS: dict[str, Callable[[Path], object]] = {
    "exported folder": lambda tmp: exported(tmp / "student"),
    "local-dir": lambda tmp: f"local-dir:{exported(tmp / 'student')}",
    "run folder with an exported student": lambda tmp: exported(tmp / "student").parent,
    "run folder with checkpoints": lambda tmp: our_checkpoint(tmp / "checkpoints" / "last.pt").parent.parent,
    "run folder with the one before": lambda tmp: our_checkpoint(tmp / "checkpoints" / "previous.pt").parent.parent,
    "checkpoint": lambda tmp: our_checkpoint(tmp / "last.pt"),
    "checkpoint with ema": lambda tmp: our_checkpoint(tmp / "last.pt", student=other(), ema=state()),
    "safetensors with config": lambda tmp: exported(tmp / "student") / "model.safetensors",
    "safetensors alone": lambda tmp: safe(tmp / "weights.safetensors", state()),
    "safetensors of a wrapped model": lambda tmp: safe(tmp / "weights.safetensors", prefixed("module.")),
    "state dict": lambda tmp: saved(tmp / "weights.pth", state()),
    "state dict under DDP": lambda tmp: saved(tmp / "weights.pth", prefixed("module.")),
    "state dict compiled": lambda tmp: saved(tmp / "weights.pth", prefixed("_orig_mod.")),
    "state dict compiled under DDP": lambda tmp: saved(tmp / "weights.pth", prefixed("module._orig_mod.")),
    "nested state dict": lambda tmp: saved(tmp / "weights.pth", {"model": state(), "epoch": 3}),
    "timm training": lambda tmp: timm_training_checkpoint(tmp / "model_best.pth.tar"),
    "timm training with ema": lambda tmp: timm_training_checkpoint(
        tmp / "checkpoint-3.pth.tar", state_dict=other(), state_dict_ema=state()
    ),
}
NAMELESS = {form for form in FORMS if form.startswith(("state", "nested", "safetensors a", "safetensors of"))}
SILENT = {form for form in FORMS if form in NAMELESS or form.startswith("timm")}  # on classes and the images' size


@pytest.mark.fault("R12")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.fault("R12")
def test_every_form_gives_the_same_logits(form: str, tmp_path: Path) -> None:
    weights = read_weights(str(FORMS[form](tmp_path)))
    model = backbone(seed=1)
    assert not torch.equal(logits(model), logits(backbone()))
    load_into(model, weights, "student")
    assert torch.equal(logits(model), logits(backbone()))
    assert knows_classes(weights, model, CLASSES, "student")
    if form in NAMELESS:
        with pytest.raises(UserError, match="without the name of their model"):
            _ = weights.model
    else:
        again = build(weights.model, Inputs(5, 32), "student").eval()
        load_into(again, weights, "student")
        assert torch.equal(logits(again), logits(backbone()))
        assert (weights.classes, weights.image_size) == ((None, None) if form in SILENT else (CLASSES, 32))


def test_an_exported_folder_is_a_model_of_timm(tmp_path: Path) -> None:
    net = timm.create_model(f"local-dir:{exported(tmp_path / 'student')}", pretrained=True).eval()
    settings = net.pretrained_cfg
    mean, std = (torch.tensor(settings[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        assert torch.equal(net((IMAGES - mean) / std), logits(backbone()))
    assert (settings["label_names"], tuple(settings["input_size"])) == (list(CLASSES), (3, 32, 32))
    assert (settings["crop_pct"], settings["interpolation"], settings["num_classes"]) == (0.9, "bilinear", 5)


@pytest.mark.fault("F6.12")
def test_a_student_from_scratch_does_not_carry_the_licence_of_timms_weights(tmp_path: Path) -> None:
    published = timm.get_pretrained_cfg("test_resnet").to_dict()
    assert {"license", "tag"} <= published.keys()
    card = json.loads((exported(tmp_path / "student") / "config.json").read_text("utf-8"))["pretrained_cfg"]
    assert not {"tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "url", "hf_hub_id"} & card.keys()
    assert {"mean", "std", "input_size", "classifier"} <= card.keys()


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = backbone().to(memory_format=torch.channels_last)
    before = dict(model.net.pretrained_cfg)
    export(model, tmp_path / "student", CLASSES, 1.0)
    assert model.net.pretrained_cfg == before
    assert model.net.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_exporting_a_transformer_keeps_its_size_out_of_its_arguments(tmp_path: Path) -> None:
    export(backbone(name="test_vit"), tmp_path / "student", CLASSES, 1.0)
    weights = read_weights(str(tmp_path / "student"))
    again = build(weights.model, Inputs(5, 32), "student").eval()
    load_into(again, weights, "student")
    assert torch.equal(logits(again), logits(backbone(name="test_vit")))


def test_arguments_travel_with_a_checkpoint(tmp_path: Path) -> None:
    path = our_checkpoint(tmp_path / "last.pt", model={"name": "test_vit", "args": {"drop_path_rate": 0.1}})
    assert read_weights(str(path)).model == ModelConfig("test_vit", args={"drop_path_rate": 0.1}, image_size=32)


# --- classes ------------------------------------------------------------------------------------------------------


@pytest.mark.fault("R9")
def test_the_same_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    weights = read_weights(str(our_checkpoint(tmp_path / "last.pt")))
    with pytest.raises(UserError, match="another order") as caught:
        knows_classes(weights, backbone(), ("bee", "ant", "cat", "dog", "eel"), "student")
    assert str(tmp_path / "last.pt") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.fault("R11")
def test_other_classes_are_not_known_and_get_a_new_head_on_the_old_body(tmp_path: Path) -> None:
    weights = read_weights(str(our_checkpoint(tmp_path / "last.pt")))
    for classes in (("ant", "bee", "cat", "dog", "fox"), ("ant", "bee")):
        model = backbone(seed=1, classes=len(classes))
        assert not knows_classes(weights, model, classes, "student")
        fresh = {name: value.clone() for name, value in model.net.state_dict().items()}
        load_into(model, weights, "student", new_head=True)
        for name, value in model.net.state_dict().items():
            assert torch.equal(value, fresh[name] if name.startswith("fc.") else weights.state[name])


def test_without_names_the_number_of_classes_decides(tmp_path: Path) -> None:
    for content in (state(), prefixed("module."), {"state_dict": prefixed("_orig_mod.")}):
        weights = read_weights(str(saved(tmp_path / "weights.pth", content)))
        assert weights.classes is None
        assert knows_classes(weights, backbone(), CLASSES, "student")
        assert not knows_classes(weights, backbone(classes=3), CLASSES[:3], "student")


# --- what does not fit --------------------------------------------------------------------------------------------


@pytest.mark.fault("R10")
def test_another_architecture_is_refused_with_the_first_tensor(tmp_path: Path) -> None:
    weights, model = read_weights(str(our_checkpoint(tmp_path / "last.pt"))), backbone(name="test_vit")
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_into(model, weights, "student")
    message = str(caught.value)
    ours, theirs = next(iter(model.net.state_dict())), next(iter(state()))
    said_names = (f"missing from the file (first {ours})", f"unexpected in it (first {theirs})")
    for said in (str(tmp_path / "last.pt"), "student.name=test_vit", *said_names, "set student.name=test_resnet"):
        assert said in message
    assert "\n" not in message
    assert all(torch.equal(before[name], value) for name, value in model.net.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("fc.bias"),
        lambda tensors: tensors.update({"extra.weight": torch.zeros(1)}),
        lambda tensors: tensors.update({"fc.bias": torch.zeros(4)}),
    ],
    ids=["missing", "extra", "shape"],
)
def test_one_wrong_tensor_is_enough_to_refuse(change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = dict(state())
    change(tensors)
    with pytest.raises(UserError, match=r"7[67] of its 77 tensors match; 1 is .* \(first (fc\.bias|extra\.weight)"):
        load_into(backbone(), Weights(tensors, "here"), "student")


def test_other_shapes_beyond_the_classifier_are_refused_with_a_new_head_too(tmp_path: Path) -> None:
    weights = dataclasses.replace(read_weights(str(our_checkpoint(tmp_path / "last.pt"))), architecture="test_vit")
    with pytest.raises(UserError, match="does not fit"):
        load_into(backbone(name="test_vit"), weights, "student", new_head=True)


def test_a_fingerprint_names_the_values() -> None:
    assert weights_fingerprint(state()) == weights_fingerprint(dict(reversed(state().items())))
    changed = {name: value.clone() for name, value in state().items()}
    changed["fc.bias"][0] += 1e-6
    assert weights_fingerprint(changed) != weights_fingerprint(state())


# --- files that are not what they seem ----------------------------------------------------------------------------


def refused(path: Path, *said: str, names: Path | None = None) -> None:
    """Reading raises UserError in one line that names the file, and the words ``said``."""
    with pytest.raises(UserError) as caught:
        read_weights(str(path))
    message = str(caught.value)
    assert "\n" not in message
    for words in (str(names or path), *said):
        assert words in message, message


SUFFIXES = pytest.mark.parametrize("suffix", [".pt", ".pth.tar", ".safetensors"])


@SUFFIXES
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\n  <html>Sign in</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "git lfs pull"),
        (b"hello " * 100, "truncated"),
        (b"\x00" * 1000, "truncated"),
    ],
    ids=["empty", "html", "html after blanks", "lfs", "text", "zeros"],
)
@pytest.mark.fault("R14")
def test_a_file_that_is_no_checkpoint_is_refused_by_name(
    content: bytes, said: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    refused(path, said)


@SUFFIXES
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
@pytest.mark.fault("R14")
def test_a_truncated_file_is_refused(share: float, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    whole = (safe(path, state()) if suffix == ".safetensors" else saved(path, state())).read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "truncated")


@pytest.mark.fault("R15")
def test_one_flipped_bit_within_a_tensor_is_found(tmp_path: Path) -> None:
    path = our_checkpoint(tmp_path / "last.pt")
    content = bytearray(path.read_bytes())
    value = state()["fc.weight"].numpy().tobytes()
    place = content.index(value)
    content[place + len(value) // 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["student"]["fc.weight"].shape == (5, 96)  # torch does not notice
    refused(path, "checksum")
    with pytest.raises(UserError, match="checksum"):
        read_checkpoint(path)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.fault("R16")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.fault("R16")
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(nested: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile = Hostile(marker)
    path = saved(tmp_path / "weights.pt", {"state_dict": state(), "args": hostile} if nested else hostile)
    refused(path, "not loaded for safety", f"{os.mkdir.__module__}.mkdir", *(["entry 'args'"] if nested else []))
    raw = tmp_path / "raw.pt"
    raw.write_bytes(pickle.dumps(hostile))
    refused(raw)
    assert not marker.exists()
    pickle.loads(raw.read_bytes())
    assert marker.exists()  # it would have


@pytest.mark.parametrize("content", [[1, 2], "weights", torch.zeros(3)], ids=["list", "text", "tensor"])
def test_a_checkpoint_of_something_else_is_refused(content: object, tmp_path: Path) -> None:
    refused(saved(tmp_path / "weights.pt", content), "not a state dict")


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    refused(saved(tmp_path / "model.pt", backbone().net), "not loaded for safety")


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"architectures": ["ViTModel"]}', '{"architecture": "test_resnet"}', "[]"],
    ids=["empty", "truncated", "of transformers", "without preprocessing", "a list"],
)
def test_a_config_that_is_not_timms_is_refused(text: str, tmp_path: Path) -> None:
    folder = exported(tmp_path / "student")
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_an_exported_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path / "student")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors is missing")


def test_a_damaged_exported_folder_names_the_file(tmp_path: Path) -> None:
    path = exported(tmp_path / "student") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refused(path.parent, "truncated", names=path)


@pytest.mark.fault("R13")
def test_a_folder_without_weights_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "neither a run folder")
    refused(tmp_path / "emty", "does not exist", "empty")


def test_a_whole_checkpoint_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    best, last = tmp_path / "run" / "checkpoints" / "best.pt", tmp_path / "run" / "checkpoints" / "last.pt"
    our_checkpoint(best, recipe="aa", epoch=2)
    our_checkpoint(last, recipe="aa", last={"epoch": 3})
    write_result(tmp_path / "run", Result("ok", fingerprints=Fingerprints(recipe="aa"), best=EpochNumbers(2)))
    for path in (best, last):
        assert read_weights(str(path)).classes == CLASSES
    moved = shutil.copy(last, tmp_path / "alone.pt")
    shutil.copy(last, best)
    refused(best, "of epoch 3, where result.json says 2")
    our_checkpoint(best, recipe="bb", epoch=2)
    refused(best, "another run, of the recipe bb where result.json says aa")
    assert read_weights(str(moved)).classes == CLASSES


def test_a_saved_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    content = ours(step=7, best={"epoch": 3, "top1": 71.5}, ema=other())
    save_checkpoint(tmp_path / "last.pt", content)
    back = read_checkpoint(tmp_path / "last.pt")
    for part in ("student", "ema"):
        assert back[part].keys() == content[part].keys()
        assert all(torch.equal(back[part][name], value) for name, value in content[part].items())
    simple = {key: value for key, value in content.items() if key not in ("student", "ema")}
    assert {key: back[key] for key in simple} == simple
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_copied_exported_folder_needs_nothing_else(tmp_path: Path) -> None:
    moved = shutil.copytree(exported(tmp_path / "student"), tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "student")
    assert sorted(path.name for path in moved.iterdir()) == ["SHA256SUMS", "config.json", "model.safetensors"]
    assert json.loads((moved / "config.json").read_text())["label_names"] == list(CLASSES)
    assert load_file(moved / "model.safetensors").keys() == state().keys()
    assert read_weights(str(moved)).classes == CLASSES

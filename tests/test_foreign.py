"""Checkpoints of other tools: what is seen through, what is refused by name, and advice that is right."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Distill
from safetensors.torch import save_file
from torch import Tensor, nn

from distillcli.config.schema import MemberConfig, ModelConfig, TrainConfig
from distillcli.distillation.plan import check_weights, make_plan
from distillcli.distillation.reopening import reopen_model
from distillcli.distillation.results import images_words
from distillcli.distillation.students import new_backbone
from distillcli.errors import UserError
from distillcli.formats.timm_folder import write as export
from distillcli.models.backbone import Backbone, build
from distillcli.models.ensemble import Ensemble
from distillcli.models.matching import load_into
from distillcli.models.weights import read_weights
from distillcli.runtime import seed_everything
from distillcli.sources.open import open_source
from distillcli.teachers.frozen import open_teacher
from distillcli.types import LOGITS_ONLY, Inputs
from distillcli.views.loader import Data
from tests.tiny import CPU, open_tiny, tiny

CLASSES = 4
State = dict[str, Tensor]


def fresh(seed: int = 0, name: str = "test_resnet", classes: int = CLASSES) -> Backbone:
    seed_everything(seed, name)
    return build(ModelConfig(name), Inputs(classes, 32), "student").eval()


def state(seed: int = 0, classes: int = CLASSES) -> State:
    return dict(fresh(seed, classes=classes).net.state_dict())


def under(prefix: str, seed: int = 0) -> State:
    return {prefix + name: value for name, value in state(seed).items()}


def without(tensors: State, *endings: str) -> State:
    return {name: value for name, value in tensors.items() if not name.endswith(endings)}


EXTRAS: dict[str, Any] = {"epoch": 3, "optimizer": {"state": {0: {"step": torch.zeros(())}}, "param_groups": [{}]}}
AVERAGE = {"n_averaged": torch.tensor(7), **under("module.")}
CRITERION = {"criterion.weight": torch.ones(3), "train_acc.tp": torch.zeros(())}

# What people's tools write, around the weights of one and the same model.
SEEN_THROUGH: dict[str, Any] = {
    "timm": {"state_dict": state(), "arch": "test_resnet", "args": argparse.Namespace(lr=0.1), **EXTRAS},
    "timm ema": {"state_dict": state(9), "state_dict_ema": state(), **EXTRAS},
    "torchvision": {"model": state(), "lr_scheduler": {"last_epoch": 3}, **EXTRAS},
    "torchvision ema": {"model": state(9), "model_ema": AVERAGE, **EXTRAS},
    "averaged": AVERAGE,
    "lightning": {"state_dict": under("model."), "hyper_parameters": {"lr": 0.1}, "loops": {}, **EXTRAS},
    "lightning net": {"state_dict": {**under("net."), **CRITERION}, **EXTRAS},
    "lightning compiled": {"state_dict": under("model._orig_mod."), **EXTRAS},
    "tutorial": {"model_state_dict": state(), "loss": torch.tensor(0.3), **EXTRAS},
    "tutorial under DDP": {"model_state_dict": under("module."), **EXTRAS},
    "model_state": {"model_state": state(), "best_acc": 0.5},
    "net": {"net": under("module."), "acc": 91.2, "epoch": 3},
    "weights": {"weights": state()},
    "params": {"params": state(), "params_ema": state()},
    "ordered": OrderedDict(state()),
    "parameters": OrderedDict((name, nn.Parameter(v, v.is_floating_point() and False)) for name, v in state().items()),
    "with an epoch beside": {**state(), "epoch": 3},
    "compiled within": {name.replace("layer1.", "layer1._orig_mod."): value for name, value in state().items()},
    "encoder": under("encoder."),
    "detector": {"state_dict": {**under("backbone."), "neck.weight": torch.ones(2)}, "meta": {"epoch": 1}},
    "moco": {
        "state_dict": {**under("module.encoder_q."), **under("module.encoder_k.", 9), "module.queue": torch.ones(2)}
    },
    "dino": {"teacher": {**under("backbone."), "dino_head.last.weight": torch.ones(2)}},
    "teacher.backbone": {"model": {**under("teacher.backbone."), "student.backbone.conv1.0.weight": torch.ones(2)}},
    "deep": {"state": {"model": {"module": state()}}},
    "the same twice": {"model": state(), "best": state()},
    "no counters": without(state(), "num_batches_tracked"),
    "profiled": {**state(), "total_ops": torch.zeros(1), "conv1.0.total_params": torch.zeros(1)},
}


@pytest.fixture(scope="module")
def data() -> Data:
    return open_tiny(tiny())


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    config = tiny("student.name=test_resnet")
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, channels_last=False))


def saved(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)  # type: ignore[arg-type]
    return path


def equal(model: Backbone, like: State, tolerance: float = 0.0) -> bool:
    values = model.net.state_dict()
    return all(
        torch.allclose(values[name], value.float(), rtol=tolerance, atol=tolerance)
        for name, value in like.items()
        if not name.endswith("num_batches_tracked")
    )


def opened(path: Path, config: TrainConfig, data: Data) -> dict[str, Backbone]:
    """The model of ``path`` as student, as teacher, as a member of an ensemble, and as what ``eval`` measures."""
    member = MemberConfig("test_resnet", checkpoint=str(path))
    classes = data.source.classes

    def taught(**changes: Any) -> Any:
        teacher = dataclasses.replace(config.teacher, checkpoint=str(path), **changes)
        return open_teacher(dataclasses.replace(config, teacher=teacher), [str(path)], classes, LOGITS_ONLY, CPU)

    ensemble = taught(members=[member]).backbone
    assert isinstance(ensemble, Ensemble)
    single = ensemble.members[0]
    assert isinstance(single, Backbone)
    student = dataclasses.replace(config.student, checkpoint=str(path))
    return {
        "student": new_backbone(dataclasses.replace(config, student=student), data, "student"),
        "teacher": taught().backbone,
        "member": single,
        "eval": reopen_model(str(path), data.source, config.dataset, False, CPU, "test_resnet"),
    }


@pytest.mark.fault("F5.1", "R12")
@pytest.mark.parametrize("form", SEEN_THROUGH)
def test_every_form_holds_the_same_model_wherever_it_is_used(
    form: str, config: TrainConfig, data: Data, tmp_path: Path
) -> None:
    path = saved(tmp_path / "weights.pth", SEEN_THROUGH[form])
    for use, model in opened(path, config, data).items():
        assert equal(model, state()), use


@pytest.mark.fault("F5.2")
def test_the_older_format_of_torch_is_read(config: TrainConfig, data: Data, tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pth", {"model": state(), **EXTRAS}, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert all(equal(model, state()) for model in opened(path, config, data).values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_cast(dtype: torch.dtype, tmp_path: Path) -> None:
    half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state().items()}
    save_file(half, tmp_path / "half.bin")  # by content, whatever the file is called
    model = fresh(1)
    load_into(model, read_weights(str(tmp_path / "half.bin")), "student")
    assert equal(model, half)
    assert model.net.conv1[0].weight.dtype == torch.float32


@pytest.mark.fault("R12")
@pytest.mark.parametrize(
    ("form", "place"),
    [("timm ema", ["'state_dict_ema'"]), ("moco", ["'state_dict.module.encoder_q'"]), ("ordered", [])],
)
def test_a_run_says_which_weights_of_a_file_it_takes(form: str, place: list[str], tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pth", SEEN_THROUGH[form])
    config = tiny(f"teacher.checkpoint={path}")
    found = check_weights(make_plan(config, open_source(config.dataset)))
    assert found == [f"teacher.checkpoint={path}: its weights are under {words}" for words in place]


# --- what is refused ----------------------------------------------------------------------------------------------


def refusal(content: object, path: Path, key: str = "teacher", name: str = "test_resnet") -> str:
    """The one line with which these weights are refused for a teacher or student."""
    file = path / "weights.pth"
    torch.save(content, file)
    config = tiny(f"{key}.name={name}", f"{key}.checkpoint={file}")
    with pytest.raises(UserError) as caught:
        check_weights(make_plan(config, open_source(config.dataset)))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{key}.checkpoint={file}") or str(file) in message.split(": ")[0]
    return message


@pytest.mark.fault("F5.1", "R10")
@pytest.mark.parametrize("key", ["teacher", "student"])
def test_weights_of_another_model_are_compared_name_by_name(key: str, tmp_path: Path) -> None:
    message = refusal({"model_state_dict": under("model."), **EXTRAS}, tmp_path, key, "test_vit")
    own = fresh(name="test_vit").net.state_dict()
    theirs = len(without(state(), "num_batches_tracked"))
    assert f"0 of its {len(own)} tensors match" in message
    assert f"{len(own)} are missing from the file (first cls_token)" in message
    assert f"{theirs} are unexpected in it (first model.conv1.0.weight)" in message
    assert "fit.mode" not in message
    assert f"set {key}.name to the model that was saved" in message


def test_a_larger_model_that_holds_all_names_of_a_smaller_one_is_another_model(tmp_path: Path) -> None:
    message = refusal(under("model.") | {"model.layer1.9.conv1.weight": torch.zeros(3)}, tmp_path)
    assert "77 of its 77 tensors match; 1 is unexpected in it (first layer1.9.conv1.weight)" in message


def test_two_models_that_fit_are_not_guessed_between(tmp_path: Path) -> None:
    message = refusal({"student": under("module."), "teacher": state(9)}, tmp_path)
    assert "holds several models that fit, 'student.module' and 'teacher'; save the one you mean alone" in message


@pytest.mark.fault("F5.5", "R11")
def test_a_body_without_a_classifier_is_called_so(tmp_path: Path) -> None:
    message = refusal({"state_dict": {**without(under("backbone."), "fc.weight", "fc.bias")}}, tmp_path)
    assert (
        "holds no classifier, only the body of test_resnet; fit it with a new classifier by teacher.fit.mode=always"
        in (message)
    )


@pytest.mark.fault("R8")
@pytest.mark.parametrize(
    ("width", "said"),
    [
        (1000, "has 1000 classes without names, and the data has 4; name them with teacher.classes=FILE, or fit it"),
        (1, "has 1 class without names, and the data has 4; fit it with a new classifier by teacher.fit.mode=always"),
    ],
)
def test_a_classifier_of_another_size_is_told_with_both_numbers(width: int, said: str, tmp_path: Path) -> None:
    assert said in refusal({"model": state(classes=width)}, tmp_path)


def test_the_advice_to_fit_a_classifier_works(tmp_path: Path) -> None:
    for content in ({"m": without(under("x."), "fc.weight", "fc.bias")}, state(classes=1000)):
        path = saved(tmp_path / "weights.pth", content)
        config = tiny(f"teacher.checkpoint={path}", "teacher.fit.mode=always")
        check_weights(make_plan(config, open_source(config.dataset)))


def _archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _torchscript() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), stream)  # type: ignore[no-untyped-call]
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, kernel=np.zeros(3))
    return stream.getvalue()


OTHER_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "TorchScript": (_torchscript, "a TorchScript archive, which holds code"),
    "ONNX": (
        lambda: b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\x80\x01" + bytes(200),
        "an ONNX file, not PyTorch weights",
    ),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(200), "weights of Keras or another HDF5 file"),
    "Keras": (lambda: _archive(**{"config.json": b"{}", "model.weights.h5": b"x"}), "weights of Keras"),
    "TFLite": (lambda: b"\x1c\x00\x00\x00TFL3" + bytes(200), "a TensorFlow Lite file"),
    "NPZ": (_npz, "an NPZ archive of NumPy arrays"),
    "NPY": (lambda: b"\x93NUMPY\x01\x00" + bytes(200), "a file of NumPy arrays"),
    "pickle": (lambda: pickle.dumps({"conv1.weight": [1.0]}), "a plain pickle, which could run code"),
    "GGUF": (lambda: b"GGUF\x03" + bytes(200), "a GGUF file"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(200), "a packed file (gzip)"),
    "index": (lambda: json.dumps({"weight_map": {}}).encode(), "a JSON file, not weights"),
    "other zip": (lambda: _archive(**{"photos/1.jpg": b"x"}), "a zip archive of other files (it holds photos/1.jpg)"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(200), "an image, not weights"),
}


@pytest.mark.fault("F5.5", "F4.1")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", OTHER_FILES)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_file_of_another_kind_is_refused_by_what_it_is(kind: str, suffix: str, tmp_path: Path) -> None:
    content, said = OTHER_FILES[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content())
    with pytest.raises(UserError) as caught:
        read_weights(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: {said}"), message
    assert "\n" not in message
    assert "truncated" not in message
    assert "weights_only" not in message


class Settings:
    """Something of a user's own in a checkpoint."""


@pytest.mark.fault("F5.3", "F4.1")
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"net": {}, "epoch": 3, "best_acc": np.float64(0.5)}, "its entry 'best_acc' is a NumPy value"),
        ({"loss": np.zeros(3), "net": {}}, "its entry 'loss' is a NumPy value"),
        ({"hyper_parameters": Settings()}, "its entry 'hyper_parameters' is a Python object"),
        (nn.Linear(2, 2), "a whole pickled object (torch.nn.modules.linear.Linear)"),
        ({"model": nn.Linear(2, 2)}, "its entry 'model' is a Python object (torch.nn.modules.linear.Linear)"),
    ],
    ids=["scalar", "array", "object", "model", "wrapped model"],
)
def test_what_is_not_loaded_is_named_with_its_entry(content: object, said: str, is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError) as caught:
        read_weights(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: {said}"), message
    assert "model.state_dict()" in message
    assert "\n" not in message
    assert "safe_globals" not in message


def test_another_pickle_protocol_is_named(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "weights.pt", pickle_protocol=4)
    with pytest.raises(UserError, match="save it again without pickle_protocol"):
        read_weights(str(tmp_path / "weights.pt"))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_an_older_file_that_is_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pth", state(), _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_weights(str(path))


@pytest.mark.fault("F1.11")
def test_a_teacher_trained_on_images_of_another_mean_is_refused_with_what_mends_it(data: Data, tmp_path: Path) -> None:
    args = {"pretrained_cfg_overlay": {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}}
    other = build(ModelConfig("test_resnet", args=args), Inputs(CLASSES, 32), "student")
    export(other, tmp_path / "student", data.source.classes, 1.0)
    given = f"teacher.checkpoint={tmp_path / 'student'}"
    with pytest.raises(UserError, match=r"was trained on images of mean \[0\.1, 0\.2, 0\.3\]") as caught:
        open_teacher(tiny(given), [str(tmp_path / "student")], data.source.classes, LOGITS_ONLY, CPU)
    fix = str(caught.value).split("; set ")[1].strip("'")
    mended = open_teacher(tiny(given, fix), [str(tmp_path / "student")], data.source.classes, LOGITS_ONLY, CPU)
    assert torch.equal(mended.backbone.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))  # type: ignore[union-attr,operator]


@pytest.mark.fault("F1.11")
def test_size_crop_mean_and_std_of_the_images_are_said() -> None:
    crop = dataclasses.replace(tiny().dataset, image_size=224, crop_fraction=0.875)
    student = fresh(name="resnet18").spec
    teacher = dataclasses.replace(student, mean=(0.5,), std=(0.25,))
    seen = "224 x 224 pixels, centre crop of 87.5 % of the shorter side; "
    own = "mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225"
    assert images_words(crop, student, student) == images_words(crop, student, None) == seen + own
    assert images_words(crop, student, teacher) == f"{seen}teacher: mean 0.5 and std 0.25; student: {own}"


# --- eval ---------------------------------------------------------------------------------------------------------


def test_eval_measures_a_foreign_file_whose_model_is_named(distill: Distill, tmp_path: Path) -> None:
    path = saved(tmp_path / "best.ckpt", {"state_dict": under("model."), **EXTRAS})
    given = ["eval", f"checkpoint={path}", "dataset=fake", "dataset.classes=4", "dataset.samples=64"]
    given += ["dataset.image_size=32", "trainer.device=cpu", "format=json"]
    nameless = distill(*given)
    assert (nameless.code, "name it with model=NAME" in nameless.stderr) == (2, True)
    measured = distill(*given, "model=test_resnet")
    assert measured.code == 0, measured.stderr
    assert json.loads(measured.stdout)["model"] == "test_resnet"
    other = distill(*given, "model=test_vit")
    assert other.code == 2
    assert "does not fit test_vit: 0 of its" in other.stderr
    assert "set model to the model that was saved" in other.stderr

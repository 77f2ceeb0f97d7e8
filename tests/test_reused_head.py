"""SimKD: a student that ends in its teacher's classifier, from the joined model to its exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distillcli.config.schema import ModelConfig
from distillcli.config.terms import ReusedHeadOptions, parse_options
from distillcli.distillation.students import student_model, with_teachers_head
from distillcli.errors import UserError
from distillcli.formats.timm_folder import write as export
from distillcli.models.backbone import Backbone, build, describe
from distillcli.models.matching import load_into
from distillcli.models.weights import read_weights
from distillcli.reused_head import ReusedHead, join, start_from
from distillcli.runtime import seed_everything
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.terms import TERMS
from distillcli.types import Batch, Inputs, Output, Spec, Taps
from tests.conftest import Distill
from tests.tiny import setting, tiny

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")

SIZE = 64


def backbone(model: ModelConfig, seed: int = 0) -> Backbone:
    seed_everything(seed)
    return build(model, Inputs(7, SIZE), "student")


def joined(student: str, teacher: str, **options: Any) -> tuple[Backbone, Backbone, Backbone]:
    """Student, teacher, and the model that joins them, with their weights."""
    models = [ModelConfig(student), ModelConfig(teacher)]
    parts = [backbone(model, seed) for seed, model in enumerate(models)]
    whole = backbone(join(*models, **({"reduction": 2, "relu": True, "largest": None} | options)), 2)
    start_from(whole.net, parts[0].net, parts[1].net)
    return parts[0], parts[1], whole.eval()


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def term(student: Spec, teacher: Spec) -> Any:
    return TERMS["simkd"](ReusedHeadOptions(), setting(student, teacher))


# --- the loss -----------------------------------------------------------------------------------------------------


def test_simkd_is_the_mean_squared_difference_of_the_features_and_knows_nothing_of_labels() -> None:
    spec = Spec("model", 5, 8, ((4, 8, 6),), 0, 0, (6, 4, 3))
    generator = torch.Generator().manual_seed(0)
    mine, its = (torch.randn(3, 6, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    mine.requires_grad_()

    def value(labels: Tensor) -> Tensor:
        sides = [Output(torch.zeros(3, 5), None, {}, features=maps) for maps in (mine, its)]
        found: Tensor = term(spec, spec)(*sides, Batch(torch.zeros(3, 3, 2, 2), labels, torch.arange(3)), 4.0)
        return found

    first = value(torch.zeros(3, dtype=torch.int64))
    first.backward()
    difference = mine.detach().numpy() - its.numpy()
    assert first.item() == pytest.approx(np.mean(difference**2), rel=1e-12)
    assert mine.grad is not None
    np.testing.assert_allclose(mine.grad.numpy(), 2 * difference / difference.size, rtol=1e-12)
    assert value(torch.ones(3, dtype=torch.int64)) == first


# --- the joined model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("test_efficientnet", "test_resnet"),
        ("test_resnet", "mobilenetv3_small_050"),  # its head has a convolution
        ("test_vit", "test_resnet"),
        ("test_resnet", "convnext_atto"),  # its head has a norm
        ("mobilenetv3_small_050", "regnetx_002"),
    ],
)
def test_the_answer_is_the_teachers_head_on_the_projected_last_stage(student: str, teacher: str) -> None:
    body, expert, whole = joined(student, teacher)
    last = len(body.spec.stage_shapes) - 1
    with torch.no_grad():
        stage = body.eval()(images(), Taps(stages=(last,))).stages[last]
        expected = expert.eval().net.forward_head(whole.net.projector(stage))
        seen = whole(images(), Taps(stages=(last, 0), embedding=True, features=True))
        torch.testing.assert_close(seen.logits, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen.logits, whole(images()).logits, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(seen.stages[last], stage, rtol=1e-4, atol=1e-5)
    assert seen.features is not None
    assert seen.embedding is not None
    assert expert.spec.feature_shape is not None
    assert seen.features.shape[1] == expert.spec.feature_shape[0]
    assert seen.embedding.shape[1] == expert.spec.embedding_width == whole.spec.embedding_width


def test_the_head_of_the_teacher_is_all_that_is_kept_of_it() -> None:
    _, _, whole = joined("test_efficientnet", "resnet18")
    assert {name for name, _ in whole.net.teacher_head.named_parameters()} == {"fc.weight", "fc.bias"}
    assert whole.spec.params == sum(parameter.numel() for parameter in whole.net.parameters())
    assert whole.spec.params < describe(ModelConfig("resnet18"), Inputs(7, SIZE), "teacher").params / 10


def test_the_head_is_not_trained_and_all_else_is() -> None:
    config = tiny("distill=simkd", "teacher.name=mobilenetv3_small_050", f"dataset.image_size={SIZE}")
    model = student_model(config, Inputs(7, SIZE))
    expert = backbone(config.teacher)
    teacher = FrozenTeacher(expert, "fp32", Taps(features=True))
    whole = with_teachers_head(model, backbone(ModelConfig("test_efficientnet")), teacher, config)
    target = teacher(Batch(images(8), torch.zeros(8), torch.arange(8)))
    start = {name: value.clone() for name, value in whole.net.state_dict().items()}
    trained = [parameter for parameter in whole.net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        term(whole.spec, expert.spec)(whole.train()(images(8), Taps(features=True)), target, None, 1.0).backward()
        optimizer.step()
    moved = {name for name, value in whole.net.state_dict().items() if not torch.equal(value, start[name])}
    assert not {name for name in moved if name.startswith("teacher_head.")}
    assert moved >= {name for name, _ in whole.net.named_parameters() if not name.startswith("teacher_head.")}
    assert not whole.net.teacher_head.training


@pytest.mark.fault("F8.5")
def test_larger_maps_are_averaged_before_the_projector(tmp_path: Path) -> None:
    """As in the authors' code, where the projector sees maps of the size of the teacher's."""
    config = tiny("distill=simkd", "student.name=test_vit", "teacher.name=resnet18", f"dataset.image_size={SIZE}")
    model = student_model(config, Inputs(7, SIZE))
    assert model.args["largest"] == [2, 2]  # the student has 4 x 4 positions
    whole = backbone(model).eval()
    last = whole.net.body.forward_intermediates(
        (images() - whole.mean) / whole.std, indices=[-1], intermediates_only=True
    )[0]
    assert last.shape[2:] == (4, 4)
    pooled = last.reshape(2, -1, 2, 2, 2, 2).mean(dim=(3, 5))
    found = whole(images(), Taps(features=True)).features
    torch.testing.assert_close(found, whole.net.projector(pooled))
    export(whole, tmp_path / "student", tuple("abcdefg"), 1.0)
    again = backbone(ModelConfig(f"local-dir:{tmp_path / 'student'}", pretrained=True)).eval()
    torch.testing.assert_close(again(images()).logits, whole(images()).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.fault("F8.5")
def test_maps_that_are_not_larger_are_left_as_they_are() -> None:
    config = tiny("distill=simkd", "student.name=resnet18", "teacher.name=test_resnet", f"dataset.image_size={SIZE}")
    assert "largest" not in student_model(config, Inputs(7, SIZE)).args


def test_every_classifier_of_a_head_with_two_has_its_name() -> None:
    _, _, whole = joined("test_efficientnet", "repvit_m0_9")
    names = [name for name, _ in whole.net.named_parameters() if name.startswith(whole.classifier)]
    assert {name.split(".l")[0] for name in names} == {"teacher_head.head.head", "teacher_head.head.head_dist"}


def test_a_joined_student_is_ordinary_where_it_is_used_again(tmp_path: Path) -> None:
    """Its head is trained like any other, and what cannot take its weights says how to take all of it."""
    _, _, whole = joined("test_efficientnet", "test_resnet")
    export(whole, tmp_path / "student", tuple("abcdefg"), 1.0)
    again = backbone(ModelConfig(f"local-dir:{tmp_path / 'student'}", pretrained=True))
    assert all(parameter.requires_grad for parameter in again.net.parameters())
    torch.testing.assert_close(again.eval()(images()).logits, whole(images()).logits, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"ends in its teacher's head.*student\.name=local-dir:RUN/student"):
        load_into(backbone(ModelConfig("test_resnet")), read_weights(str(tmp_path / "student")), "student")


@pytest.mark.parametrize("relu", [True, False])
def test_features_are_negative_only_without_the_last_relu(relu: bool) -> None:
    _, _, whole = joined("test_efficientnet", "test_resnet", relu=relu)
    features = whole(images(), Taps(features=True)).features
    assert features is not None
    assert bool((features < 0).any()) is not relu


def test_a_larger_reduction_is_a_smaller_model() -> None:
    params = [joined("test_efficientnet", "resnet18", reduction=factor)[2].spec.params for factor in (2, 4, 8)]
    assert params == sorted(params, reverse=True)
    assert len(set(params)) == 3


def test_weights_that_the_body_excepts_from_decay_are_excepted() -> None:
    _, _, whole = joined("test_vit", "test_resnet")
    assert isinstance(whole.net, ReusedHead)
    names = {name for name, _ in whole.net.named_parameters()}
    assert (
        whole.net.no_weight_decay() & names == {"body.pos_embed", "body.reg_token", "body.cls_token"} & names != set()
    )
    _, _, whole = joined("test_efficientnet", "test_resnet")
    assert isinstance(whole.net, ReusedHead)
    assert whole.net.no_weight_decay() == set()


@pytest.mark.parametrize("teacher", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_a_teacher_whose_head_takes_tokens_is_refused_in_one_line(teacher: str) -> None:
    config = tiny("distill=simkd", f"teacher.name={teacher}", "dataset.image_size=32")
    with pytest.raises(UserError, match=rf"^distill\.terms\.simkd: the head of {teacher} takes no feature map.*$"):
        student_model(config, Inputs(4, 32))


def test_an_objective_without_it_leaves_the_student_as_it_is() -> None:
    config = tiny("distill=simkd", "+distill.terms.kl.weight=1", "distill.terms.simkd.weight=0")
    assert student_model(config, Inputs(4, 32)) is config.student


def test_reduction_is_checked() -> None:
    with pytest.raises(UserError, match=r"^distill\.terms\.simkd\.reduction=0"):
        parse_options("simkd", {"reduction": 0})


# --- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teacher=ensemble", "teacher.members"),
        ("generations=2", "generations=2"),
        ("teacher.assistants=[{name: test_resnet}]", "teacher.assistants"),
        ("peers=[{name: test_resnet}]", "peers"),
    ],
)
def test_what_it_does_not_go_with_is_one_line(distill: Distill, override: str, words: str) -> None:
    answer = distill("train", "experiment=smoke", "distill=simkd", override)
    assert answer.code == 2
    assert f"distill.terms.simkd and {words} cannot be combined: " in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize("student", ["test_vit", "test_efficientnet"])
def test_a_run_ends_with_one_model_that_needs_no_teacher(distill: Distill, tmp_path: Path, student: str) -> None:
    """Trained, exported, evaluated from its folder and its checkpoint, loaded by timm: the same answers each time."""
    common = ("experiment=smoke", "distill=simkd", "trainer.threads=1", "out=run", "trainer.epochs=1")
    common += ("teacher.fit.epochs=1", "dataset.samples=64")
    answer = distill("train", *common, f"student.name={student}")
    assert answer.code == 0, answer.stderr
    assert "import distillcli.reused_head  #" in answer.stdout
    assert "import timm\nimport distillcli.reused_head  #" in (tmp_path / "run" / "report.md").read_text("utf-8")
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert result["student"]["model"] == f"{student} with the head of test_resnet"
    assert result["baseline"]["model"] == student
    teacher = load_file(Path(tmp_path, result["teacher"]["run"]) / "student" / "model.safetensors")
    exported = load_file(tmp_path / "run" / "student" / "model.safetensors")
    heads = {name for name in exported if name.startswith("teacher_head.")}
    assert heads
    assert all(torch.equal(exported[name], teacher[name.removeprefix("teacher_head.")]) for name in heads)
    evaluated = distill("eval", "checkpoint=run", "format=json")
    assert evaluated.code == 0, evaluated.stderr
    measured = json.loads(evaluated.stdout)
    assert all(measured[key] == result["student"][key] for key in ("top1", "nll", "params", "macs"))
    checkpoint = distill("eval", "checkpoint=run/checkpoints/last.pt", "format=json")
    assert checkpoint.code == 0, checkpoint.stderr
    assert json.loads(checkpoint.stdout)["nll"] == result["student"]["nll"]
    net = timm.create_model(f"local-dir:{tmp_path / 'run' / 'student'}", pretrained=True)
    assert isinstance(net, nn.Module)
    assert {name: value.shape for name, value in net.state_dict().items()} == {
        name: value.shape for name, value in exported.items()
    }
    assert all(torch.equal(value, exported[name]) for name, value in net.state_dict().items())

"""Whatever can be refused is refused before a folder is claimed, an image decoded or a model fitted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distillcli import cli
from distillcli.config.check_published import check_published_weights
from distillcli.config.schema import ModelConfig
from distillcli.distillation import whole
from distillcli.distillation.plan import check_weights, make_plan
from distillcli.errors import UserError
from distillcli.formats.timm_folder import write
from distillcli.models import backbone
from distillcli.models.backbone import build, describe
from distillcli.sources.open import open_source
from distillcli.types import Inputs
from tests.tiny import CPU, Watch, open_tiny, tiny, train

QUICK = ["experiment=smoke", "trainer.device=cpu", "trainer.threads=1", "dataset.samples=64", "trainer.batch_size=16"]


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose student is neither the student nor the teacher of the tests."""
    folder = tmp_path_factory.mktemp("runs") / "vit"
    train(tiny("student.name=test_vit", "distill=none", "trainer.epochs=1"), folder)
    return folder


def entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


REFUSED = {
    "the batch in parts": (["distill=rkd", "trainer.accumulate=2"], r"trainer\.accumulate=2"),
    "mixed images and a memory": (["distill=crd", "augment.mixup=1"], r"distill\.terms\.crd"),
    "weights of another model": (["student.checkpoint={run}"], r"student\.checkpoint=.*does not fit student\.name"),
    "a teacher of another model": (["teacher.checkpoint={run}"], r"teacher\.checkpoint=.*does not fit teacher\.name"),
    "a peer of another model": (
        ["peers=[{{name: test_resnet, checkpoint: {run}}}]"],
        r"peers\[0\]\.checkpoint=.*does not fit peers\[0\]\.name",
    ),
    "an assistant of another model": (
        ["teacher.assistants=[{{name: test_resnet, checkpoint: {run}}}]"],
        r"teacher\.assistants\[0\]\.checkpoint=.*does not fit teacher\.assistants\[0\]\.name",
    ),
    "a member of another model": (
        ["teacher=ensemble", "teacher.members=[{{name: test_vit}}, {{name: test_resnet, checkpoint: {run}}}]"],
        r"teacher\.members\[1\]\.checkpoint=.*does not fit teacher\.members\[1\]\.name",
    ),
    "an assistant whose weights cannot be fetched": (
        ["teacher.assistants=[{{name: test_vit, pretrained: true}}]"],
        r"teacher\.assistants\[0\]\.pretrained=true: no weights for test_vit",
    ),
    "more frozen groups than there are": (
        ["student.name=test_vit", "student.checkpoint={run}", "student.freeze=99"],
        r"student\.freeze=99",
    ),
    "an argument that no optimizer has": (["+optimizer.args.betaz=3"], r"optimizer\.name=adamw: .*optimizer\.args"),
    "a warm-up longer than the fit of the teacher": (
        ["schedule.warmup_epochs=2", "trainer.epochs=3", "teacher.fit.epochs=2"],
        r"schedule\.warmup_epochs=2\.0: must be less than the 2 epochs of training",
    ),
    "a cache without room for embeddings": (["distill=rkd", "teacher.cache.mode=int8"], r"teacher\.cache\.mode=int8"),
    "a device that is not here": (["trainer.device=cuda:7"], r"trainer\.device=cuda:7: not on this machine"),
    "a precision that is not for CPUs": (["teacher.precision=fp16"], r"teacher\.precision=fp16"),
    "a teacher that may not be fitted": (["teacher.fit.mode=never"], r"teacher\.fit\.mode=never"),
    "a size that the model cannot take": (["student.name=vgg11", "student.image_size=8"], r"student\.image_size"),
    "a teacher that cannot normalise one image": (
        ["trainer.batch_size=1", "student.name=test_vit", "teacher.name=resnet18"],
        r"trainer\.batch_size=1 .*batch norms of resnet18 .*use trainer\.batch_size=2 or more",
    ),
    "a stage that the teacher does not have": (
        ["distill=hint", "distill.terms.hint.teacher_stage=17"],
        r"distill\.terms\.hint\.teacher_stage=17",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.fault("F2.3")
def test_it_is_refused_in_one_line_and_nothing_is_left(
    case: str, other_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "runs" / "smoke" / "before").mkdir(parents=True)
    (tmp_path / "runs" / "smoke" / "latest").symlink_to("before")
    before = entries(tmp_path)
    overrides, said = REFUSED[case]

    def claimed(*_: object) -> None:
        raise AssertionError("a folder was claimed")

    monkeypatch.setattr(whole, "run", claimed)
    code = cli.run(["train", *QUICK, *(override.format(run=other_run) for override in overrides)])
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.count("\n") == 1
    assert re.search(said, error), error
    assert entries(tmp_path) == before
    assert (tmp_path / "runs" / "smoke" / "latest").readlink() == Path("before")


@pytest.mark.parametrize("what", ["", "student", "student/model.safetensors"])
def test_an_exported_model_under_another_name_is_refused_by_its_card(what: str, tmp_path: Path) -> None:
    """While the config is checked: no torch is needed to read a name."""
    write(build(ModelConfig("test_vit"), Inputs(4, 32), "student"), tmp_path / "student", tuple("abcd"), 1.0)
    checkpoint = f"student.checkpoint={tmp_path / what}"
    with pytest.raises(
        UserError, match=r"holds test_vit, which does not fit student\.name=test_resnet; set student\.nam"
    ):
        tiny("student.name=test_resnet", checkpoint)
    tiny("student.name=test_vit", checkpoint)
    tiny("student.name=test_vit.r160_in1k", checkpoint)


@pytest.mark.fault("R64")
def test_published_weights_are_not_refused_where_some_were_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a machine that never fetched any is told so at once; others find out when the weights are loaded."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    config = tiny("teacher.assistants=[{name: test_vit, pretrained: true}]")
    with pytest.raises(UserError, match=r"^teacher\.assistants\[0\]\.pretrained=true: no weights for test_vit"):
        check_published_weights(config)
    check_published_weights(tiny("teacher.pretrained=true", "distill=none"))
    (tmp_path / "hub" / "models--timm--resnet18.a1_in1k").mkdir(parents=True)
    check_published_weights(config)


def test_what_is_not_refused_has_its_specs_and_an_objective() -> None:
    config = tiny("teacher.assistants=[{name: test_vit}]", "distill=hint", "dataset.image_size=48")
    plan = make_plan(config, open_source(config.dataset))
    check_weights(plan)
    assert [spec.name for spec in (*plan.teachers, plan.student)] == ["test_resnet", "test_vit", "test_efficientnet"]
    assert plan.inputs == Inputs(4, 48, 3) == open_tiny(config, CPU).inputs
    assert [*plan.objective.terms] == ["ce", "hint"]


def test_a_model_is_described_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass on the meta device takes up to a second, and a run asks for the same spec many times."""
    passes: list[str] = []
    original = backbone._described_anew
    monkeypatch.setattr(backbone, "_described", {})
    monkeypatch.setattr(
        backbone, "_described_anew", lambda model, *rest: passes.append(model.name) or original(model, *rest)
    )
    config = tiny("distill=simkd")
    plan = make_plan(config, open_source(config.dataset))
    check_weights(plan)
    assert sorted(passes) == ["reused_head", "test_efficientnet", "test_resnet"]


def test_a_spec_is_that_of_arguments_size_classes_and_channels() -> None:
    inputs = [Inputs(4, 32), Inputs(5, 32), Inputs(4, 48), Inputs(4, 32, 1)]
    specs = [
        describe(ModelConfig("test_vit", args=args), one, "student") for one in inputs for args in ({}, {"depth": 1})
    ]
    assert len({(spec.params, spec.macs) for spec in specs}) == 8


def test_latest_points_at_a_run_once_it_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that fails before its first step, as on an image that cannot be decoded, leaves ``latest`` alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "smoke" / "before").mkdir(parents=True)
    (tmp_path / "runs" / "smoke" / "latest").symlink_to("before")

    def broken(*_: object) -> None:
        raise UserError("an image cannot be decoded")

    monkeypatch.setattr(whole, "open_data", broken)
    assert cli.run(["train", *QUICK]) == 2
    assert (tmp_path / "runs" / "smoke" / "latest").readlink() == Path("before")
    (failed,) = [path for path in (tmp_path / "runs" / "smoke").iterdir() if path.name not in ("before", "latest")]
    assert json.loads((failed / "result.json").read_text())["status"] == "failed"
    assert (failed / "config.yaml").is_file()
    assert (failed / "environment.json").is_file()


# --- batches -------------------------------------------------------------------------------------------------------

NORMALISED = ("distill=none", "student.name=resnet18", "dataset.image_size=32")  # its last maps are 1 x 1


def planned(*overrides: str) -> None:
    config = tiny(*overrides)
    check_weights(make_plan(config, open_source(config.dataset)))


@pytest.mark.fault("F4.2", "R62")
@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.batch_size=1"],
        ["trainer.batch_size=4", "trainer.accumulate=4"],
        ["dataset.samples=7", "trainer.accumulate=4"],
        ["dataset.image_size=64", "trainer.progressive=[0.5,1.0]", "trainer.batch_size=1"],
        ["distill=kd", "peers=[{name: resnet18}]", "student.name=test_vit", "trainer.batch_size=1"],
        ["distill=kd", "teacher.assistants=[{name: resnet18}]", "student.name=test_vit", "trainer.batch_size=1"],
        ["distill=simkd", "student.name=test_vit", "teacher.name=resnet18", "trainer.batch_size=1"],
    ],
)
def test_one_image_that_a_batch_norm_cannot_normalise_is_refused(overrides: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"^trainer\.batch_size=\d+ with .*batch norms of .*use (trainer\.batch_size=\d+|fewer)"
    ):
        planned(*NORMALISED, *overrides)


@pytest.mark.fault("F4.2")
@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.batch_size=2"],
        ["trainer.batch_size=1", "dataset.image_size=64"],
        ["trainer.batch_size=1", "student.name=test_vit"],
        ["trainer.batch_size=4", "trainer.accumulate=2"],
    ],
)
def test_one_image_is_enough_where_every_norm_sees_several_values(overrides: list[str]) -> None:
    planned(*NORMALISED, *overrides)


@pytest.mark.fault("R62")
def test_a_last_batch_of_one_image_is_left_out(tmp_path: Path) -> None:
    watch = Watch()
    fake = ("dataset.samples=33", "trainer.batch_size=16", "trainer.epochs=1")
    config = tiny(*NORMALISED, *fake)
    assert len(open_source(config.dataset).train.labels) == 33
    train(config, tmp_path / "run", watch)
    assert watch.steps == 2


@pytest.mark.fault("F8.7")
@pytest.mark.parametrize(
    ("term", "least"), [("dist", 2), ("sp", 2), ("cc", 2), ("cc_neighbour", 2), ("rkd", 3), ("pkt", 2)]
)
def test_a_term_that_has_nothing_to_compare_in_a_batch_is_refused(term: str, least: int) -> None:
    few = ("student.name=test_vit", "teacher.name=test_vit", f"distill={term}")
    with pytest.raises(
        UserError, match=rf"{term} compares the images of a batch .*trainer\.batch_size={least} or more"
    ):
        planned(*few, f"trainer.batch_size={least - 1}")
    planned(*few, f"trainer.batch_size={least}")


def test_parts_without_an_image_are_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.accumulate=16: 10 images do not give every part one"):
        planned("dataset.samples=10", "trainer.accumulate=16")

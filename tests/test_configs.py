"""Every shipped YAML composes, passes the checks, and what it names can be built, on the meta device."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from distillcli.config.compose import compose
from distillcli.config.datasets import DATASETS
from distillcli.config.schema import EvalConfig, TrainConfig
from distillcli.config.search import builtin_folder
from distillcli.config.terms import check_terms, labels_only, needs_teacher
from distillcli.distillation.kinds import kind_of
from distillcli.distillation.students import student_model
from distillcli.models.backbone import describe
from distillcli.terms.objective import Objective
from distillcli.training.optim import build_optimizer, build_schedule
from distillcli.types import Inputs
from tests.tiny import setting

CONFIGS = builtin_folder()
FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
OPTIONS = [path for path in FILES if len(path.parts) > 1]
EXPERIMENTS = [path for path in OPTIONS if path.parts[0] == "experiment"]
CLASSES = {"digits": 10, "imagenet": 1000, "cifar100": 100}


def option_name(option: Path) -> str:
    """As it is chosen: ``bench/few_labels`` for ``experiment/bench/few_labels.yaml``."""
    return option.relative_to(option.parts[0]).with_suffix("").as_posix()


def overrides_of(option: Path, folder: Path) -> list[str]:
    """``group=option``, and what only the user can give: a folder of images, a decay for the average, a checkpoint."""
    group, name = option.parts[0], option_name(option)
    (folder / "class").mkdir(exist_ok=True)
    root = [f"dataset.root={folder}"] if group == "dataset" and "root" in DATASETS[name].keys else []
    given = {"teacher/mean.yaml": ["trainer.ema=0.99"], "experiment/embedding.yaml": [f"teacher.checkpoint={folder}"]}
    needed = given.get(option.as_posix(), [])
    return [f"experiment={name}" if group == "experiment" else f"{group}={name}", *root, *needed]


def composed(overrides: list[str]) -> TrainConfig:
    config = compose("train", overrides)
    assert isinstance(config, TrainConfig)
    return config


def can_be_built(config: TrainConfig) -> None:
    """Models, objective, optimizer and schedule, and the control's objective as well."""
    classes = config.dataset.classes if config.dataset.name == "fake" else CLASSES.get(config.dataset.name, 7)
    inputs = Inputs(classes, config.dataset.image_size)
    student = describe(student_model(config, inputs), inputs, "student")
    teacher = (kind_of(config).describe(config, student, inputs) or [student])[-1]
    assert student.classes == classes
    assert teacher.classes == (classes if config.teacher.head else 0)
    assert student.params > 0
    assert student.macs > 0
    check_terms(config.distill)
    objective = Objective(config.distill, setting(student, teacher))
    assert objective.words()
    assert needs_teacher(config.distill) == (config.distill.name not in ("none", "tfkd"))
    assert not needs_teacher(labels_only(config.distill))
    # Any module with parameters will do for these two.
    optimizer = build_optimizer(config.optimizer, [torch.nn.Linear(2, 2)], torch.nn.Identity())
    build_schedule(config.schedule, optimizer, config.trainer.epochs, 10).step_update(5)
    assert optimizer.param_groups[0]["lr"] > 0


def test_the_groups_are_those_of_the_contract() -> None:
    groups = {"teacher", "student", "dataset", "distill", "optimizer", "schedule", "augment", "trainer", "experiment"}
    assert {path.parts[0] for path in OPTIONS} >= groups


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_an_option_composes_and_builds(option: Path, tmp_path: Path) -> None:
    config = composed(overrides_of(option, tmp_path))
    if option.parts[0] not in ("experiment", "trainer", "tracker"):
        assert str(getattr(config, option.parts[0]).name)
    can_be_built(config)


@pytest.mark.parametrize("primary", ["train", "eval"])
def test_a_primary_config_composes(primary: str) -> None:
    config = compose(primary, [] if primary == "train" else ["checkpoint=resnet18"])
    assert isinstance(config, TrainConfig if primary == "train" else EvalConfig)


@pytest.mark.parametrize("option", [path for path in OPTIONS if path.parts[0] == "dataset"], ids=str)
def test_a_dataset_can_be_evaluated_on(option: Path, tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    config = compose("eval", ["checkpoint=resnet18", f"dataset={option.stem}", f"dataset.root={tmp_path}"])
    assert isinstance(config, EvalConfig)
    assert config.dataset is not None
    assert config.dataset.name in DATASETS


@pytest.mark.parametrize("option", EXPERIMENTS, ids=str)
def test_an_experiment_opens_with_its_command(option: Path) -> None:
    lines = (CONFIGS / option).read_text("utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert re.fullmatch(rf"# distill train (-m )?experiment={re.escape(option_name(option))}( .*)?", lines[1]), lines[1]


@pytest.mark.parametrize("option", EXPERIMENTS, ids=str)
def test_an_experiment_is_called_like_its_file(option: Path, tmp_path: Path) -> None:
    assert composed(overrides_of(option, tmp_path)).name == option.stem

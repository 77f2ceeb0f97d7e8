"""What is said before the first step: lines with a reason, and none without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distillcli.config.schema import ModelConfig
from distillcli.distillation.advice import (
    batch_warnings,
    family_warnings,
    planned_warnings,
    schedule_warnings,
    share_warnings,
    start_warnings,
    temperature_warnings,
)
from distillcli.distillation.plan import make_plan
from distillcli.models.backbone import describe
from distillcli.sources.open import open_source
from distillcli.types import Inputs
from tests.builders import objective, spec
from tests.conftest import Distill
from tests.tiny import tiny


@pytest.mark.parametrize("term", ["at", "nst", "fsp", "hint"])
def test_maps_of_two_families_are_warned_of_whichever_teaches(term: str) -> None:
    plain, pyramid = (describe(ModelConfig(name), Inputs(4, 32), "student") for name in ("test_vit", "test_resnet"))
    for student, teacher in ((pyramid, plain), (plain, pyramid)):
        (warning,) = family_warnings(["ce", term], student, teacher)
        assert warning.startswith(f"distill.terms.{term}: {teacher.name} and {student.name}")
        assert "\n" not in warning
        assert family_warnings(["ce", "kl", "dist"], student, teacher) == []
    assert family_warnings([term], pyramid, pyramid) == family_warnings([term], plain, plain) == []


@pytest.mark.fault("F1.9")
@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("schedule=multistep trainer.epochs=8", "schedule.milestones=[6, 8]: not all of it is reached"),
        ("schedule=multistep trainer.epochs=9", None),
        ("schedule.name=step trainer.epochs=10", "schedule.decay_epochs=30: not all of it is reached"),
        ("schedule.name=step schedule.decay_epochs=4 trainer.epochs=10", None),
        ("schedule=cosine trainer.epochs=1", None),
    ],
)
def test_a_decay_that_the_run_does_not_reach_is_said(schedule: str, said: str | None) -> None:
    found = schedule_warnings(tiny(*schedule.split()))
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


@pytest.mark.fault("R4")
@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ("distill.temperature=0.05", ["distill.temperature"]),
        ("distill.temperature_end=0.05", ["distill.temperature_end"]),
        ("+distill.terms.kl.temperature=0.05", ["distill.terms.kl.temperature"]),
        ("teacher.members=[{name:test_vit},{name:test_vit,temperature:0.05}]", ["teacher.members[1].temperature"]),
        ("distill.temperature=0.1", []),
    ],
)
def test_a_temperature_that_leaves_only_the_decision_is_said(overrides: str, keys: list[str]) -> None:
    found = temperature_warnings(tiny(*overrides.split()))
    assert [warning.split("=")[0] for warning in found] == keys


@pytest.mark.fault("R6")
def test_an_objective_says_whose_share_is_nothing() -> None:
    (said,) = share_warnings(tiny("distill.alpha=0"))
    assert said.startswith("distill.alpha=0: the student learns from the labels alone")
    assert share_warnings(tiny("distill.alpha=0.1")) == share_warnings(tiny("distill=none")) == []
    student = spec(4)
    assert objective({"ce": {}, "kl": {}}, student, student, alpha=1.0).words() == "1·kl(T=4)"


@pytest.mark.fault("R7")
def test_a_batch_larger_than_the_data_is_said_and_is_all_of_it(distill: Distill) -> None:
    assert batch_warnings(tiny(), 16) == []
    few = ("experiment=smoke", "dataset.samples=8", "trainer.batch_size=16", "trainer.device=cpu", "trainer.epochs=1")
    answer = distill("train", *few, "distill=none", "baseline=false")
    assert answer.code == 0
    assert "trainer.batch_size=16: there are 8 training images, so that every step takes them all" in answer.stderr


@pytest.mark.fault("F1.9")
def test_a_ramp_longer_than_the_run_is_said_by_the_command(distill: Distill) -> None:
    few = ("experiment=smoke", "dataset.samples=32", "trainer.device=cpu", "trainer.epochs=2", "baseline=false")
    few += ("distill=dkd", "teacher.fit.epochs=1")
    answer = distill("train", *few, "distill.terms.dkd.ramp=20")
    assert answer.code == 0, answer.stderr
    shown = " ".join((answer.stdout + answer.stderr).split())
    assert "distill.terms.dkd.ramp=20: in 2 epochs" in shown
    assert "no more than 10% of its weight" in shown
    config = tiny(*few[1:], "distill.terms.dkd.ramp=10%")
    plan = make_plan(config, open_source(config.dataset))
    assert not [warning for warning in planned_warnings(plan) if warning.startswith("distill.terms.dkd.ramp")]


def test_an_equal_teacher_has_nothing_to_teach() -> None:
    assert start_warnings(50.0, 51.0, "test") == []
    (warning,) = start_warnings(50.0, 50.0, "val")
    assert "50.00 on val" in warning


def test_a_run_from_its_own_teachers_weights_is_told_before_it_starts(tmp_path: Path, distill: Distill) -> None:
    few = ("experiment=smoke", "dataset.samples=64", "trainer.device=cpu", "trainer.epochs=1", "baseline=false")
    first = distill("train", *few, "distill=none", "student.name=test_resnet", "out=first")
    assert first.code == 0, first.stderr
    same = (
        "student.name=test_resnet",
        "student.checkpoint=first",
        "teacher.checkpoint=first",
        "student.freeze=2",
        "teacher.trust=true",
    )
    done = distill("train", *few, *same, "out=second")
    assert done.code == 0, done.stderr
    log = (tmp_path / "second" / "train.log").read_text()
    assert "is no better than the student is before the first step" in log
    assert "parameters are trained, the others are frozen" in log
    assert any(
        "before the first step" in line
        for line in json.loads((tmp_path / "second/result.json").read_text())["warnings"]
    )

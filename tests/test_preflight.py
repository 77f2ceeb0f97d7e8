"""What is said before the first step: lines with a reason, and none without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distillcli.config.schema import ModelConfig
from distillcli.distillation.advice import family_warnings, schedule_warnings, start_warnings
from distillcli.models.backbone import describe
from distillcli.types import Inputs
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


@pytest.mark.fault("F1.9")
def test_a_ramp_longer_than_the_run_is_said_by_the_command(distill: Distill) -> None:
    few = ("experiment=smoke", "dataset.samples=32", "trainer.device=cpu", "trainer.epochs=2", "baseline=false")
    for ramp, said in (("20", "no more than 10% of its weight"), ("10%", None)):
        answer = distill("train", *few, "distill=dkd", f"distill.terms.dkd.ramp={ramp}", "teacher.fit.epochs=1")
        assert answer.code == 0, answer.stderr
        shown = " ".join((answer.stdout + answer.stderr).split())
        assert (f"distill.terms.dkd.ramp={ramp}: in 2 epochs" in shown) == (said is not None)
        assert said is None or said in shown


def test_an_equal_teacher_has_nothing_to_teach() -> None:
    assert start_warnings(50.0, 51.0, "test") == []
    (warning,) = start_warnings(50.0, 50.0, "val")
    assert "50.00 on val" in warning


def test_a_run_from_its_own_teachers_weights_is_told_before_it_starts(tmp_path: Path, distill: Distill) -> None:
    few = ("experiment=smoke", "dataset.samples=64", "trainer.device=cpu", "trainer.epochs=1", "baseline=false")
    first = distill("train", *few, "distill=none", "student.name=test_resnet", "out=first")
    assert first.code == 0, first.stderr
    same = ("student.name=test_resnet", "student.checkpoint=first", "teacher.checkpoint=first", "student.freeze=2")
    done = distill("train", *few, *same, "out=second")
    assert done.code == 0, done.stderr
    log = (tmp_path / "second" / "train.log").read_text()
    assert "is no better than the student is before the first step" in log
    assert "parameters are trained, the others are frozen" in log
    assert any(
        "before the first step" in line
        for line in json.loads((tmp_path / "second/result.json").read_text())["warnings"]
    )

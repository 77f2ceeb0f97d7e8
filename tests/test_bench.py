"""distill bench: the parts of a step, and what they are said to mean."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tiny import CPU, open_tiny, tiny

from distillcli.cli import run
from distillcli.commands import bench
from distillcli.commands.completion import candidates
from distillcli.distillation import bench as distillation_bench
from distillcli.distillation.bench import peak_flops, profile
from distillcli.distillation.plan import make_plan
from distillcli.report.bench import Profile, grid, suggestion, summary
from distillcli.training import engine
from distillcli.training.step import PARTS

EVEN = Profile(
    batch_size=64,
    precision="fp32",
    teacher_precision="bf16",
    milliseconds={"data": 1.0, "teacher": 2.0, "forward": 3.0, "backward": 3.0, "optimizer": 1.0},
    peak_flops={"fp32": 1e11, "bf16": 4e11},
    student_share=0.5,
    teacher_share=0.7,
    memory_bytes=10**9,
)


def with_times(**milliseconds: float) -> Profile:
    return dataclasses.replace(EVEN, milliseconds=EVEN.milliseconds | milliseconds)


def test_rates_are_images_over_time_with_and_without_the_teacher() -> None:
    assert EVEN.step_milliseconds == 10.0
    assert EVEN.images_per_second == 6400.0
    assert EVEN.images_per_second_cached == 8000.0


@pytest.mark.parametrize(
    ("found", "key"),
    [
        (with_times(data=30.0), "trainer.workers"),
        (with_times(teacher=30.0), "teacher.cache"),
        (with_times(optimizer=10.0), "trainer.batch_size"),
        (dataclasses.replace(EVEN, student_share=0.1), "overhead"),
        (EVEN, "arithmetic"),
    ],
)
def test_the_suggestion_is_about_the_bottleneck(found: Profile, key: str) -> None:
    assert key in suggestion(found)


def test_the_shares_of_the_table_sum_to_the_step() -> None:
    rows = grid(EVEN)
    assert [row[0] for row in rows[1:]] == [
        "wait for data",
        "teacher",
        *(f"student {n}ward" for n in ("for", "back")),
        *("optimizer", "step"),
    ]
    assert sum(float(row[2].removesuffix(" %")) for row in rows[1:-1]) == pytest.approx(100)
    assert (rows[2][3], rows[4][3]) == ("70.0 %", "50.0 %")
    assert "8000 once the teacher's outputs are cached" in summary(EVEN)[0]


@pytest.mark.parametrize("objective", ["kd", "none"])
def test_a_profile_has_every_part_and_no_teacher_where_there_is_none(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillcli.distillation.bench.STEPS", 3)
    config = tiny(f"distill={objective}", "trainer.accumulate=2")
    data = open_tiny(config)
    found = profile(make_plan(config, data.source), data, CPU)
    assert tuple(found.milliseconds) == PARTS
    assert all(found.milliseconds[part] > 0 for part in PARTS if part != "teacher")
    assert (found.teacher_share is None) == (found.teacher_precision is None) == (objective == "none")
    assert 0 < found.student_share < 1
    assert found.memory_bytes > 10**6


def test_the_peak_is_that_of_a_product_of_matrices() -> None:
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e15


def test_the_command_prints_a_table_or_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distillcli.distillation.bench.STEPS", 2)
    overrides = [
        "experiment=smoke",
        "dataset.samples=64",
        "trainer.batch_size=16",
        "trainer.threads=1",
        "trainer.device=cpu",
    ]
    bench.run([*overrides, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["images_per_second_cached"] > found["images_per_second"] > 0
    assert set(found["milliseconds"]) == set(PARTS)


@pytest.mark.parametrize("argument", ["-m", "--cfg=job", "resume=nowhere", "distill.temprature=2", "--jsn"])
def test_what_bench_cannot_do_is_one_line(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", argument]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_completion_knows_the_keys_of_train() -> None:
    assert "trainer.batch_size=" in candidates(["bench"], "trainer.b")
    assert candidates(["bench"], "--") == ["--json"]


def test_the_step_that_is_timed_is_the_step_that_trains() -> None:
    assert distillation_bench.train_step is engine.train_step
    assert distillation_bench.ready is engine.ready


KINDS_OF_RUNS = {
    "own sizes": ("dataset.image_size=128", "student.image_size=32", "teacher.image_size=48"),
    "peers": ("peers=[{name: test_vit}]", "student.image_size=24"),
    "mean teacher": ("teacher=mean", "trainer.ema=0.9"),
    "ensemble": ("teacher=ensemble", "teacher.members=[{name: test_resnet}, {name: test_vit, image_size: 48}]"),
    "the teacher's head": ("distill=simkd",),
    "other arguments": ("student.name=test_vit", "+student.args.depth=1"),
}


@pytest.mark.parametrize("case", KINDS_OF_RUNS)
def test_the_models_that_are_timed_are_those_that_would_be_trained(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillcli.distillation.bench.STEPS", 1)
    monkeypatch.setattr("distillcli.distillation.bench.WARM_UP", 0)
    config = tiny("dataset.samples=32", "trainer.batch_size=8", *KINDS_OF_RUNS[case])
    data = open_tiny(config)
    plan = make_plan(config, data.source)
    wanted = distillation_bench.fresh_fit(plan, data, CPU)
    assert wanted.student.spec == plan.student
    assert wanted.student.image_size == (plan.config.student.image_size or config.dataset.image_size)
    assert [peer.spec.name for peer in wanted.peers] == [peer.name for peer in config.peers]
    if wanted.teacher is not None:
        assert wanted.teacher.live.backbone.spec == plan.teachers[-1]
    assert profile(plan, data, CPU).milliseconds["forward"] > 0

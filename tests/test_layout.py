"""The memory layout: set, measured once, remembered, and the same for a resumed run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import CPU, tiny

from distillcli.cli import run
from distillcli.config.schema import TrainConfig
from distillcli.models import memory_layout as layout
from distillcli.models.memory_layout import settle_layout
from distillcli.runs.result import read_result
from distillcli.types import Inputs


def settled(config: TrainConfig) -> bool | None:
    return settle_layout(config, Inputs(4, config.dataset.image_size), CPU).trainer.channels_last


def remember(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[str]:
    """Trials take ``seconds`` from now on; returns the names of the students that were timed."""
    timed: list[str] = []

    def measured(config: TrainConfig, *_: object) -> dict[str, float]:
        timed.append(config.student.name)
        return seconds

    monkeypatch.setattr(layout, "measure_layouts", measured)
    return timed


@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_set_is_not_measured(wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = remember(monkeypatch, {})
    assert settled(tiny(f"runs={tmp_path}", f"trainer.channels_last={str(wanted).lower()}")) is wanted
    assert timed == []


@pytest.mark.parametrize("faster", ["channels_last", "contiguous"])
def test_the_faster_layout_is_taken_and_not_asked_for_again(
    faster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(f"runs={tmp_path}", "trainer.channels_last=null")
    timed = remember(monkeypatch, {"channels_last": 2.0, "contiguous": 2.0, faster: 1.0})
    first = settled(config)
    assert first is (faster == "channels_last")
    remember(monkeypatch, {"channels_last": 1.0, "contiguous": 1.0, faster: 2.0})
    assert settled(config) is first
    assert timed == [config.student.name]
    for override in ("trainer.batch_size=32", "dataset.image_size=40", "student.name=test_resnet"):
        assert settled(tiny(f"runs={tmp_path}", "trainer.channels_last=null", override)) is not first, override


def test_a_run_records_the_measured_layout_and_resumes_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    timed = remember(monkeypatch, {"channels_last": 2.0, "contiguous": 1.0})
    small = ["experiment=smoke", "distill=none", "dataset.samples=32", "trainer.batch_size=16", "trainer.epochs=1"]
    assert run(["train", *small, "trainer.threads=1", "trainer.channels_last=null", "out=run"]) == 0
    result = read_result(Path("run"))
    assert result is not None
    assert result.channels_last is False
    (trial,) = json.loads(Path("runs/cache/layouts.json").read_text("utf-8")).values()
    assert trial["layout"] == "contiguous"
    Path("runs/cache/layouts.json").unlink()
    Path("run/result.json").unlink()  # as after a stop at the very end
    assert run(["train", "resume=run"]) == 0
    resumed = read_result(Path("run"))
    assert resumed is not None
    assert resumed.fingerprints == result.fingerprints
    assert result.student is not None
    assert timed == [result.student.model]


def test_a_trial_times_both_layouts(tmp_path: Path) -> None:
    seconds = layout.measure_layouts(tiny(f"runs={tmp_path}"), Inputs(4, 32), CPU)
    assert set(seconds) == {"channels_last", "contiguous"}
    assert min(seconds.values()) > 0

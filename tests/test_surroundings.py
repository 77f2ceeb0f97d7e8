"""The disk, the folders and the environment around a run: full, read-only, moved, or not there at all."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Distill
from test_stops import ALONE, SMOKE, Trip, Tripping, outcome, tripping  # noqa: F401 - a fixture

from distillcli.commands import train as commands
from distillcli.distillation import sessions
from distillcli.report import console
from distillcli.runs.folder import append_metrics, check_place, read_metrics, write_text
from distillcli.runs.result import read_result

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")

# --- the disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Files with these names, and what is written beside them, take nothing any more: a device that is always full."""
    names: set[str] = set()
    opened = Path.open

    def instead(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "r" not in mode and self.name.split(".tmp.")[0] in names:
            self.touch()
            return opened(Path("/dev/full"), mode, *args, **kwargs)
        return opened(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", instead)
    return names


@pytest.mark.fault("R35")
@pytest.mark.parametrize("full", [{"metrics.jsonl"}, {"metrics.jsonl", "result.json"}, {"config.yaml"}])
def test_a_full_disk_is_one_line_that_names_the_file(
    full: set[str], full_disk: set[str], distill: Distill, tmp_path: Path
) -> None:
    """Whichever file it was, and although what is known of the run cannot be written either."""
    full_disk |= full
    answer = distill(*ALONE, "out=run")
    assert answer.code == 2
    assert "Traceback" not in answer.stderr
    last_line = answer.stderr.splitlines()[-1]
    assert last_line.startswith("error: ")
    assert f"run/{min(full)}: the disk is full" in last_line or "metrics.jsonl: the disk is full" in last_line
    assert not list((tmp_path / "run").glob("*.tmp.*"))
    if "result.json" not in full:
        result = read_result(tmp_path / "run")
        assert result is not None
        assert result.status == "failed"
    full_disk.clear()
    if "config.yaml" not in full:
        assert distill("train", "resume=run").code == 0
        assert [row["kind"] for row in read_metrics(tmp_path / "run")] == ["train", "eval"]


@pytest.mark.fault("R35")
def test_a_torn_row_of_metrics_is_no_row(tmp_path: Path) -> None:
    append_metrics(tmp_path, {"kind": "train", "epoch": 1})
    whole_rows = (tmp_path / "metrics.jsonl").read_bytes()
    append_metrics(tmp_path, {"kind": "train", "epoch": 2, "loss": 0.5})
    torn = (tmp_path / "metrics.jsonl").read_bytes()
    for size in range(len(whole_rows), len(torn) - 1):
        (tmp_path / "metrics.jsonl").write_bytes(torn[:size])
        assert [row["epoch"] for row in read_metrics(tmp_path)] == ([1] if size < len(torn) - 1 else [1, 2])


@pytest.mark.fault("R35")
def test_a_full_disk_costs_lines_of_the_log_and_no_more(
    full_disk: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = sessions._RunLog(tmp_path / "train.log", delay=True)
    handler.baseFilename = "/dev/full"
    handler.handle(logging.makeLogRecord({"msg": "lost"}))
    assert capsys.readouterr().err == ""
    with pytest.raises(OSError, match="space"):
        handler.close()


@pytest.mark.fault("R35")
def test_a_text_that_does_not_fit_leaves_the_old_one(full_disk: set[str], tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    full_disk.add("file")
    with pytest.raises(OSError, match="file") as raised:
        write_text(tmp_path / "file", "new")
    assert raised.value.filename == str(tmp_path / "file")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


# --- folders -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("R36")
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("out=file", "is a file"),
        *((place, "Not a directory") for place in ("out=file/run", "runs=file/runs")),
        *((place, "Permission denied") for place in ("out=closed/run", "out=closed", "runs=closed")),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_first(
    place: str, why: str, distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the data are looked at, and so before torch is imported."""
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    allowed = os.access
    # The superuser, who may run the tests, may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed" and allowed(path, mode))
    monkeypatch.setattr(commands, "open_source", lambda _: pytest.fail("the data were opened"))
    answer = distill(*ALONE, place)
    assert answer.code == 2
    assert answer.stderr.count("\n") == 1
    assert why in answer.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "file"]


@pytest.mark.fault("R36")
def test_missing_parents_are_made_later(tmp_path: Path) -> None:
    check_place(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.fault("R65")
def test_a_run_goes_on_in_another_place_while_the_clock_jumps_back(
    distill: Distill,
    tripping: Tripping,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert distill(*SMOKE, f"runs={tmp_path / 'others'}", "out=whole").code == 0
    tripping(Trip(when=lambda names: {"_fit_student", "_train_epoch"} <= {*names}))
    assert distill(*SMOKE, "out=run").code == 130
    shutil.move(tmp_path / "run", tmp_path / "elsewhere" / "moved")
    tripping(Trip())
    hours = itertools.count(time.time(), -3600)
    monkeypatch.setattr(time, "time", lambda: next(hours))
    assert distill("train", "resume=elsewhere/moved").code == 0
    assert outcome(tmp_path / "elsewhere" / "moved") == outcome(tmp_path / "whole")
    assert not (tmp_path / "run").exists()


# --- what takes long -----------------------------------------------------------------------------------------------


@pytest.mark.fault("F6.13")
def test_what_takes_long_is_said_before(distill: Distill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "sys", SimpleNamespace(modules={}, stdout=sys.stdout, stderr=sys.stderr))
    lines = distill(*ALONE, "out=run").stdout.splitlines()
    said = [line for line in lines if line.startswith(("loading", "opening", "student  epoch", "student:"))]
    assert said[:2] == ["loading torch and timm", "opening 96 images of fake"]
    assert said[2].startswith("student  epoch 1/1  loss ")
    assert said[3] == "student: measuring it on 16 images (test), then exporting it"


# --- the environment -----------------------------------------------------------------------------------------------


@pytest.mark.fault("R67")
@pytest.mark.parametrize("home", [None, "/dev/null", "/nowhere"])
def test_a_run_needs_no_home(
    home: str | None, distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system knows of none: `~` stays a name, and only published weights are looked for below it."""
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("no such user")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert distill("doctor").code == 0
    answer = distill(*ALONE, "student.pretrained=true", "out=refused")
    assert answer.code == 2
    assert answer.stderr.startswith("error: student.pretrained=true: no weights for test_efficientnet")
    assert answer.stderr.count("\n") == 1
    assert distill(*ALONE, "out=run").code == 0

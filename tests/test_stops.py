"""A stop at any boundary loses nothing: continued, a run ends bit for bit like one that nobody stopped."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Distill
from forked import begin_on_terminal
from PIL import Image
from test_fits import holder, line
from tiny import CPU, STEPS, Watch, digest, files, last, open_tiny, tiny, train

from distillcli.config.schema import DatasetConfig
from distillcli.distillation import folders, sessions, whole
from distillcli.distillation.folders import describe, in_turn
from distillcli.distillation.recipes import ingredients
from distillcli.distillation.students import new_backbone
from distillcli.errors import Interrupted, UserError
from distillcli.runs.folder import read_metrics
from distillcli.runs.result import read_result
from distillcli.signals import Stop, leaving_at_once, listening
from distillcli.sources.open import open_source
from distillcli.sources.source import ArrayImages
from distillcli.training.checkpoint import read_checkpoint
from distillcli.views.store import open_store

# Two epochs of two steps.
RECIPE = (
    "trainer.batch_size=32",
    "distill=hint",
    "distill.terms.hint.stage=-1",
    "++student.args.drop_rate=0.3",
    "trainer.ema=0.9",
    "trainer.keep_optimizer=true",
)
EPOCH = 2


@dataclass
class Trip(Stop):
    """Asks to stop as a signal just before a look would: the ``at``-th look, or the first one that ``when`` likes.

    ``when`` sees the functions that led to a look, the innermost first. ``looks`` counts them.
    """

    at: float = float("inf")
    when: Callable[[list[str]], bool] = lambda _: False
    code: int = 130
    looks: int = 0

    def is_asked(self) -> bool:
        self.looks += 1
        if self.looks >= self.at or self.when(callers()):
            self.exit_code = self.code
        return bool(self.exit_code)


def callers() -> list[str]:
    found, frame = [], sys._getframe(2)
    while frame.f_back is not None:
        if "distillcli" in Path(frame.f_code.co_filename).parts:
            found.append(frame.f_code.co_name)
        frame = frame.f_back
    return found


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}
        for row in read_metrics(folder)
    ]


# --- one fit -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A fit that nobody stops, and how often it looks whether it should."""
    folder, trip = tmp_path_factory.mktemp("whole"), Trip()
    train(tiny(*RECIPE), folder, Watch(signal=trip))
    return folder, trip.looks


def fitted_with_stop(folder: Path, at: int) -> None:
    with pytest.raises(Interrupted):
        train(tiny(*RECIPE), folder, Watch(signal=Trip(at=at)))


@pytest.mark.fault("F3.1", "F3.4", "R40", "R43", "R48")
def test_a_fit_may_stop_at_every_boundary(uninterrupted: tuple[Path, int], tmp_path: Path) -> None:
    """Decoding, each step, each validation, the end of each epoch: the same checkpoint and the same rows."""
    whole_run, looks = uninterrupted
    assert looks == 2 * (EPOCH + 1), "after each step but the last, after each batch of validation, after each epoch"
    for at in range(1, looks + 1):
        folder = tmp_path / str(at)
        fitted_with_stop(folder, at)
        train(tiny(*RECIPE), folder)
        assert digest(last(folder)) == digest(last(whole_run)), at
        best = [read_checkpoint(run / "checkpoints" / "best.pt") for run in (folder, whole_run)]
        assert digest(best[0]) == digest(best[1]), at
        assert untimed(folder) == untimed(whole_run), at


@pytest.mark.fault("F3.4", "R48")
def test_a_stop_in_validation_makes_up_the_validation_alone(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tiny(*RECIPE), tmp_path / "run", Watch(signal=Trip(when=lambda place: "_validate" in place)))
    content = last(tmp_path / "run")
    assert (content["step"], content["trained"]["epoch"], content["last"]) == (EPOCH, 1, {})
    assert read_metrics(tmp_path / "run") == []
    watch = Watch()
    train(tiny(*RECIPE), tmp_path / "run", watch)
    assert watch.said == [f"student: resumed at the validation of epoch 1, after step {EPOCH}"]
    assert watch.steps == EPOCH, "the steps of the second epoch"
    assert [row["epoch"] for row, _ in watch.rows] == [1, 2]


@pytest.mark.fault("F3.6", "F6.7")
def test_the_row_of_a_resumed_epoch_is_of_the_whole_epoch(tmp_path: Path) -> None:
    train(tiny(*RECIPE), tmp_path / "whole")
    fit, stopped_after = tmp_path / "run", EPOCH + 1
    with pytest.raises(Interrupted):
        train(tiny(*RECIPE), fit, Watch(stop_after=stopped_after))
    kept = last(fit)["totals"]
    assert kept["count"] == 1
    watch = Watch()
    train(tiny(*RECIPE), fit, watch)
    assert watch.said == [f"student: resumed at epoch 2, step {stopped_after}"]
    assert untimed(fit) == untimed(tmp_path / "whole")
    (second,) = (row for row in read_metrics(fit) if row["kind"] == "train" and row["epoch"] == 2)
    assert second["seconds"] > kept["seconds"] > 0


@pytest.mark.fault("F6.9")
def test_checkpoints_that_are_gone_are_missed(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tiny(*RECIPE), tmp_path, Watch(stop_after=EPOCH + 1))
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    watch = Watch()
    train(tiny(*RECIPE), tmp_path, watch)
    assert watch.warnings == [f"{tmp_path}: 1 epochs are recorded, but no checkpoint is left; beginning at epoch 1"]
    assert [row["epoch"] for row in read_metrics(tmp_path) if row["kind"] == "train"] == [1, 2]


# --- a whole run ---------------------------------------------------------------------------------------------------

QUICK = ("trainer.threads=1", "trainer.device=cpu", "trainer.epochs=1", "dataset.samples=64")
SMOKE = ("train", "experiment=smoke", "teacher.fit.epochs=1", *QUICK)
ALONE = ("train", "experiment=smoke", "distill=none", "baseline=false", *QUICK)


Tripping = Callable[[Trip], None]


@pytest.fixture
def tripping(monkeypatch: pytest.MonkeyPatch) -> Tripping:
    """Gives the runs that follow a trip for their signals."""

    def use(trip: Trip) -> None:
        monkeypatch.setattr(sessions, "listening", lambda: nullcontext(trip))

    return use


def outcome(folder: Path) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """All of a run that no stop may change."""
    content = json.loads((folder / "result.json").read_text())
    told = ("status", "teacher", "baseline", "student", "best", "last", "gap_closed", "warnings")
    numbers = {key: content[key] for key in told}
    for model in ("teacher", "baseline", "student"):
        for key in ("latency_ms", "latency_spread_ms", "latency_setting", "latency_doubt", "run", "runs"):
            numbers[model].pop(key, None)
    return digest(last(folder)), numbers, untimed(folder)


# Where a run that is resumed again and again is stopped next: all of these functions led to the look.
PLACES = (
    {"find_teacher", "_train_epoch"},
    {"find_teacher", "_validate"},
    {"find_teacher", "measure"},
    {"find_teaching", "measure"},
    {"_fit_student", "_train_epoch"},
    {"_fit_student", "measure"},
    {"_find_control", "_train_epoch"},
    {"_find_control", "result_of_fit"},
    {"with_latency"},
    {"probe"},
)


@pytest.mark.slow
@pytest.mark.fault("F3.1", "F3.6", "F6.7", "F6.11", "R40", "R43", "R47", "R48")
def test_a_run_may_stop_wherever_it_looks(tmp_path: Path, distill: Distill, tripping: Tripping) -> None:
    """Teacher, its validation and measuring, student, control, probe, report: resumed as it says, and stopped again."""
    assert distill(*SMOKE, "probe=true", "out=whole", f"runs={tmp_path / 'others'}").code == 0
    folder, seconds = tmp_path / "run", 0.0
    arguments = [*SMOKE, "probe=true", f"out={folder}"]
    for place in PLACES:
        trip = Trip(when=lambda names, place=place: place <= {*names}, code=143)  # type: ignore[misc]
        tripping(trip)
        answer = distill(*arguments)
        assert answer.code == 143, place
        assert "Traceback" not in answer.stderr
        said, _, command = answer.stderr.splitlines()[-1].partition("; continue with: ")
        assert said == "interrupted"
        so_far = json.loads((folder / "result.json").read_text())
        assert so_far["status"] == "interrupted"
        assert so_far["seconds"] > seconds
        seconds = so_far["seconds"]
        program, *arguments = shlex.split(command)
        assert program == "distill"
    tripping(Trip())
    assert distill(*arguments).code == 0
    assert outcome(folder) == outcome(tmp_path / "whole")
    result = read_result(folder)
    assert result is not None
    assert (result.seconds or 0) > seconds
    assert sum(result.timings.values()) < (result.seconds or 0)


def at_the_very_end(names: list[str]) -> bool:
    """When the report is written and nothing is left to do."""
    return names[0] == "run"


@pytest.mark.slow
@pytest.mark.fault("F3.1", "F3.6", "R47", "R52")
def test_an_interrupted_sweep_says_how_it_goes_on(tmp_path: Path, distill: Distill, tripping: Tripping) -> None:
    """In the last moments of a job too: no further job starts."""
    folder = tmp_path / "my sweep"
    tripping(Trip(when=at_the_very_end, code=143))
    answer = distill("train", "-m", *ALONE[1:], f"out={folder}", "seed=0,1")
    assert answer.code == 143
    assert not (folder / "1").exists()
    assert (folder / "sweep.csv").exists()
    command = answer.stderr.splitlines()[-1].removeprefix("interrupted; continue with: ")
    assert shlex.quote(f"out={folder}") in command
    tripping(Trip())
    again = distill(*shlex.split(command)[1:])
    assert again.code == 0, again.stderr
    assert "job 0: already done" in again.stdout
    results = [read_result(folder / job) for job in ("0", "1")]
    assert [result and result.status for result in results] == ["ok", "ok"]


@pytest.mark.fault("F3.6", "R47")
def test_a_second_ctrl_c_says_how_it_goes_on(tmp_path: Path, distill: Distill, monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(whole, "find_teaching", impatient)
    folder = tmp_path / "a run"
    answer = distill(*SMOKE, f"out={folder}")
    assert answer.code == 130
    assert answer.stderr == f"interrupted; continue with: distill train {shlex.quote(f'resume={folder}')}\n"
    assert (read_result(folder)).status == "interrupted"  # type: ignore[union-attr]


# --- signals -------------------------------------------------------------------------------------------------------

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGHUP: 129}


@pytest.mark.fault("F3.2", "R47")
@pytest.mark.parametrize("number", CODES)
def test_every_signal_asks_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with listening() as stop:
        os.kill(os.getpid(), number)
        assert stop.exit_code == CODES[number]
        os.kill(os.getpid(), signal.SIGTERM)  # a second one, but for Ctrl-C, changes no more than the code
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) == before


@pytest.mark.fault("R47", "R48")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_where_nothing_is_to_be_saved_a_signal_ends_at_once(number: signal.Signals) -> None:
    with pytest.raises(Interrupted) as raised, leaving_at_once():
        os.kill(os.getpid(), number)
    assert raised.value.exit_code == CODES[number]


@pytest.mark.fault("F3.2")
def test_under_nohup_a_closed_terminal_is_no_matter() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as stop, leaving_at_once():
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.exit_code == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.fault("F3.2", "R47")
def test_a_closed_terminal_saves(tmp_path: Path) -> None:
    """A real terminal that is closed under a training: what it cannot write any more does not matter."""
    ours, theirs = pty.openpty()
    process = begin_on_terminal(*ALONE, "trainer.epochs=200", "out=run", cwd=tmp_path, terminal=os.ttyname(theirs))
    try:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert process.is_alive()
            _drain(ours)
        os.close(theirs)
        os.close(ours)
        process.join(60)
        assert process.exitcode == 129
    finally:
        process.kill()
        process.join()
    assert (read_result(tmp_path / "run")).status == "interrupted"  # type: ignore[union-attr]
    assert 0 < last(tmp_path / "run")["step"] < 200 * STEPS
    assert "continue with: distill train resume=" in (tmp_path / "run" / "train.log").read_text()


def _drain(terminal: int) -> None:
    """Read what was written to the terminal, or wait a moment."""
    os.set_blocking(terminal, False)
    try:
        os.read(terminal, 65536)
    except BlockingIOError:
        time.sleep(0.02)


# --- the data, the machine, another process ------------------------------------------------------------------------


@pytest.mark.fault("F3.1", "R48")
def test_decoding_may_be_stopped() -> None:
    images = ArrayImages(np.zeros((70, 80, 80, 3), np.uint8), "made up")
    config = DatasetConfig(name="test", image_size=32)
    with pytest.raises(Interrupted):
        open_store(images, config, 0, replace(CPU, stop=Trip(at=2)), 1e9)


@pytest.mark.fault("F3.3")
def test_whoever_waits_says_for_whom_and_may_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "POLL_SECONDS", 0.01)
    watch = Watch(signal=Trip(at=3, code=143))
    with holder(tmp_path) as other:
        assert line(other) == "held"
        with pytest.raises(Interrupted) as stopped, in_turn(tmp_path, "training this teacher", watch.session):
            pass
        other.kill()
    assert stopped.value.exit_code == 143
    (said,) = watch.said
    assert re.fullmatch(rf"waiting for pid {other.pid} on \S+, since [-: 0-9]+, which is training this teacher", said)


@pytest.mark.fault("F3.3", "R49")
def test_whoever_waits_takes_over_from_the_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "POLL_SECONDS", 0.01)
    with holder(tmp_path) as other:
        assert line(other) == "held"

        def kill(_: list[str]) -> bool:
            other.kill()
            return False

        with in_turn(tmp_path, "training this teacher", Watch(signal=Trip(when=kill)).session):
            assert (tmp_path / ".lock").read_text().startswith(f"pid {os.getpid()} on ")


@pytest.mark.fault("F3.3")
def test_a_holder_on_another_machine_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock may stay: what is said then helps, at once."""
    monkeypatch.setattr(folders, "POLL_SECONDS", 0.01)
    with holder(tmp_path) as other:
        assert line(other) == "held"
        (tmp_path / ".lock").write_text("pid 7 on elsewhere, since 2026-01-01 00:00:00\n")

        def obey(_: list[str]) -> bool:
            (tmp_path / ".lock").unlink(missing_ok=True)
            return False

        watch = Watch(signal=Trip(when=obey))
        with in_turn(tmp_path, "training this control", watch.session):
            other.kill()
    assert watch.said[0].endswith(f"which is training this control; if that machine is gone, remove {tmp_path}/.lock")


@pytest.mark.fault("F6.8", "R45")
def test_what_changes_the_bits_is_said(tmp_path: Path) -> None:
    config = tiny()
    source, watch = open_source(config.dataset), Watch()
    describe(tmp_path, config, [], source, watch.session)
    describe(tmp_path, config, [], source, watch.session)
    assert watch.warnings == []
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "environment.json"
    begun = json.loads(file.read_text())
    now = begun["versions"]["torch"]
    begun["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(begun | {"threads": 64, "processes": 4}))
    (tmp_path / "SHA256SUMS").unlink()  # of the file as it was
    for times in (1, 2):  # what a run was begun with is not forgotten
        describe(tmp_path, config, ["trainer.workers=0"], source, watch.session)
        assert len(watch.warnings) == times
        assert f"torch 1.0 -> {now}, threads 64 -> 1, processes 4 -> 1" in watch.warnings[-1]
        assert "not bit-identical" in watch.warnings[-1]
    assert json.loads(file.read_text())["overrides"] == ["trainer.workers=0"]


@pytest.mark.fault("F2.1", "R45")
def test_the_number_of_processes_is_no_part_of_a_recipe() -> None:
    config = tiny()
    data = open_tiny(config)
    student = new_backbone(config, data, "student")
    alone, together = (ingredients(config, data, student, replace(CPU, world=world)) for world in (1, 2))
    assert alone == together


def photographs(folder: Path) -> Path:
    for part in ("train", "val"):
        for label in ("a", "b"):
            (folder / part / label).mkdir(parents=True)
            for number in range(8):
                colour = (20 * number, 90 + 10 * (part == "val"), 255 * (label == "b"))  # no image is in both parts
                Image.new("RGB", (36, 36), colour).save(folder / part / label / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.fault("F2.1", "R46")
def test_a_run_does_not_go_on_with_other_data(tmp_path: Path, distill: Distill, tripping: Tripping) -> None:
    """What has changed is said, by how many images, and before anything is fitted to it."""
    data = (f"dataset.root={photographs(tmp_path / 'data')}", "dataset=folder", "dataset.image_size=32")
    sizes = ("trainer.batch_size=8", "baseline=false", "trainer.threads=1", "trainer.epochs=1", "teacher.fit.epochs=1")
    models = ("student.name=test_efficientnet", "teacher.name=test_resnet", "teacher.pretrained=false")
    arguments = ("train", *data, *sizes, *models, "student.pretrained=false", f"out={tmp_path / 'run'}")
    tripping(Trip(when=lambda names: {"_fit_student", "_train_epoch"} <= {*names}))
    assert distill(*arguments).code == 130
    tripping(Trip())
    before = files(tmp_path / "runs")
    added = tmp_path / "data" / "train" / "a" / "8.png"
    Image.new("RGB", (36, 36)).save(added)
    answer = distill("train", f"resume={tmp_path / 'run'}")
    assert answer.code == 2
    assert "the data has changed since the run began (train: 1 added, 0 removed); restore it" in answer.stderr
    added.rename(added.with_name("7.png"))
    answer = distill("train", f"resume={tmp_path / 'run'}")
    assert "(as many images of each class, but other names, sizes or contents)" in answer.stderr
    assert files(tmp_path / "runs") == before


@pytest.mark.slow
@pytest.mark.fault("F2.2", "R68")
def test_latest_names_a_run_with_weights(tmp_path: Path, distill: Distill, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise UserError("no teacher today")

    quick = ALONE
    latest = tmp_path / "runs" / "smoke" / "latest"
    with monkeypatch.context() as patch:
        patch.setattr(whole, "find_teaching", fails)
        assert distill(*quick).code == 2
        assert not latest.exists()
        patch.undo()
        assert distill(*quick).code == 0
        trained = latest.resolve()
        patch.setattr(whole, "find_teaching", fails)
        assert distill(*quick).code == 2
    assert latest.resolve() == trained
    assert distill("eval", "checkpoint=runs/smoke/latest", "trainer.device=cpu").code == 0

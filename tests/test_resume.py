"""Stopped anywhere and continued, a run ends bit for bit like the uninterrupted one; and no checkpoint is ever lost."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import STEPS, Watch, digest, files, last, tiny, train

from distillcli.errors import Interrupted, UserError
from distillcli.runs.folder import read_metrics
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.training import checkpoint, engine, state
from distillcli.training.checkpoint import (
    ballast,
    drop_ballast,
    load_last,
    read_checkpoint,
    remove_leftovers,
    save_checkpoint,
    save_last,
    without_ballast,
)
from distillcli.training.evaluation import evaluate

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")

# Everything that could forget its state: moving average, dropout, clipping, a hint with a projector of its own.
RECIPE = ("distill=hint", "distill.terms.hint.stage=-1", "++student.args.drop_rate=0.3")
RECIPE += ("trainer.ema=0.9", "trainer.clip_grad=1", "trainer.epochs=3", "trainer.keep_optimizer=true")
STREAMED = "dataset.memory_gb=0"
SMALL = "trainer.keep_optimizer=false"


def anything(_content: dict[str, Any]) -> None:
    """Every checkpoint will do."""


def everything(folder: Path) -> str:
    """All that the last checkpoint holds."""
    return digest(last(folder))


def stopped(folder: Path, after: int, *overrides: str) -> None:
    watch = Watch(stop_after=after)
    code = None
    try:  # pytest.raises would keep the traceback, and with it the loader and its workers
        train(tiny(*RECIPE, *overrides), folder, watch)
    except Interrupted as stop:
        code = stop.exit_code
    assert code == 130
    assert watch.steps == after, "the step that was running is the last one"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    train(tiny(*RECIPE), folder)
    return folder


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder) if row["kind"] == kind]


# --- the same bits -------------------------------------------------------------------------------------------------


def test_a_digest_notices_one_changed_value(whole: Path) -> None:
    """The negative control: without it, equal digests would prove nothing."""
    content = last(whole)
    before = digest(content)
    assert content["ema"] is not None
    for part in ("student", "ema", "objective"):
        value = next(value for value in content[part].values() if value.is_floating_point())
        bits, first = value.view(torch.int32), (0,) * value.dim()
        bits[first] ^= 1
        assert digest(content) != before, part
        bits[first] ^= 1
    assert digest(content) == before
    moment = content["optimizer"]["state"][0]["exp_avg"]
    moment.view(torch.int32)[(0,) * moment.dim()] ^= 1
    assert digest(content) != before


def test_unkeyed_randomness_would_be_noticed(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the keys of the steps gone, a resumed run does differ."""
    stopped(tmp_path, 6)
    monkeypatch.setattr(engine, "seed_everything", lambda *_, **__: None)
    train(tiny(*RECIPE), tmp_path)
    assert everything(tmp_path) != everything(whole)


@pytest.mark.parametrize(
    "stops",
    [[1], [STEPS - 1], [STEPS], [STEPS + 2], [2 * STEPS], [3 * STEPS - 1], [3 * STEPS], [2, 1, 5]],
    ids=str,
)
@pytest.mark.fault("R40", "R43")
def test_a_stop_anywhere_changes_nothing(stops: list[int], whole: Path, tmp_path: Path) -> None:
    for after in stops:
        stopped(tmp_path, after)
    assert last(tmp_path)["step"] == sum(stops)
    fitted = train(tiny(*RECIPE), tmp_path)
    assert everything(tmp_path) == everything(whole)
    assert digest(fitted.backbone.net.state_dict()) == digest(last(whole)["ema"])
    best = [read_checkpoint(folder / "checkpoints" / "best.pt") for folder in (tmp_path, whole)]
    assert digest(best[0]) == digest(best[1])
    for kind in ("train", "eval"):
        assert [row["epoch"] for row in rows(tmp_path, kind)] == [1, 2, 3]
    assert rows(tmp_path, "eval") == rows(whole, "eval")


@pytest.mark.fault("R43")
def test_a_finished_run_is_not_trained_again(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    before, watch = files(tmp_path / "copy"), Watch()
    fitted = train(tiny(*RECIPE), tmp_path / "copy", watch)
    assert watch.steps == 0
    assert files(tmp_path / "copy") == before
    assert (fitted.best, fitted.last) == (last(whole)["best"], last(whole)["last"])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, ended as runs do by default."""
    folder = tmp_path_factory.mktemp("small")
    train(tiny(*RECIPE, SMALL), folder)
    return folder


@pytest.mark.fault("F6.11")
def test_a_finished_fit_ends_small(whole: Path, small: Path) -> None:
    """Without what only a further step would need; what is left is what the whole run holds."""
    assert sorted(path.name for path in (small / "checkpoints").iterdir()) == ["best.pt", "last.pt"]
    assert (whole / "checkpoints" / "previous.pt").exists()
    assert digest(last(small)) == digest(without_ballast(last(whole)))


@pytest.mark.fault("F6.11", "R43")
def test_a_small_run_is_not_trained_again(small: Path, tmp_path: Path) -> None:
    """As when the student is finished and its control is still to be fitted."""
    folder, watch = shutil.copytree(small, tmp_path / "copy"), Watch()
    before = files(folder)
    fitted = train(tiny(*RECIPE, SMALL), folder, watch)
    assert watch.steps == 0
    assert watch.said == ["student: resumed after its last epoch, 3"]
    assert files(folder) == before
    assert digest(fitted.backbone.net.state_dict()) == digest(last(small)["ema"])
    assert (fitted.best, fitted.last) == (last(small)["best"], last(small)["last"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run when only the validation of its last epoch is left."""
    folder = tmp_path_factory.mktemp("trained")
    stopped(folder, 3 * STEPS)
    return folder


@pytest.mark.fault("F6.11", "R41")
@pytest.mark.parametrize("moment", range(6))
def test_a_kill_while_a_fit_is_made_small_leaves_a_checkpoint(
    moment: int, trained: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each of its system calls: what is left goes on to the same end."""

    class Killed(BaseException):
        pass

    folder, calls = shutil.copytree(trained, tmp_path / "run"), list[str]()

    def killing(name: str, original: Any) -> Any:
        def call(first: Any, *rest: Any, **options: Any) -> Any:
            if calls or (name == "save" and first.get("optimizer", "none kept") is None):
                calls.append(name)
                if len(calls) - 1 == moment:
                    raise Killed
            return original(first, *rest, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killing("save", torch.save))
        patch.setattr(os, "fsync", killing("fsync", os.fsync))
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, killing(name, getattr(Path, name)))
        with pytest.raises(Killed):
            train(tiny(*RECIPE, SMALL), folder)
    assert calls == ["save", "fsync", "replace", "replace", "fsync", "unlink"][: moment + 1]
    train(tiny(*RECIPE, SMALL), folder)
    assert everything(folder) == everything(small)
    assert not (folder / "checkpoints" / "previous.pt").exists()
    assert [row["epoch"] for row in rows(folder, "eval")] == [1, 2, 3]


@pytest.mark.fault("F6.11")
def test_a_finished_run_is_pruned_to_the_same(whole: Path, small: Path, tmp_path: Path) -> None:
    """What ``distill runs prune`` frees of an older run, or of one that kept its optimizer."""
    folder = shutil.copytree(whole, tmp_path / "run")
    size = sum(path.stat().st_size for path in folder.rglob("*"))
    expected = ballast(folder)
    drop_ballast(folder)
    freed = size - sum(path.stat().st_size for path in folder.rglob("*"))
    assert 0.9 * freed < expected <= freed
    assert everything(folder) == everything(small)
    assert ballast(folder) == ballast(small) == 0


@pytest.mark.fault("R42")
def test_workers_may_change_between(tmp_path: Path) -> None:
    train(tiny(*RECIPE, STREAMED), tmp_path / "whole")
    stopped(tmp_path / "parts", 2, STREAMED, "trainer.workers=2")
    stopped(tmp_path / "parts", 3, STREAMED, "trainer.workers=0")
    train(tiny(*RECIPE, STREAMED, "trainer.workers=2"), tmp_path / "parts")
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


@pytest.mark.fault("F3.4", "R40", "R43", "R48")
@pytest.mark.parametrize(
    ("killed_in", "recorded", "saved"), [("training", 1, STEPS), ("validation", 1, 2 * STEPS), ("save", 2, 2 * STEPS)]
)
def test_a_kill_goes_back_to_the_last_checkpoint(
    killed_in: str, recorded: int, saved: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch that was saved is not trained again, and no row of it is lost or doubled."""

    class Killed(BaseException):
        pass

    def save(folder: Path, content: dict[str, Any]) -> None:
        before_validation = bool(content["trained"])
        if content["step"] == 2 * STEPS and killed_in == ("training" if before_validation else "save"):
            raise Killed
        save_last(folder, content)

    def validate(*arguments: Any, **options: Any) -> Any:
        if killed_in == "validation" and last(tmp_path)["step"] == 2 * STEPS:
            raise Killed
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_last", save)
        patch.setattr(engine, "evaluate", validate)
        with pytest.raises(Killed):
            train(tiny(*RECIPE), tmp_path)
    assert [row["epoch"] for row in rows(tmp_path, "train")] == [*range(1, recorded + 1)]
    assert last(tmp_path)["step"] == saved
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"kind": "train", "ep')  # torn
    train(tiny(*RECIPE), tmp_path)
    assert everything(tmp_path) == everything(whole)
    assert [row["epoch"] for row in rows(tmp_path, "train")] == [1, 2, 3]
    assert rows(tmp_path, "eval") == rows(whole, "eval")


@pytest.mark.fault("R43")
def test_the_best_epoch_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch after the resume that is worse does not take the place of the best one."""
    scores = iter([70.0, 90.0, 80.0, 85.0])
    numbers = {"top5": 100.0, "nll": 1.0, "ece": 0.0}
    monkeypatch.setattr(engine, "evaluate", lambda *_, **__: {"top1": next(scores), **numbers})
    four = ("trainer.epochs=4",)
    watch = Watch(stop_after=2 * STEPS + 1)
    with pytest.raises(Interrupted):
        train(tiny(*four), tmp_path, watch)
    best = (tmp_path / "checkpoints" / "best.pt").read_bytes()
    fitted = train(tiny(*four), tmp_path)
    assert (fitted.best["epoch"], fitted.best["top1"], fitted.last["top1"]) == (2, 90.0, 85.0)
    assert (tmp_path / "checkpoints" / "best.pt").read_bytes() == best


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path, 2)
    before = files(tmp_path)
    changes = {"optimizer.lr=0.001": "optimizer", "seed=1": "seed: 0 -> 1", "distill.temperature=2": "objective"}
    for change, named in (changes | {"trainer.epochs=4": "budget", "augment=none": "augment"}).items():
        with pytest.raises(UserError, match=f"written with other settings .*{named}"):
            train(tiny(*RECIPE, change), tmp_path)
    assert files(tmp_path) == before


def test_other_weights_under_the_name_of_the_teacher_are_refused_by_their_file(tmp_path: Path) -> None:
    given = tmp_path / "teacher.pt"
    given.touch()  # the weights of this teacher are drawn, whatever its file holds
    file = f"teacher.checkpoint={given}"
    stopped(tmp_path / "run", 2, file)

    def spoil(teacher: FrozenTeacher | None, *_: object) -> None:
        assert teacher is not None
        next(iter(teacher.backbone.parameters())).data.add_(1)

    hashes = r"[0-9a-f]{16} -> [0-9a-f]{16}"
    only = rf"\(the weights of the teacher in {re.escape(file)}: {hashes}\)"
    with pytest.raises(UserError, match=only):
        train(tiny(*RECIPE, file), tmp_path / "run", keep=spoil)


# --- damage --------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Change one bit in the middle of the tensors."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.fault("R15")
def test_a_flipped_bit_falls_back_to_the_older_checkpoint(whole: Path, tmp_path: Path) -> None:
    stopped(tmp_path, STEPS + 2)
    flip(tmp_path / "checkpoints" / "last.pt")
    watch = Watch()
    train(tiny(*RECIPE), tmp_path, watch)
    assert len(watch.warnings) == 1
    assert "last.pt" in watch.warnings[0]
    assert "going on from previous.pt" in watch.warnings[0]
    assert watch.steps == 2 * STEPS, "from the end of the first epoch"
    assert everything(tmp_path) == everything(whole)


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b""), lambda path: os.truncate(path, 5000)])
def test_no_sound_checkpoint_is_an_error(damage: Any, tmp_path: Path) -> None:
    for step in (1, 2):
        save_last(tmp_path, {"step": step, "weights": torch.arange(4096.0)})
    for name in ("last.pt", "previous.pt"):
        damage(tmp_path / "checkpoints" / name)
    with pytest.raises(UserError, match="no sound checkpoint is left"):
        load_last(tmp_path, anything)


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert load_last(tmp_path, anything) == (None, None)


# --- kills and full disks ------------------------------------------------------------------------------------------


def content_of(number: int) -> dict[str, Any]:
    return {"step": number, "weights": torch.full((200_000,), float(number))}


def keep_saving(folder: Path, first: int, saved: Connection) -> None:
    for number in range(first, 10**9):
        save_last(folder, content_of(number))
        saved.send(number)


@pytest.mark.fault("R41")
def test_a_kill_at_any_moment_leaves_a_checkpoint(tmp_path: Path) -> None:
    """kill -9 during save_last, over and over: what was confirmed is there, whole, or something newer."""
    torch.set_num_threads(1)  # a forked process must not wait for threads that it does not have
    fork, chance = multiprocessing.get_context("fork"), random.Random(0)
    number, cut_short = 0, 0
    for _ in range(25):
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=keep_saving, args=(tmp_path, number + 1, sender))
        process.start()
        sender.close()
        confirmed = receiver.recv()
        time.sleep(chance.uniform(0, 0.02))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        while receiver.poll():
            try:
                confirmed = receiver.recv()
            except EOFError:
                break
        receiver.close()
        cut_short += len(list((tmp_path / "checkpoints").glob("*.tmp.*")))
        content, _warning = load_last(tmp_path, anything)
        assert content is not None
        number = content["step"]
        assert number >= confirmed
        assert torch.equal(content["weights"], content_of(number)["weights"])
        remove_leftovers(tmp_path)
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir())[0] in ("last.pt", "previous.pt")
        assert not list((tmp_path / "checkpoints").glob("*.tmp.*"))
    assert cut_short > 0, "no kill fell into a write: the test proves nothing"


@pytest.mark.parametrize("moment", range(6))
def test_a_crash_between_two_system_calls_leaves_a_checkpoint(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    for number in (1, 2):
        save_last(tmp_path, content_of(number))
    calls = []

    def crashing(original: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(original)
            if len(calls) - 1 == moment:
                raise Crash
            return original(*args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", crashing(torch.save))
        patch.setattr(os, "fsync", crashing(os.fsync))
        patch.setattr(Path, "replace", crashing(Path.replace))
        if moment == 5:  # save, fsync, two renames, fsync of the folder: there is no sixth call
            save_last(tmp_path, content_of(3))
            assert len(calls) == 5
        else:
            with pytest.raises(Crash):
                save_last(tmp_path, content_of(3))
    content, warning = load_last(tmp_path, anything)
    assert content is not None
    assert warning is None
    assert content["step"] == (3 if moment >= 4 else 2)
    assert torch.equal(content["weights"], content_of(content["step"])["weights"])


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.fault("R34")
def test_a_full_disk_keeps_the_old_files(reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        save_last(tmp_path, content_of(number))
    before = files(tmp_path)

    def full(_content: object, handle: Any) -> None:
        handle.write(b"half a file")
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(checkpoint.torch, "save", full)
    for save in (save_last, lambda folder, content: save_checkpoint(folder / "checkpoints" / "best.pt", content)):
        with pytest.raises(UserError, match="the disk is full"):
            save(tmp_path, content_of(3))
        assert files(tmp_path) == before


@pytest.mark.fault("R34")
def test_a_real_limit_of_the_file_size_is_a_full_disk(tmp_path: Path) -> None:
    """The operating system ends the write in the middle, and torch wraps the error in its own."""
    save_last(tmp_path, content_of(1))
    before, limits = files(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="the disk is full"):
            save_last(tmp_path, content_of(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == before

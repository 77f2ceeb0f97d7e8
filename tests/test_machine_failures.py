"""What the machine fails at, out of memory and dead loader workers, is one line with the keys to change."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Distill
from tiny import STEPS, Watch, last, tiny, train
from torch import Tensor

from distillcli.errors import UserError
from distillcli.runtime import named_failures
from distillcli.training.step import Update
from distillcli.views import loader


def raising(error: Exception) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


@pytest.mark.fault("F4.3", "R33")
@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.empty(2**58),
        lambda: np.empty(2**58),
        lambda: bytearray(2**60),
        raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore about it")),
        raising(OSError(errno.ENOMEM, "Cannot allocate memory")),
    ],
)
def test_out_of_memory_is_one_line_whoever_asked_for_it(fail: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=r"^out of memory \([^\n]+\): use less$"), named_failures("use less"):
        fail()


@pytest.mark.fault("F4.3")
@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), OSError(errno.EIO, "input/output error"), ValueError("a bug")]
)
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, named_failures("use less"):
        raise error
    assert raised.value is error


@pytest.mark.fault("F4.3", "R33")
@pytest.mark.parametrize(
    ("overrides", "fix"),
    [
        ((), "use trainer.accumulate=2, which takes the same steps"),
        (("trainer.accumulate=2",), "use trainer.accumulate=4, which takes the same steps"),
        (("distill=rkd",), "use trainer.batch_size=8,"),
    ],
)
def test_a_step_that_does_not_fit_names_its_size_and_keeps_the_checkpoint(
    overrides: tuple[str, ...], fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, taken = Update.apply, []

    def full(self: Update, model: Any) -> Tensor:
        taken.append(1)
        return original(self, model) if len(taken) <= STEPS + 1 else torch.empty(2**58)

    monkeypatch.setattr(Update, "apply", full)
    with pytest.raises(UserError) as raised:
        train(tiny(*overrides), tmp_path)
    assert "a step of trainer.batch_size=16 with trainer.accumulate=" in str(raised.value)
    assert "dataset.image_size=32" in str(raised.value)
    assert fix in str(raised.value)
    assert last(tmp_path)["step"] == STEPS


@pytest.mark.fault("F4.3", "R59")
# torch's other loaders complain as well, when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_worker_is_one_line(tmp_path: Path) -> None:
    def kill() -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(UserError, match=r"^DataLoader worker \(pid[^\n]*use fewer trainer\.workers, or trainer\.worke"):
        train(tiny("trainer.workers=1", "dataset.memory_gb=0"), tmp_path, Watch(after_epoch=kill))
    assert last(tmp_path)["step"] == STEPS


@pytest.mark.fault("F4.3", "R33")
@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_command_ends_with_2_and_without_a_traceback(
    command: str, distill: Distill, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("experiment=smoke", "distill=none", "baseline=false", "trainer.epochs=1", "dataset.samples=32", "out=run")
    if command == "eval":
        assert distill("train", *few).code == 0
    monkeypatch.setattr(loader, "render_views", lambda *_: torch.empty(2**58))
    answer = distill("train", *few) if command == "train" else distill("eval", "checkpoint=run")
    assert answer.code == 2
    assert "error: out of memory" in answer.stderr
    assert "Traceback" not in answer.stderr

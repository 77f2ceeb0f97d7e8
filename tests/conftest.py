"""Fixtures that several test files share, and how the suite is spread over the cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before anything imports torch, and inherited by every process a test starts: the tests keep all cores busy as it is.
os.environ["OMP_NUM_THREADS"] = "1"
# Read once, when huggingface_hub is imported. Without it whatever is not there is asked for again and again.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DISTILL_CONFIG_DIR"] = ""

ROOT = Path(__file__).resolve().parent.parent


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """``-n auto``: no workers for one file, where a second import of torch costs more than it saves."""
    one_file = len(config.args) == 1 and ".py" in config.args[0]
    return 0 if one_file else None


def script(name: str, *arguments: str) -> str:
    """What ``scripts/NAME`` prints, in a process of its own, which is small enough to be forked for every case."""
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Answer:
    code: int
    stdout: str
    stderr: str


Distill = Callable[..., Answer]


@pytest.fixture
def ranks_without_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank is looked at by itself, and hears of no stop from the others."""
    monkeypatch.setattr("distillcli.runtime.any_rank", lambda flag, _runtime: flag)


@pytest.fixture
def bare_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole runs without their last seconds, where models are timed and pictures drawn, for what depends on neither."""
    monkeypatch.setattr("distillcli.distillation.whole.with_latency", lambda result, *_: result)
    monkeypatch.setattr("distillcli.distillation.whole.draw_curves", lambda _: None)
    monkeypatch.setattr("distillcli.report.documents.page", lambda *_: "")


@pytest.fixture
def distill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Distill:
    """The command line within this process, which has torch already: ``distill("train", "seed=1", cwd=...)``."""
    from distillcli import cli

    def run(*args: str, cwd: Path = tmp_path) -> Answer:
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        code = cli.run(list(args))
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def distill_process(tmp_path: Path) -> Distill:
    """The command in a process of its own, for what only that shows: ``distill_process("doctor", env={...})``."""

    def run(*args: str, cwd: Path = tmp_path, env: dict[str, str] | None = None, timeout: float = 120) -> Answer:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-m", "distillcli", *args]
        environment = {**os.environ, "PYTHONPATH": path, **(env or {})}
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run

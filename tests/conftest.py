"""Fixtures that several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Answer:
    code: int
    stdout: str
    stderr: str


Distill = Callable[..., Answer]


@pytest.fixture
def distill(tmp_path: Path) -> Distill:
    """The real command in a process of its own: ``distill("train", "seed=1", cwd=..., env={...})``."""

    def run(*args: str, cwd: Path = tmp_path, env: dict[str, str] | None = None, timeout: float = 120) -> Answer:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": path, "DISTILL_CONFIG_DIR": "", **(env or {})}
        command = [sys.executable, "-m", "distillcli", *args]
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run

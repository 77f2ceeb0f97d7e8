"""A few dozen random command lines: exit code 0 or 2, one line, no traceback (the script tries hundreds)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.fault("F4.8", "R63")
def test_random_command_lines_are_answered_in_one_line() -> None:
    # In a process of its own, which is small enough to be forked for every line.
    script = ROOT / "scripts" / "fuzz_commands.py"
    done = subprocess.run(
        [sys.executable, str(script), "--count", "36", "--seed", "7"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "36 of 36 lines with seed 7 ran, 0 faults" in done.stdout

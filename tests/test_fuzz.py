"""A few dozen random command lines: exit code 0 or 2, one line, no traceback (the script tries hundreds)."""

from __future__ import annotations

import pytest
from conftest import script


@pytest.mark.fault("F4.8", "R63")
def test_random_command_lines_are_answered_in_one_line() -> None:
    assert "36 of 36 lines with seed 7 ran, 0 faults" in script("fuzz_commands.py", "--count", "36", "--seed", "7")

"""docs/reliability.md says the truth: every fault has a test that holds it, or says why none can."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script() -> dict[str, Callable[[], Any]]:
    return runpy.run_path(str(ROOT / "scripts" / "document_reliability.py"))


def test_every_fault_has_a_test_or_a_reason(script: dict[str, Callable[[], Any]]) -> None:
    held = script["held"]()
    bare = [row["id"] for row in script["rows"]() if "untried" not in row and not held[row["id"]]]
    assert not bare


def test_every_mark_names_a_fault(script: dict[str, Callable[[], Any]]) -> None:
    known = [row["id"] for row in script["rows"]()]
    assert len(set(known)) == len(known)
    assert script["held"]().keys() <= set(known)


def test_the_table_is_as_the_script_makes_it(script: dict[str, Callable[[], Any]]) -> None:
    assert (ROOT / "docs" / "reliability.md").read_text("utf-8") == script["document"]()

"""What the documents show of the code is the code."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

BLOCKS = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "adding_a_term.md").read_text("utf-8"), re.DOTALL)
# Parts between blank lines that are not part of the diff: each stands in one place of the file.
PARTS = [part for block in BLOCKS for part in block.split("\n\n")]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.splitlines()[0])
def test_the_term_that_is_shown_is_the_term_of_the_package(part: str) -> None:
    shown = "\n".join(line[1:] for line in part.rstrip().splitlines())
    assert shown in (ROOT / "distillcli" / "terms" / "logit.py").read_text("utf-8")


def test_something_is_shown() -> None:
    assert len(PARTS) == 2

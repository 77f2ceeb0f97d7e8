"""What the documents show of the code is the code."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

BLOCK = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "adding_a_term.md").read_text("utf-8"), re.DOTALL)[0]
# A file's changes follow its name; those parted by an empty line stand in different places of the file.
FILES = dict(re.findall(r"^\+\+\+ (\S+)\n(.*?)(?=^\+\+\+ |\Z)", BLOCK, re.DOTALL | re.MULTILINE))
PARTS = [(file, part) for file, changes in FILES.items() for part in changes.strip("\n").split("\n\n")]


@pytest.mark.parametrize(("file", "part"), PARTS, ids=lambda text: text.splitlines()[0])
def test_the_term_that_is_shown_is_the_term_of_the_package(file: str, part: str) -> None:
    shown = "\n".join(line[1:] for line in part.splitlines())
    assert shown in (ROOT / file).read_text("utf-8")


def test_something_is_shown() -> None:
    assert [file for file, _ in PARTS] == ["distillcli/config/terms.py", *["distillcli/terms/logit.py"] * 2]

"""What the documents show of the code is the code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from distillcli.config.schema import ModelConfig
from distillcli.formats.timm_folder import write
from distillcli.models.backbone import build
from distillcli.types import Inputs

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


# --- docs/architecture.md ------------------------------------------------------------------------------------------

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
# The rows of "To add X, touch Y": what is added, words to search for, files.
ROWS = [
    (cells[0], re.findall(r"`(.+?)`", cells[2]), re.findall(r"`(.+?)`", cells[3]))
    for line in ARCHITECTURE.splitlines()
    if line.startswith("| a") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4 and cells[2]
]
SOURCES = [*(ROOT / "distillcli").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml")]


@pytest.mark.parametrize(("added", "words", "files"), ROWS, ids=[row[0] for row in ROWS])
def test_the_files_to_touch_are_all_that_know_the_example(added: str, words: list[str], files: list[str]) -> None:
    known = [re.compile(rf"\b{re.escape(word)}\b") for word in words]
    found = [path for path in SOURCES if any(one.search(f"{path.stem} {path.read_text('utf-8')}") for one in known)]
    assert sorted(str(path.relative_to(ROOT)) for path in found) == sorted(files)


def test_every_kind_of_addition_has_its_row() -> None:
    assert len(ROWS) == 7


def test_the_files_that_are_named_exist() -> None:
    for room, named in re.findall(r"^\| `(\w+)` \| (.*) \|$", ARCHITECTURE, re.MULTILINE):
        for file in re.findall(r"`(\w+\.py)`", named):
            assert (ROOT / "distillcli" / room / file).is_file()


def test_every_room_is_drawn() -> None:
    rooms = {path.name for path in (ROOT / "distillcli").iterdir() if (path / "__init__.py").is_file()}
    drawing = ARCHITECTURE.split("```")[1]
    assert {room for room in rooms if not re.search(rf"\b{room}\b", drawing)} == set()


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_to_files(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target


def test_the_lines_of_the_readme_use_the_student_with_timm_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = build(ModelConfig("test_efficientnet"), Inputs(3, 32), "student")
    write(backbone, tmp_path, ("ant", "bee", "cat"), 1.0)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    image = Image.fromarray(np.full((40, 50, 3), 128, np.uint8))
    exec(code.replace("runs/resnet50_to_mobilenet/latest/student", str(tmp_path)), {"image": image})
    expected = backbone.eval()(torch.full((1, 3, 32, 32), 128 / 255)).logits.argmax().item()
    assert capsys.readouterr().out.strip() == ("ant", "bee", "cat")[int(expected)]

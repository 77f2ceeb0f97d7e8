"""docs/reliability.md from tests/faults.yaml and the marked tests: python scripts/document_reliability.py"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "reliability.md"
OPENING = """# What goes wrong, and what the tool does then

Made by `python scripts/document_reliability.py` from `tests/faults.yaml` and the tests that are marked with its rows.
Every user error is one line that names the key or the file, the value and the fix, and ends with code 2; a bug ends
with a traceback and 1, Ctrl-C with 130, SIGTERM with 143.
"""


def rows() -> list[dict[str, str]]:
    """The rows of ``tests/faults.yaml``: ``id``, ``kind``, ``case``, ``expected`` and, without a test, ``untried``."""
    found: list[dict[str, str]] = yaml.safe_load((ROOT / "tests" / "faults.yaml").read_text("utf-8"))
    return found


def held() -> dict[str, list[str]]:
    """The tests that hold each row, as ``file::name``, found in the marks of tests, classes and parametrised cases."""
    tests: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                for row in _marks(node):
                    tests[row].append(f"{path.relative_to(ROOT / 'tests')}::{node.name}")
    return tests


def _marks(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """The rows that the decorators of a test name."""
    marks: dict[str, None] = {}
    for decorator in node.decorator_list:
        for call in ast.walk(decorator):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault":
                marks |= {ast.literal_eval(argument): None for argument in call.args}
    return list(marks)


def document() -> str:
    tests, kinds = held(), defaultdict[str, list[dict[str, Any]]](list)
    for row in rows():
        kinds[row["kind"]].append(row)
    blocks = [OPENING]
    for kind, members in kinds.items():
        lines = [
            f"| {row['id']} | {_cell(row['case'])} | {_cell(row['expected'])} | {_proof(row, tests[row['id']])} |"
            for row in members
        ]
        heading = f"## {kind[0].upper()}{kind[1:]}\n\n| row | case | expected | test |\n|---|---|---|---|\n"
        blocks.append(heading + "\n".join(lines) + "\n")
    return "\n".join(blocks)


def _proof(row: dict[str, str], tests: list[str]) -> str:
    if "untried" in row:
        return f"not tried: {_cell(row['untried'])}"
    return ", ".join(f"`{test}`" for test in tests)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    DOCUMENT.write_text(document(), "utf-8")

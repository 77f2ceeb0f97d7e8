"""A few cases of scripts/fuzz_files.py, which damages run folders at random; the script itself runs hundreds."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT, script


@pytest.fixture(scope="module")
def fuzz_files() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_files", ROOT / "scripts" / "fuzz_files.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.fault("F4.6", "F1.8", "R15", "R38")
def test_no_damage_is_a_traceback_a_hang_or_other_numbers() -> None:
    assert "5 cases with seed 0, 0 failed" in script("fuzz_files.py", "--cases", "5", "--limit", "120")


def test_what_fails_is_seen(fuzz_files: ModuleType) -> None:
    traceback = "Traceback (most recent call last):\nKeyError: 'a'"
    assert [fuzz_files.judge(*end) for end in ((None, ""), (1, traceback), (0, traceback), (-11, ""), (2, "oops"))] == [
        *("hang", "traceback", "traceback", "crash", "no line")
    ]
    assert fuzz_files.judge(2, "warning: a\nerror: b\n") == "refused"
    assert fuzz_files.judge(0, "") == ""


def test_every_damage_changes_its_file(fuzz_files: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for damage in (*fuzz_files.TEXT, fuzz_files.edit_json):
        text = '{"a": {"b": [1, 2]}, "c": "' + "x" * 100 + '"}'
        path.write_text(text)
        (tmp_path / "b.yaml").write_text("other")
        damage(path, random.Random(3))
        assert not path.is_file() or path.stat().st_mode & 0o777 == 0 or path.read_bytes() != text.encode(), damage
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)

"""The run folders below a folder: what state each is in, what it says of itself and how much room it takes."""

from __future__ import annotations

import dataclasses
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from distillcli.errors import UserError, did_you_mean
from distillcli.runs.reading import read_yaml, try_json
from distillcli.runs.result import DatasetFacts, Measured, Result, read_result

STATES = ("ok", "failed", "interrupted", "running", "killed")
# They belong to a run and hold none.
_PARTS = ("checkpoints", "student", "peers")


@dataclass(frozen=True)
class Run:
    """``state``: one of STATES. ``result``: as far as it is known. ``changed``: of its newest file. ``size``: bytes."""

    folder: Path
    state: str
    result: Result
    changed: datetime
    size: int


def find_runs(root: Path) -> list[Run]:
    """All runs at and below ``root`` in the order of their last change, teachers, assistants and controls included."""
    found = [describe(folder) for folder in _folders(root) if is_run(folder)]
    return sorted(found, key=lambda run: (run.changed, run.folder))


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or (folder / "result.json").is_file()


def is_sweep(folder: Path) -> bool:
    return (folder / "multirun.yaml").is_file()


def describe(folder: Path) -> Run:
    """What can be told of a run folder in any state; a file that cannot be read counts as absent."""
    written = read_result(folder)
    files = [path.stat() for path in _files(folder)]
    return Run(
        folder=folder,
        state=_state(folder, written),
        result=written if written is not None and written.finished else _planned(folder, written or Result()),
        changed=datetime.fromtimestamp(max((stat.st_mtime for stat in files), default=0)),
        size=sum(stat.st_size for stat in files),
    )


def existing(name: str) -> Run:
    """The run in the folder ``name``. Raises UserError where there is none."""
    folder = Path(name).expanduser()
    if not is_run(folder):
        what = "is no run folder" if folder.exists() else "does not exist"
        known = [str(run.folder) for run in find_runs(Path("runs"))]
        raise UserError(f"{name}: {what}{did_you_mean(name, known) or '; see distill runs ls'}")
    return describe(folder.resolve() if folder.is_symlink() else folder)


def runs_at(name: str) -> list[Run]:
    """The run in the folder ``name``, or all students' runs below it. Raises UserError where there is none."""
    folder = Path(name).expanduser()
    found = [] if is_run(folder) else find_runs(folder)
    return [run for run in found if run.result.role in (None, "student")] or [existing(name)]


def _state(folder: Path, result: Result | None) -> str:
    if _is_held(folder):
        return "running"
    return result.status if result is not None and result.status in STATES else "killed"


def _is_held(folder: Path) -> bool:
    """Whether a process works in the folder: it holds a lock, which the system frees however the process ends."""
    try:
        with (folder / ".lock").open("rb") as handle:
            fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it is somebody else's
        return False
    return False


def _planned(folder: Path, written: Result) -> Result:
    """``written`` with what the folder says it set out to do."""
    saved, overrides = _config(folder), (try_json(folder / "environment.json") or {}).get("overrides")
    seed = saved.get("seed")
    return dataclasses.replace(
        written,
        name=_text(saved.get("name")),
        seed=seed if isinstance(seed, int) else None,
        overrides=tuple(map(str, overrides)) if isinstance(overrides, list) else (),
        student=Measured(model=_name(saved, "student")),
        teacher=Measured(model=_name(saved, "teacher")),
        dataset=DatasetFacts(name=_name(saved, "dataset")),
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_yaml(folder / "config.yaml")
    except UserError:
        return {}


def _name(saved: dict[str, Any], key: str) -> str | None:
    part = saved.get(key)
    return _text(part.get("name")) if isinstance(part, dict) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _folders(root: Path) -> Iterator[Path]:
    """``root`` and the folders below it; a link such as ``latest`` would show a run twice."""
    for folder, below, _ in os.walk(root):
        below[:] = [name for name in below if name not in _PARTS]
        yield Path(folder)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (path for name in names if (path := Path(parent, name)).is_file() and not path.is_symlink())

"""Checkpoints: written atomically, checked before they are trusted, plain tensors and Python values only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distillcli.errors import FULL, UserError
from distillcli.models.weights import check_file, load_tensors
from distillcli.runs.reading import reading

FORMAT = "distillcli"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``path`` so that a kill at any moment leaves the old file or the new one.

    Raises UserError when the disk is full; the old file stays.
    """
    _write_beside(path, content).replace(path)
    _sync(path.parent)


def save_last(folder: Path, content: dict[str, Any]) -> None:
    """Write ``checkpoints/last.pt`` and keep the one before as ``previous.pt``.

    The new file is complete before the old one moves: at every moment one of the two names holds a whole checkpoint.
    """
    last = folder / "checkpoints" / "last.pt"
    fresh = _write_beside(last, content)
    if last.exists():
        last.replace(last.with_name("previous.pt"))
    fresh.replace(last)
    _sync(last.parent)


def _write_beside(path: Path, content: dict[str, Any]) -> Path:
    """Write a temporary file in the folder of ``path``, to the disk itself, before it may take the name."""
    fresh = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    path.parent.mkdir(exist_ok=True)
    try:
        # Through a file object: torch's own writer reports a full disk without saying so.
        with fresh.open("wb") as handle:
            torch.save({"format": FORMAT, **content}, handle)
            handle.flush()
            os.fsync(handle.fileno())
    except (OSError, RuntimeError) as error:
        fresh.unlink(missing_ok=True)
        if any(isinstance(cause, OSError) and cause.errno in FULL for cause in (error, error.__context__)):
            raise UserError(
                f"{path.parent}: the disk is full, the checkpoint was not written and the last one is kept; free some "
                "space and use resume="
            ) from error
        raise
    return fresh


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove what writes that were cut short have left in ``checkpoints/``."""
    for leftover in (folder / "checkpoints").glob("*.tmp.*"):
        leftover.unlink()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of one of our checkpoints, after its checksums were compared. Raises UserError if it is damaged."""
    check_file(path)
    return load_tensors(path)


def load_last(folder: Path, check: Callable[[dict[str, Any]], None]) -> tuple[dict[str, Any] | None, str | None]:
    """The newest sound checkpoint of a run folder, and a warning if the newest file was not sound.

    ``check``: raises where the caller cannot go on from a content; that counts as damage, and the file before is
    tried. Neither: no checkpoint was written yet. Raises UserError if there are checkpoints and all are damaged.
    """
    paths = [folder / "checkpoints" / name for name in ("last.pt", "previous.pt")]
    problems = []
    for path in paths:
        if not path.exists():
            continue
        try:
            content = read_checkpoint(path)
            with reading(path):
                check(content)
        except UserError as error:
            problems.append(str(error))
            continue
        return content, f"{problems[0]}; going on from {path.name}" if problems else None
    if problems:
        raise UserError(
            f"{problems[0]}; no sound checkpoint is left, start a new run, or remove {folder / 'checkpoints'} to train "
            "this one from the beginning"
        )
    return None, None


def without_ballast(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint from which no step will be taken any more: the states of the optimizer go."""
    return content | {"optimizer": None, "scaler": None}


def ballast(folder: Path) -> int:
    """About how many bytes ``drop_ballast`` would free in the folder of a finished run."""
    last, previous = (folder / "checkpoints" / name for name in ("last.pt", "previous.pt"))
    freed = previous.stat().st_size if previous.exists() else 0
    if last.exists():
        optimizer = read_checkpoint(last)["optimizer"]
        states = [] if optimizer is None else optimizer["state"].values()
        freed += sum(value.nbytes for state in states for value in state.values() if isinstance(value, torch.Tensor))
    return freed


def drop_ballast(folder: Path) -> None:
    """Shrink the checkpoints of a finished run to the last epoch and the best one, without optimizer states.

    A kill at any moment leaves a ``last.pt`` from which the run is known to be finished.
    """
    last = folder / "checkpoints" / "last.pt"
    if last.exists():
        save_checkpoint(last, without_ballast(read_checkpoint(last)))
    drop_previous(folder)


def drop_previous(folder: Path) -> None:
    """Remove what ``save_last`` has kept of the checkpoint before."""
    (folder / "checkpoints" / "previous.pt").unlink(missing_ok=True)

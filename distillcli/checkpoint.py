"""Checkpoints: written atomically, checked before they are trusted, plain tensors and Python values only."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import torch

from distillcli.errors import UserError
from distillcli.weights import check_file, load_tensors

FORMAT = "distillcli"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``path`` so that a kill at any moment leaves the old file or the new one.

    The temporary file lies in the same folder and reaches the disk before it takes the name. Raises UserError when the
    disk is full; the old file stays.
    """
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
        if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in (error, error.__context__)):
            raise UserError(
                f"{path.parent}: the disk is full, the checkpoint was not written and the last one is kept; free some "
                "space and use resume="
            ) from error
        raise
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_last(folder: Path, content: dict[str, Any]) -> None:
    """Write ``checkpoints/last.pt`` and keep the one before as ``previous.pt``."""
    last = folder / "checkpoints" / "last.pt"
    if last.exists():
        last.replace(last.with_name("previous.pt"))
    save_checkpoint(last, content)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of one of our checkpoints, after its checksums were compared. Raises UserError if it is damaged."""
    check_file(path)
    return load_tensors(path)


def load_last(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The newest sound checkpoint of a run folder, and a warning if the newest file was not sound.

    Neither: no checkpoint was written yet. Raises UserError if there are checkpoints and all are damaged. Leftovers
    of a write that was cut short are removed.
    """
    for leftover in (folder / "checkpoints").glob("*.tmp.*"):
        leftover.unlink()
    paths = [folder / "checkpoints" / name for name in ("last.pt", "previous.pt")]
    problems = []
    for path in paths:
        if not path.exists():
            continue
        try:
            content = read_checkpoint(path)
        except UserError as error:
            problems.append(str(error))
            continue
        return content, f"{problems[0]}; going on from {path.name}" if problems else None
    if problems:
        raise UserError(f"{problems[0]}; no sound checkpoint is left, start a new run")
    return None, None

"""What a command is told about the job it runs, beside its config."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    overrides: tuple[str, ...]  # this job's own overrides, in Hydra's spelling; they belong into environment.json
    command: str  # the shell line as it was typed
    sweep_folder: Path | None  # the folder of the whole sweep, None for a single run
    folder: Path | None  # this job's folder inside the sweep; it exists already and may hold an interrupted run


def is_main_process() -> bool:
    """Whether this process claims folders and speaks; ``torchrun`` numbers the others from 1."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """How many processes of ``torchrun`` train together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))

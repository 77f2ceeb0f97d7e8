"""What a command is told about the job it runs, besides its config."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    overrides: tuple[str, ...]  # this job's own overrides, in Hydra's spelling, as environment.json records them
    command: str  # the command line as it was typed
    sweep_folder: Path | None  # the folder of the whole sweep, None for a single run
    folder: Path | None  # this job's folder inside the sweep; it exists and may hold an interrupted run


def is_main_process() -> bool:
    """Whether this process claims folders and prints; ``torchrun`` numbers the others from 1."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """How many processes of ``torchrun`` train together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_restarted() -> bool:
    """Whether ``torchrun`` has started the processes again, because one of them had failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def may_be_restarted() -> bool:
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"

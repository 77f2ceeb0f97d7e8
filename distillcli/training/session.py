"""What all the fits of one command share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distillcli.runtime import Runtime


class Watcher(Protocol):
    """Whoever watches a fit: is told of every step, and of every epoch with its two rows of ``metrics.jsonl``."""

    def step(self, loss: float | None) -> None: ...

    def epoch(self, train: dict[str, Any], evaluation: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Session:
    """``watch``: (role, epochs, steps per epoch, steps done) -> a watcher. ``say``, ``warn``: one line to the user.

    ``saved``: is told of the folder of a fit whenever a checkpoint has been written there.
    """

    runtime: Runtime
    command: str
    watch: Callable[[str, int, int, int], AbstractContextManager[Watcher]]
    say: Callable[[str], None]
    warn: Callable[[str], None]
    saved: Callable[[Path], None]

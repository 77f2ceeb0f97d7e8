"""What all the fits of one command share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from distillcli.errors import Interrupted
from distillcli.runtime import Runtime, any_rank
from distillcli.signals import Stop


class Watcher(Protocol):
    """Whoever watches a fit: is told of every step, and of every epoch with its two rows of ``metrics.jsonl``."""

    def step(self, loss: float | None) -> None: ...

    def epoch(self, train: dict[str, Any], evaluation: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Session:
    """``watch``: (role, epochs, steps per epoch, steps done) -> a watcher. ``say``, ``warn``: one line to the user."""

    runtime: Runtime
    stop: Stop
    command: str
    watch: Callable[[str, int, int, int], AbstractContextManager[Watcher]]
    say: Callable[[str], None]
    warn: Callable[[str], None]

    def is_stopping(self) -> bool:
        """Whether any rank was asked to stop; every rank must ask at the same point."""
        return any_rank(bool(self.stop.exit_code), self.runtime)

    def interruption(self) -> Interrupted:
        """What to raise then. Another rank may have got the signal: its code is not known here."""
        return Interrupted("interrupted", self.stop.exit_code or 143)

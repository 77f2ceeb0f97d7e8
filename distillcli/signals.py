"""Ctrl-C, SIGTERM and SIGUSR1: finish the step, save, exit."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


@dataclass
class Stop:
    """``exit_code`` is 0 until a signal asks to stop; the training loop checks it between steps."""

    exit_code: int = 0


@contextmanager
def listening() -> Iterator[Stop]:
    """Turn the first signal into a request to stop; a second Ctrl-C raises KeyboardInterrupt at once."""
    stop = Stop()

    def request(number: int, _frame: FrameType | None) -> None:
        if stop.exit_code and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.exit_code = EXIT_CODES[signal.Signals(number)]

    before = {number: signal.signal(number, request) for number in EXIT_CODES}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

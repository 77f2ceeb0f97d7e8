"""Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP: finish what is at hand, save, exit; where there is nothing to save, exit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from distillcli.errors import Interrupted

# 128 + the number of the signal; a scheduler warns with SIGUSR1 and means SIGTERM.
EXIT_CODES = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}

Handler = Callable[[int, FrameType | None], None]


@dataclass
class Stop:
    """``exit_code`` is 0 until a signal asks to stop. Whoever works long looks at it by ``Runtime.obey_stop``."""

    exit_code: int = 0

    def is_asked(self) -> bool:
        return bool(self.exit_code)


@contextmanager
def listening() -> Iterator[Stop]:
    """Turn the first signal into a request to stop; a second Ctrl-C raises KeyboardInterrupt at once."""
    stop = Stop()

    def request(number: int, _frame: FrameType | None) -> None:
        if stop.is_asked() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.exit_code = EXIT_CODES[signal.Signals(number)]

    with _handled(request, *EXIT_CODES):
        yield stop


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Where nothing is there to be saved, a signal raises Interrupted, as Ctrl-C raises KeyboardInterrupt anyway."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise Interrupted("interrupted", EXIT_CODES[signal.Signals(number)])

    with _handled(leave, *(number for number in EXIT_CODES if number != signal.SIGINT)):
        yield


@contextmanager
def _handled(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    """Let ``handler`` answer these signals; SIGHUP stays ignored where it is, as under nohup."""
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_closed(terminals)
        handler(number, frame)

    under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    answered = [number for number in numbers if not (under_nohup and number == signal.SIGHUP)]
    before = {number: signal.signal(number, handle) for number in answered}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _leave_closed(terminals: list[int]) -> None:
    """What is still to be said goes nowhere once the terminal is closed: writing to it is an error."""
    for descriptor in terminals:
        if not os.isatty(descriptor):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)

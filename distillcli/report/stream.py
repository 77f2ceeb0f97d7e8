"""The standard streams as a run may find them: absent, closed, on a full disk, or without Unicode."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Literal, TextIO

# For terminals that cannot show them (LANG=C).
_ASCII = str.maketrans({"×": "x", "–": "-", "—": "-", "±": "+/-", "·": "*", "…": "...", "→": "->"})  # noqa: RUF001


class Stream:
    """``sys.stdout`` or ``sys.stderr`` as it is at the time of writing, which may be None, closed or not Unicode.

    rich would end the process on a closed pipe; here the stream falls silent and the training goes on. ``lost`` is
    called once with the error that made it so.
    """

    def __init__(self, name: Literal["stdout", "stderr"], lost: Callable[[OSError], None]) -> None:
        self.name = name
        self.lost = lost
        self.dead: TextIO | None = None

    def _target(self) -> TextIO | None:
        stream: TextIO | None = sys.stdout if self.name == "stdout" else sys.stderr
        return None if stream is None or stream is self.dead or stream.closed else stream

    @property
    def encoding(self) -> str:
        stream = self._target()
        return (stream.encoding if stream else None) or "utf-8"

    def isatty(self) -> bool:
        stream = self._target()
        return stream is not None and stream.isatty()

    def fileno(self) -> int:
        stream = self._target()
        if stream is None:
            raise OSError(f"{self.name} is closed")
        return stream.fileno()

    def write(self, words: str) -> int:
        stream = self._target()
        if stream is None:
            return len(words)
        try:
            try:
                stream.write(words)
            except UnicodeEncodeError:
                plain = words.translate(_ASCII).encode(self.encoding, "replace")
                stream.write(plain.decode(self.encoding))
        except OSError as error:
            self._give_up(stream, error)
        return len(words)

    def flush(self) -> None:
        stream = self._target()
        if stream is None:
            return
        try:
            stream.flush()
        except OSError as error:
            self._give_up(stream, error)

    def _give_up(self, stream: TextIO, error: OSError) -> None:
        self.dead = stream
        # Python flushes what is left once more at exit, and would then end with code 120.
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        self.lost(error)

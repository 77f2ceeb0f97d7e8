"""The exceptions that carry an exit code.

Everything a user can fix is a :class:`UserError` and is shown as one line. Everything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

# The disk, the quota of the user, or the largest file that this process may write.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A mistake in the config, the data, a checkpoint or the environment: one line on stderr, exit code 2.

    The message names the key or file, the value, and the fix.
    """


class NumericError(Exception):
    """Training produced a non-finite number: one line on stderr, exit code 1, earlier checkpoints untouched."""


class Interrupted(BaseException):
    """A signal asked to stop; raised after the state has been saved. ``exit_code``: 128 + the number of the signal.

    Derives from ``BaseException`` so that a sweep stops instead of going on with its next job.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"`` for the nearest known names, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(match) for match in nearest)}?" if nearest else ""

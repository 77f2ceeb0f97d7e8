"""Random numbers as a pure function of what they are for.

A counter-based generator: each number is a hash of (seed, stream, view, index, draw). It has no state, so a view can be
drawn again by any process, in any order, and is the same.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): an odd increment and a finaliser; the output passes BigCrush.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)


def _finalise(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    finalised: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return finalised


def uniform(
    seed: int, stream: str, view: int | NDArray[np.int64], index: NDArray[np.int64], draws: int
) -> NDArray[np.float64]:
    """``len(index)`` x ``draws`` numbers in [0, 1): row ``i`` belongs to (seed, stream, view[i], index[i]).

    ``view``: one per index, or one for all.
    """
    known, row = np.unique(view, return_inverse=True)
    digests = [hashlib.blake2b(f"{seed}/{stream}/{number}".encode(), digest_size=8).digest() for number in known]
    starts = np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)
    with np.errstate(over="ignore"):
        rows = _finalise(starts[row] + index.astype(np.uint64) * _INCREMENT)
        cells = _finalise(rows[:, None] + np.arange(1, draws + 1, dtype=np.uint64) * _INCREMENT)
    numbers: NDArray[np.float64] = (cells >> np.uint64(11)) * 2.0**-53
    return numbers


def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order in which ``count`` images are shown in ``epoch``."""
    return np.argsort(uniform(seed, "order", epoch, np.arange(count), 1)[:, 0], kind="stable")

"""What may stand in a file that was edited by hand in the place of any value, and where: for readers of JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WRONG: list[Any] = [None, True, "x", "\ud800", -1, 0, 2.5, 10**30, 10**400, float("nan"), float("inf")]
WRONG += [[], [1, None, {}], {}, {"a": 1}, [[{}]]]


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every list and object of ``node`` with each of its indices or keys."""
    if isinstance(node, (dict, list)):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from places(node[key])


@contextmanager
def replaced(node: Any, key: Any, wrong: Any) -> Iterator[None]:
    """One place of a file holds ``wrong``, for a while."""
    right = node[key]
    node[key] = wrong
    yield
    node[key] = right

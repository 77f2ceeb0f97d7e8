"""What a single value may be. Every refusal is a UserError of one line: key, value, fix."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from distillcli.errors import UserError, did_you_mean


def check_finite(config: dict[str, Any]) -> None:
    for key, value in numbers(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value}: must be a finite number")


def numbers(node: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a config as a plain dict, under its dotted key: ``teacher.members[0].weight``."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from numbers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from numbers(value, f"{path}[{place}]")
    elif isinstance(node, (int, float)) and not isinstance(node, bool):
        yield path, node


def at_least(key: str, value: float, low: float) -> None:
    if value < low:
        raise UserError(f"{key}={value}: must be at least {low}")


def above_zero(key: str, value: float) -> None:
    if value <= 0:
        raise UserError(f"{key}={value}: must be above 0")


def check_share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{key}={value}: must be in [0, 1]")


def check_ascending(key: str, value: list[float]) -> None:
    if len(value) != 2 or not 0 < value[0] <= value[1]:
        raise UserError(f"{key}={list(value)}: must be two ascending positive numbers, [low,high]")


def check_two_shares(key: str, value: list[float]) -> None:
    if len(value) != 2 or not all(0 < share <= 1 for share in value):
        raise UserError(f"{key}={list(value)}: must be two fractions above 0 and at most 1, e.g. [0.5,0.75]")


def one_of(key: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value}: must be one of {', '.join(choices)}")


def check_known(key: str, value: str, choices: Collection[str]) -> None:
    """Like ``one_of``, for lists too long to print; an empty list means that the names could not be read."""
    if choices and value not in choices:
        listed = f"; known: {', '.join(sorted(choices))}" if len(choices) < 15 else ""
        raise UserError(f"{key}={value}: unknown{did_you_mean(value, choices) or listed}")


def check_existing(key: str, value: str, shown: str | None = None, others: Collection[str] = ()) -> None:
    path = Path(value)
    if not path_exists(path):
        slashes = "; paths are written with / here" if "\\" in value else ""
        raise UserError(f"{key}={shown or value}: does not exist{nearest_path(path, others)}{slashes}")


def path_exists(path: str | Path) -> bool:
    """``Path.exists``, also for a name too long for the file system, which cannot exist."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def nearest_path(path: Path, others: Collection[str] = ()) -> str:
    """``"; did you mean ...?"`` with the nearest names beside a path that does not exist, or where the path ends."""
    parent = path.parent
    if not parent.is_dir():
        while not parent.is_dir() and parent != parent.parent:
            parent = parent.parent
        return f"; {parent} exists" if str(parent) not in (".", "/") else ""
    siblings = {entry.name: str(parent / entry.name) for entry in parent.iterdir()}
    known = {**{name: name for name in others}, **siblings}
    hint = did_you_mean(path.name, known)
    for name, full in siblings.items():
        hint = hint.replace(f"'{name}'", f"'{full}'")
    return hint

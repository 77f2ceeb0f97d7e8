"""YAML that somebody else may have written, read within limits.

A few lines of anchors that refer to anchors stand for billions of values, and a thousand opening brackets exhaust the
stack of a parser. So the events of a file are counted before anything is built from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from distillcli.errors import UserError

MOST_BYTES = 1_000_000
MOST_VALUES = 50_000  # keys, values and what aliases repeat
DEEPEST = 50

_OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def read_yaml(file: Path) -> Any:
    """The plain data of a file. Raises UserError where it is no YAML or too much of it, OSError where it is missing."""
    check_size(file)
    try:
        return yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error


def parse_yaml(text: str) -> Any:
    """The plain data that ``text`` stands for. Raises ValueError where it is too much, YAMLError for no YAML."""
    too_much = _too_much(text)
    if too_much:
        raise ValueError(too_much)
    return yaml.safe_load(text)


def check_size(file: Path) -> None:
    """Raise UserError for a file that stands for more values than a config has; what is no YAML passes."""
    if file.stat().st_size > MOST_BYTES:
        raise UserError(f"{file}: larger than {MOST_BYTES:,} bytes, which no config is; keep other files elsewhere")
    try:
        too_much = _too_much(file.read_text("utf-8"))
    except (yaml.YAMLError, ValueError):
        return
    if too_much:
        raise UserError(f"{file}: {too_much}, which no config has; write it without anchors")


def _too_much(text: str) -> str | None:
    """What is beyond the limits; the sizes of anchored parts are added up, and no part is copied."""
    sizes: dict[str, int] = {}
    open_parts: list[tuple[str | None, int]] = []  # (anchor, values counted before it)
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_parts):
                return f"the anchor {event.anchor} contains itself"
            count += sizes.get(str(event.anchor), 1)
        elif isinstance(event, _CLOSING):
            anchor, before = open_parts.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, (*_OPENING, yaml.ScalarEvent)):
            count += 1
            if isinstance(event, _OPENING):
                open_parts.append((event.anchor, count - 1))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        if count > MOST_VALUES:
            return f"it stands for more than {MOST_VALUES:,} values"
        if len(open_parts) > DEEPEST:
            return f"it is nested more than {DEEPEST} levels deep"
    return None

"""``~`` in paths: expanded in one place, for every key of a config alike, whether typed or in a file."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

_LOCAL = "local-dir:"


def expand_home(path: str) -> str:
    """``~/photos`` and ``local-dir:~/model`` below the home folder; ``~name`` of no user stays, as in a shell."""
    if path.startswith(_LOCAL):
        return _LOCAL + expand_home(path.removeprefix(_LOCAL))
    return os.path.expanduser(path)  # noqa: PTH111 - Path raises an error where there is no such user


def expand_homes(node: Any) -> Any:
    """A config with every text in it expanded: no other value of a config begins with ``~``."""
    if isinstance(node, str):
        return expand_home(node)
    if isinstance(node, list):
        return [expand_homes(item) for item in node]
    if isinstance(node, dict):
        return {key: expand_homes(item) for key, item in node.items()}
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        values = {field.name: expand_homes(getattr(node, field.name)) for field in dataclasses.fields(node)}
        return dataclasses.replace(node, **values)
    return node

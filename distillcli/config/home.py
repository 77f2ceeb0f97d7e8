"""``~`` in paths: expanded in one place, for every key of a config alike, whether typed or in a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from distillcli.errors import UserError

_LOCAL = "local-dir:"


def expand_home(key: str, path: str) -> str:
    """``~/photos`` and ``local-dir:~/model`` below the home folder. Raises UserError if there is no such user."""
    if path.startswith(_LOCAL):
        return _LOCAL + expand_home(key, path.removeprefix(_LOCAL))
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise UserError(
            f"{key}={path}: there is no home folder of {path.split('/')[0]}; for a name that begins with ~ write "
            f"{key}=./{path}"
        ) from error


def expand_homes(node: Any, key: str = "") -> Any:
    """A config with every text in it expanded: no other value of a config begins with ``~``."""
    if isinstance(node, str):
        return expand_home(key, node)
    if isinstance(node, list):
        return [expand_homes(item, f"{key}[{number}]") for number, item in enumerate(node)]
    if isinstance(node, dict):
        return {name: expand_homes(item, f"{key}.{name}") for name, item in node.items()}
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        names = [field.name for field in dataclasses.fields(node)]
        return dataclasses.replace(
            node, **{name: expand_homes(getattr(node, name), f"{key}.{name}" if key else name) for name in names}
        )
    return node

"""The spelling of overrides: from what a user types to what Hydra's grammar accepts. Text in, text out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from distillcli.config.keys import dotted_keys, is_open
from distillcli.config.primaries import PRIMARIES
from distillcli.errors import UserError

PATH_KEYS = frozenset(
    {
        "checkpoint",
        "teacher.checkpoint",
        "teacher.class_map",
        "teacher.classes",
        "student.checkpoint",
        "dataset.root",
        "dataset.labels",
        "dataset.class_map",
        "dataset.path",
        "out",
        "runs",
        "resume",
        "hydra.sweep.dir",
        "hydra.run.dir",
    }
)

_SECRET = re.compile(r"token|secret|password|api_?key", re.IGNORECASE)
# Text that Hydra reads back as exactly itself. Anything else, "123" and "nan" included, is quoted.
_PLAIN_PATH = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_./][\w./+@%-]*", re.ASCII | re.IGNORECASE)
_SWEEP_FUNCTION = re.compile(r"(choice|glob|sort|shuffle)\(.*\)", re.DOTALL)


def split_override(override: str) -> tuple[str, str, str]:
    """``+key=value`` as ("+", "key", "value"). Raises UserError when it is not of that form."""
    prefix, key, equals, value = re.fullmatch(r"([+~]*)([^=]*)(=?)(.*)", override, re.DOTALL).groups()  # type: ignore[union-attr]
    if prefix not in ("", "+", "++", "~") or not key or (not equals and prefix != "~"):
        raise UserError(f"{override!r} is not of the form key=value or group=option")
    return prefix, key.strip(), value


def key_of(override: str) -> str:
    return split_override(override)[1]


def normalise_overrides(primary: str, overrides: list[str], multirun: bool = False) -> list[str]:
    """The same overrides in the one spelling that Hydra accepts; a second pass changes nothing.

    Adds the ``+`` of ``experiment=``, the ``++`` of new keys in open mappings, and quotes around paths.
    """
    known = dotted_keys(PRIMARIES[primary].schema)
    found = []
    for override in overrides:
        prefix, key, value = split_override(override)
        if _SECRET.search(key):
            raise UserError(
                f"{key}: secrets do not belong in configs, which are saved; use the environment variable HF_TOKEN"
            )
        if prefix == "~":
            found.append(override)
            continue
        if key == "experiment" and PRIMARIES[primary].overlays:
            prefix = "+"
        elif is_open(key, known) or known.get(key) == "mapping":
            prefix = "++"
        elif key in known:
            prefix = ""
        if key in PATH_KEYS:
            value = path_value(value, multirun)
        found.append(f"{prefix}{key}={value}")
    keys = [key_of(override) for override in found]
    for key in ("experiment", "out", "resume"):
        if keys.count(key) > 1:
            raise UserError(f"{key} is given {keys.count(key)} times; keep one")
    return found


def path_value(value: str, multirun: bool = False) -> str:
    """A path as Hydra must see it: ``~`` expanded, and quoted if the override grammar would read anything in it.

    In a multirun ``a,b`` stays a sweep over two paths, unless a file of that very name exists.
    """
    if value in ("", "null") or "${" in value or (value[0] in "'\"" and not Path(value).exists()):
        return value
    if multirun and not Path(value).expanduser().exists():
        if _SWEEP_FUNCTION.fullmatch(value):
            return value
        if "," in value:
            return ",".join(path_value(part.strip()) for part in value.split(","))
    path = str(Path(value).expanduser()) if value.startswith("~") else value
    return path if _PLAIN_PATH.fullmatch(path) else quote_value(path)


def quote_value(text: str) -> str:
    """A quoted string of Hydra's grammar: backslashes are special only before a quote."""
    escaped = re.sub(r"(\\*)(')", r"\1\1\\\2", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message for a key that is not in the schema, with the nearest keys at any level."""
    if "@" in key:
        return f"unknown key {key}; packages (@) are not used here: write group=option or key=value"
    # A nested key typed without its parents is near as well: temperature -> distill.temperature.
    last = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    near = near or [name for name in known if name.rsplit(".", 1)[-1] == last][:3]
    near = near or difflib.get_close_matches(key, known, n=2, cutoff=0.6)
    return f"unknown key {key}; " + (f"did you mean {' or '.join(near)}?" if near else "see all keys with --cfg job")

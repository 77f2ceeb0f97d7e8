"""The spelling of overrides: from what a user types to what Hydra's grammar accepts. Text in, text out."""

from __future__ import annotations

import re

from distillcli.config import guard
from distillcli.config.home import expand_home
from distillcli.config.keys import dotted_keys, is_open
from distillcli.config.mistakes import bare_word
from distillcli.config.primaries import PRIMARIES
from distillcli.config.ranges import path_exists
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
        "input",
        "out",
        "runs",
        "resume",
        "hydra.sweep.dir",
    }
)

# Text that Hydra reads back as exactly itself. Anything else, "1e5", "007" and "nan" included, is quoted.
_PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_./][\w./+@%-]*", re.ASCII | re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")
_SWEEP_FUNCTION = re.compile(r"(choice|glob|sort|shuffle)\(.*\)", re.DOTALL)
_GRAMMAR = re.compile(r"[\[\]{}()'\",]|\$\{")  # what makes lists, mappings, sweeps and references of a text


def split_override(override: str) -> tuple[str, str, str]:
    """``+key=value`` as ("+", "key", "value"). Raises UserError when it is not of that form."""
    prefix, key, equals, value = re.fullmatch(r"([+~]*)([^=]*)(=?)(.*)", override, re.DOTALL).groups()  # type: ignore[union-attr]
    if prefix not in ("", "+", "++", "~") or not key.strip() or (not equals and prefix != "~"):
        raise UserError(f"{override!r} is not of the form key=value or group=option")
    return prefix, key.strip(), value


def key_of(override: str) -> str:
    return split_override(override)[1]


def normalise_overrides(primary: str, overrides: list[str], multirun: bool = False) -> list[str]:
    """The same overrides in the one spelling that Hydra accepts; a second pass changes nothing.

    Adds the ``+`` of ``experiment=``, the ``++`` of new keys in open mappings, and quotes around paths and other text
    that Hydra would read as a number or not at all.
    """
    known = dotted_keys(PRIMARIES[primary].schema)
    found = []
    for place, override in enumerate(overrides):
        if not override.startswith("~") and ("=" not in override or override.startswith("=")):
            raise UserError(bare_word(primary, overrides, place))
        prefix, key, value = split_override(override)
        if not (is_open(key, known) and _is_setting(value)):
            guard.check_secret(key)
        if prefix == "~":
            found.append(override)
            continue
        if key == "experiment" and PRIMARIES[primary].overlays:
            prefix = "+"
        elif is_open(key, known) or known.get(key) == "mapping":
            prefix = "++"
        elif key in known:
            prefix = ""
        if key in PATH_KEYS or value.startswith(("~", "local-dir:")):
            value = path_value(key, value, multirun)
        elif known.get(key, "").startswith(("text", "config")) or key == "experiment":
            value = _text_value(value, multirun)
        found.append(f"{prefix}{key}={value}")
    keys = [key_of(override) for override in found]
    for key in ("experiment", "out", "resume"):
        if keys.count(key) > 1:
            raise UserError(f"{key} is given {keys.count(key)} times; keep one")
    return found


def _is_setting(value: str) -> bool:
    """Whether a value is no text and so no secret, as in ``student.args.class_token=false``."""
    return value.lower() in ("true", "false", "null") or re.fullmatch(r"[-+.\deE]+", value, re.ASCII) is not None


def path_value(key: str, value: str, multirun: bool = False) -> str:
    """A path as Hydra must see it: ``~`` expanded, and quoted if the override grammar would read anything in it.

    In a multirun ``a,b`` stays a sweep over two paths, unless a file of that very name exists. Raises UserError for the
    home of somebody who does not exist.
    """
    if value in ("", "null") or "${" in value or (value[0] in "'\"" and not path_exists(value)):
        return value
    path = expand_home(key, value)
    if multirun and not path_exists(path):
        if _SWEEP_FUNCTION.fullmatch(value):
            return value
        if "," in value:
            return ",".join(path_value(key, part.strip()) for part in value.split(","))
    return path if _PLAIN.fullmatch(path) else quote_value(path)


def _text_value(value: str, multirun: bool) -> str:
    """Text as Hydra must see it, to arrive as it was typed: not 100000.0 for 1e5."""
    if multirun and "," in value and not _GRAMMAR.search(value.replace(",", "")):
        return ",".join(_text_value(part.strip(), multirun=False) for part in value.split(","))
    if value in ("", "null") or _PLAIN.fullmatch(value) or _WHOLE_NUMBER.fullmatch(value) or _GRAMMAR.search(value):
        return value
    return quote_value(value)


def quote_value(text: str) -> str:
    """A quoted string of Hydra's grammar: backslashes are special only before a quote."""
    escaped = re.sub(r"(\\*)(')", r"\1\1\\\2", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"

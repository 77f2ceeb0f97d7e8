"""Every dotted key of a schema, for did-you-mean and shell completion."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from typing import Any

from omegaconf import MISSING


def schema_of(annotation: Any) -> type | None:
    """The dataclass behind an annotation, Optional or not; None for a plain value."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(annotation) if part is not type(None)]
        annotation = inner[0] if len(inner) == 1 else None
    return annotation if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) else None


def dotted_keys(schema: type) -> dict[str, str]:
    """Dotted key -> its type as a word. The type "mapping" marks an open mapping, which takes new keys."""
    return dict(_dotted_keys(schema))


@functools.cache
def _dotted_keys(schema: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, annotation in typing.get_type_hints(schema).items():
        nested = schema_of(annotation)
        found[name] = "config" if nested else _word(annotation)
        if nested:
            found |= {f"{name}.{key}": word for key, word in dotted_keys(nested).items()}
    return found


def element_keys(schema: type) -> dict[str, dict[str, str]]:
    """The dotted keys of lists of configs, as ``teacher.members``, each with the keys of its elements."""
    found: dict[str, dict[str, str]] = {}
    for name, annotation in typing.get_type_hints(schema).items():
        nested = schema_of(annotation)
        if nested:
            found |= {f"{name}.{key}": inner for key, inner in element_keys(nested).items()}
        elif typing.get_origin(annotation) is list and (element := schema_of(typing.get_args(annotation)[0])):
            found[name] = dotted_keys(element)
    return found


def _word(annotation: Any) -> str:
    if typing.get_origin(annotation) is dict:
        return "mapping"
    plain = [part for part in typing.get_args(annotation) if part is not type(None)]
    if typing.get_origin(annotation) is typing.Union:
        return f"{_word(plain[0])} or null"
    if typing.get_origin(annotation) is list:
        return "list of mappings" if schema_of(plain[0]) else f"list of {_word(plain[0])}s"
    words = {"bool": "true or false", "int": "whole number", "float": "number", "str": "text"}
    return words.get(annotation.__name__, str(annotation.__name__))


def key_notes(schema: type) -> dict[str, tuple[str, str]]:
    """Dotted key of every value -> its default as in YAML and the comment that stands beside it in the schema."""
    found: dict[str, tuple[str, str]] = {}
    hints = typing.get_type_hints(schema)
    comments = comments_of(schema)
    for field in dataclasses.fields(schema):
        nested = schema_of(hints[field.name])
        if nested:
            found |= {f"{field.name}.{key}": note for key, note in key_notes(nested).items()}
        else:
            found[field.name] = (_default(field), comments[field.name])
    return found


def comments_of(schema: type) -> dict[str, str]:
    """The comments behind the fields of a dataclass and of those it derives from."""
    found: dict[str, str] = {}
    for part in reversed(schema.__mro__[:-1]):
        for line in inspect.getsource(part).splitlines():
            declared = re.match(r" {4}(\w+): [^#]*(?:# (.*))?$", line)
            if declared:
                found[declared[1]] = declared[2] or ""
    return found


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field of a schema; MISSING as a string where there is none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _default(field: dataclasses.Field[Any]) -> str:
    value = default_of(field)
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return "" if value == MISSING else str(value)


def is_open(key: str, known: dict[str, str]) -> bool:
    """Whether ``key`` lies inside one of the open mappings, e.g. ``distill.terms.kl.weight``."""
    parts = key.split(".")
    return any(known.get(".".join(parts[:length])) == "mapping" for length in range(1, len(parts)))

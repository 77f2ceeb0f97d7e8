"""A primary config as a JSON Schema (draft 2020-12), for editors, scripts and assistants that write configs.

It says what ``schema.py`` and its tables know: types, defaults, comments, limits, the options of every loss term. What
depends on other keys or on the data is refused by the command itself.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from omegaconf import MISSING

from distillcli.config.keys import comments_of, default_of, schema_of
from distillcli.config.limits import highest
from distillcli.config.primaries import PRIMARIES
from distillcli.config.terms import KNOWN_TERMS

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_TERMS = "distill.terms"
Schema = dict[str, Any]


def json_schema(primary: str) -> Schema:
    """The config of the command ``primary`` as plain data."""
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"distill {primary}"}
    return about | _object(PRIMARIES[primary].schema, "")


def _object(schema: type, path: str) -> Schema:
    """No other keys are allowed, as on the command line."""
    hints, comments = typing.get_type_hints(schema), comments_of(schema)
    properties, required = {}, []
    for field in dataclasses.fields(schema):
        key = f"{path}.{field.name}" if path else field.name
        described = _value(hints[field.name], key)
        if comments[field.name]:
            described["description"] = comments[field.name]
        default = default_of(field)
        if default == MISSING:
            required.append(field.name)
        elif not dataclasses.is_dataclass(default):
            described["default"] = default
        properties[field.name] = described
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return found | ({"required": required} if required else {})


def _value(annotation: Any, key: str) -> Schema:
    nested = schema_of(annotation)
    if nested is not None:
        return _object(nested, key)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        described = [_value(part, key) if part is not type(None) else {"type": "null"} for part in inner]
        merged = {name: value for part in described for name, value in part.items()}
        return merged | {"type": [part["type"] for part in described]}
    if origin in (list, tuple):
        return {"type": "array", "items": _value(inner[0], key)}
    if origin is dict:
        return _terms() if key == _TERMS else {"type": "object"}
    return {"type": _TYPES[annotation]} | _limit(annotation, key)


def _limit(annotation: type, key: str) -> Schema:
    most = highest(key) if annotation in (int, float) else math.inf
    return {} if math.isinf(most) else {"maximum": most}


def _terms() -> Schema:
    terms = {name: _object(term.options, f"{_TERMS}.{name}") for name, term in KNOWN_TERMS.items()}
    return {"type": "object", "properties": terms, "additionalProperties": False}

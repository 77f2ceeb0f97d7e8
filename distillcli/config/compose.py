"""From overrides to a typed, checked config; every mistake becomes one readable line."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from distillcli.config import guard, search
from distillcli.config.home import expand_homes
from distillcli.config.keys import dotted_keys, element_keys, is_open
from distillcli.config.limits import check_highest
from distillcli.config.mistakes import unknown_key, unknown_option
from distillcli.config.overrides import key_of, normalise_overrides, quote_value, split_override
from distillcli.config.primaries import PRIMARIES
from distillcli.config.ranges import check_finite
from distillcli.errors import UserError, did_you_mean


def compose(primary: str, overrides: list[str]) -> object:
    """The typed config of one job: an instance of the schema of ``primary``.

    ``primary``: a name in the table of primary configs. Raises UserError, one line, for anything a user can fix.
    """
    return typed_config(primary, compose_raw(primary, normalise_overrides(primary, overrides)))


def compose_raw(primary: str, overrides: list[str]) -> DictConfig:
    """The composed config with its ``hydra`` node, checked for code but not yet typed."""
    register_schemas()
    groups = search.groups()
    for override in overrides:
        _check_override(primary, parse_override(override), groups)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(search.builtin_folder()), version_base="1.3"):
            config = hydra_compose(primary, overrides, return_hydra_config=True)
    except YAMLError as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException, ValueError, KeyError, AssertionError) as error:
        # Hydra 1.3 raises the last three for some malformed files and options.
        raise UserError(_message(primary, overrides, error, groups)) from error
    if OmegaConf.get_type(config) is not PRIMARIES[primary].schema:
        raise UserError(f"{primary}.yaml in your config folder must begin its defaults list with {primary}_schema")
    guard.check_hydra(cast("dict[str, Any]", OmegaConf.to_container(config.hydra, resolve=False)))
    return config


def typed_config(primary: str, config: DictConfig) -> object:
    """A composed config as an instance of its schema: complete, without unknown keys, resolved, and in range."""
    known = dotted_keys(PRIMARIES[primary].schema)
    config = config.copy()
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    plain = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    guard.check_content(plain)
    for key in _keys(plain):
        if key not in known and not is_open(key, known):
            raise UserError(unknown_key(key, known))
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or _unresolved(config, plain)}: {str(error).splitlines()[0]}") from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(_missing(missing[0], search.groups()))
    try:
        result: Any = expand_homes(OmegaConf.to_object(config))
    except OverflowError as error:  # a whole number of hundreds of digits, where a number is wanted
        raise UserError(f"a number is too large: {' '.join(str(error).split())}") from error
    check(primary, result)
    return result


def check(primary: str, config: Any) -> None:
    """Raise UserError for the first number, path or combination in a typed config that cannot work."""
    content = dataclasses.asdict(config)
    check_finite(content)
    PRIMARIES[primary].check(config)
    check_highest(content)


def register_schemas() -> None:
    """Make the schemas and the user's folders known to Hydra; calling it twice does no harm."""
    _store_schemas()
    search.register()


@functools.cache  # a schema becomes a node of some hundred keys, which takes as long as a tenth of composing
def _store_schemas() -> None:
    for name, primary in PRIMARIES.items():
        ConfigStore.instance().store(f"{name}_schema", primary.schema)


def parse_override(override: str) -> Override:
    """One override as Hydra reads it. Raises UserError that says how to quote the value."""
    try:
        return OverridesParser.create().parse_override(override)
    except (OverrideParseException, HydraException) as error:
        key, value = split_override(override)[1:]
        advice = f"""quote the value for distill and for the shell: "{key}={quote_value(value)}\""""
        raise UserError(f"cannot read {override!r}; {advice}") from error


def _check_override(primary: str, override: Override, groups: dict[str, dict[str, Any]]) -> None:
    """Raise UserError for an unknown key or an unknown option of a group, with the nearest names."""
    key = override.get_key_element().lstrip("+~")
    guard.check_override(key)
    if key.startswith(("hydra.", "hydra/")):
        return
    if override.is_sweep_override():
        raise UserError(
            f"{override.input_line}: several values make a sweep; add -m, or quote the value to keep the commas"
        )
    known = dotted_keys(PRIMARIES[primary].schema)
    if key in groups and (key in known or PRIMARIES[primary].overlays):
        option = override.value()
        if not override.is_delete() and option not in list(groups[key]):
            raise UserError(unknown_option(key, split_override(override.input_line or key)[2].strip("'\"")))
    elif key not in known and not is_open(key, known):
        raise UserError(unknown_key(key, known, split_override(override.input_line or key)[2]))


def _keys(node: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{path}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{path}{key}.")


def _missing(key: str, groups: dict[str, dict[str, Any]]) -> str:
    group = key.split(".")[0]
    choice = f", or choose a {group} with {_example(group)}" if group in groups else ""
    return f"{key} is missing; set {key}=VALUE{choice}"


def _example(group: str) -> str:
    return "dataset=folder dataset.root=PATH" if group == "dataset" else f"{group}=NAME"


def _message(primary: str, overrides: list[str], error: Exception, groups: dict[str, dict[str, Any]]) -> str:
    """One line in place of the several that Hydra and OmegaConf write."""
    text, cause = str(error), error.__cause__
    if isinstance(error, MissingConfigException):
        lost = re.search(r"Could not find '(?:(.*)/)?([^/']*)'", text)
        if lost and lost[1] in ("hydra/launcher", "hydra/sweeper"):
            return f"{lost[1]}={lost[2]} is not installed; launchers: pip install 'distillcli[joblib]' or [submitit]"
        if lost and lost[1] in groups:
            return _named_by(text, unknown_option(lost[1], lost[2]), primary)
    if isinstance(error, AssertionError):
        optional = {field.name for field in dataclasses.fields(PRIMARIES[primary].schema) if field.default is None}
        for key in map(key_of, overrides):
            group = key.split(".")[0]
            if group in optional and group in groups:
                return f"{key}: no {group} is chosen; choose one first, e.g. {_example(group)}"
    detail = str(cause) if isinstance(cause, OmegaConfBaseException) else text
    full_key = re.search(r"full_key: (\S+)", detail)
    unknown = re.search(r"Key '(.*?)' not in", detail)
    for whole, keys in element_keys(PRIMARIES[primary].schema).items() if unknown else ():
        if unknown and unknown[1] not in keys and whole in map(key_of, overrides):
            return f"unknown key {whole}[].{unknown[1]}{did_you_mean(unknown[1], keys) or _it_has(keys)}"
    if full_key:
        return _named_by(text, _bad_value(primary, full_key[1], detail, text, set(groups)), primary)
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _named_by(text: str, message: str, primary: str) -> str:
    """Prefix the message with the config file that Hydra blames, unless that is the primary config."""
    blamed = re.match(r"In '(.+?)'", text)
    if not blamed or blamed[1] == primary:
        return message
    group, _, option = blamed[1].partition("/")
    file = search.groups().get(group, {}).get(option)
    return f"{file or blamed[1]}: {message}"


def _bad_value(primary: str, key: str, detail: str, text: str, groups: set[str]) -> str:
    known = dotted_keys(PRIMARIES[primary].schema)
    element = re.fullmatch(r"(.+?)\[\d+\](?:\.(.+))?", key)
    if element:
        return _bad_element(primary, key, element, detail)
    if key not in known and not is_open(key, known):
        if key in groups:
            return f"{key}.* is not part of the schema; the file needs '# @package _global_' as its first line"
        return unknown_key(key, known)
    value = re.search(r"Value '(.*?)' (?:of type|is not)", detail) or re.search(r"override [^=\s]+=(.*)", text)
    shown = f"={value[1]}" if value else ""
    return f"{key}{shown}: expected {known.get(key, 'another type')}"


def _bad_element(primary: str, key: str, element: re.Match[str], detail: str) -> str:
    """The message for a mistake within a list: of configs, as ``teacher.members``, or of plain values."""
    whole, inner = element.groups()
    value = re.search(r"Value '(.*?)' (?:of type|is not)", detail)
    shown = f"={value[1]}" if value else ""
    keys = element_keys(PRIMARIES[primary].schema).get(whole)
    if keys is None:
        return f"{key}{shown}: expected {dotted_keys(PRIMARIES[primary].schema).get(whole, 'another type')}"
    if inner is None:
        return f"{key}{shown}: each entry is a mapping, e.g. '{whole}=[{{name: resnet18}}]'"
    if inner not in keys:
        return f"unknown key {key}{did_you_mean(inner, keys) or _it_has(keys)}"
    return f"{key}{shown}: expected {keys[inner]}"


def _it_has(keys: Iterable[str]) -> str:
    return f"; it has {', '.join(keys)}"


def _unresolved(config: DictConfig, plain: dict[str, Any]) -> str:
    """The key whose interpolation fails; OmegaConf does not always name it."""
    for key in _keys(plain):
        try:
            OmegaConf.select(config, key)
        except OmegaConfBaseException:
            return key
    return "interpolation"

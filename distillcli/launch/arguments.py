"""The arguments of a Hydra command: flags and overrides, told apart in whatever order they were typed."""

from __future__ import annotations

from dataclasses import dataclass, field

from distillcli.config.mistakes import flag_instead
from distillcli.errors import UserError, did_you_mean

_ALIASES = {"-m": "--multirun", "-c": "--cfg", "-i": "--info", "-p": "--package", "-cd": "--config-dir"}
_CHOICES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
_WITH_VALUE = ("--cfg", "--info", "--package", "--config-dir")
FLAGS = ("--multirun", "--cfg", "--info", "--package", "--resolve", "--config-dir", "--help")


@dataclass
class Arguments:
    """``flags`` go to Hydra, ahead of the overrides; ``--config-dir`` is our own and does not."""

    multirun: bool = False
    inspect: bool = False  # --cfg or --info: show the config, run nothing
    package: str | None = None  # with --cfg: only this part
    flags: list[str] = field(default_factory=list)
    config_folders: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)


def parse_arguments(arguments: list[str]) -> Arguments:
    """Raises UserError for an unknown flag or a flag without its value."""
    found = Arguments()
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            found.overrides.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag = _ALIASES.get(flag, flag)
        if flag not in FLAGS:
            raise UserError(_unknown_flag(word, rest))
        if flag in _WITH_VALUE:
            value = _take_value(flag, [value] if equals else rest)
        elif equals:
            raise UserError(f"{word}: {flag} takes no value; write {flag} alone")
        _add(found, flag, value)
    shown = [flag for flag in ("--cfg", "--info") if flag in found.flags]
    if len(shown) > 1:
        raise UserError("--cfg and --info show different things; use one of them")
    for flag in ("--resolve", "--package"):
        if flag in found.flags and "--cfg" not in found.flags:
            raise UserError(f"{flag} says how --cfg shows a config; add --cfg job")
    if found.multirun and found.inspect:
        raise UserError("--cfg and --info show one config; leave -m out")
    return found


def _unknown_flag(word: str, rest: list[str]) -> str:
    flag, _, value = word.partition("=")
    if not value and rest and not rest[0].startswith("-") and "=" not in rest[0]:
        value = rest[0]
    known = did_you_mean(flag, [*FLAGS, *_ALIASES])
    return f"unknown flag {word}{flag_instead(flag, value) or known or '; see distill COMMAND --help'}"


def _take_value(flag: str, rest: list[str]) -> str:
    if flag in _CHOICES and (not rest or rest[0] not in _CHOICES[flag]):
        if flag == "--info":
            return "all"
        raise UserError(f"{flag} needs one of {', '.join(_CHOICES[flag])}, e.g. {flag} {_CHOICES[flag][0]}")
    if not rest:
        raise UserError(f"{flag} needs a value")
    return rest.pop(0)


def _add(found: Arguments, flag: str, value: str) -> None:
    if flag == "--config-dir":
        found.config_folders.append(value)
        return
    found.flags.extend([flag, value] if flag in _WITH_VALUE else [flag])
    found.package = value if flag == "--package" else found.package
    found.multirun = found.multirun or flag == "--multirun"
    found.inspect = found.inspect or flag in ("--cfg", "--info")

"""``distill completion SHELL``: a script for the shell, which asks ``distill complete`` for candidates.

Hydra's own completion does not know our commands, our spelling of ``experiment=`` or timm's models, so it is not used.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from distillcli.commands.table import COMMANDS
from distillcli.errors import UserError

# Bash splits words at = and :, so it is given only what follows the last of these.
_BASH = """_distill() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\\n'
    local word=${line##* }
    COMPREPLY=($(distill complete "$line" 2>/dev/null))
    local head=${word%"${word##*[=:]}"}
    COMPREPLY=("${COMPREPLY[@]#"$head"}")
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} != *= && ${COMPREPLY[0]} != */ ]] && COMPREPLY[0]+=' '
}
complete -o nospace -F _distill distill
"""
_ZSH = """#compdef distill
_distill() {
    local -a found
    found=(${(f)"$(distill complete "$LBUFFER" 2>/dev/null)"})
    compadd -Q -S '' -- $found
}
compdef _distill distill
"""
_FISH = """complete -c distill -f -a '(distill complete (commandline -cp) 2>/dev/null)'
"""
_TERMS = "distill.terms."
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def run(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        raise UserError(f"distill completion needs one of {', '.join(SCRIPTS)}")
    print(SCRIPTS[arguments[0]], end="")


def complete(arguments: list[str]) -> None:
    """Print what can follow a half-typed command line, one candidate per line."""
    line = arguments[0] if arguments else ""
    words = line.split()[1:]
    current = "" if not words or line[-1:].isspace() else words.pop()
    for candidate in candidates(words, current):
        print(candidate)


def candidates(words: list[str], current: str) -> list[str]:
    """``words``: those before, without "distill"; ``current``: the word being typed, possibly empty."""
    if not words:
        found: Iterable[str] = [*COMMANDS, "--help", "--version"]
    elif words[0] not in COMMANDS:
        found = []
    elif words[:2] == ["show", "views"]:
        found = _hydra("train", words[2:], current)
    elif words[0] == "bench":  # the same config as train
        found = ["--json"] if current.startswith("-") else _hydra("train", words[1:], current)
    else:
        primary = COMMANDS[words[0]].primary
        found = _plain(words) if primary is None else _hydra(primary, words[1:], current)
    return sorted(candidate for candidate in set(found) if candidate.startswith(current))


def _plain(words: list[str]) -> list[str]:
    from distillcli.commands.show import TOPICS
    from distillcli.config import search
    from distillcli.config.primaries import PRIMARIES

    match words:
        case ["show"]:
            return [*TOPICS, "views"]
        case ["completion"]:
            return list(SCRIPTS)
        case ["runs"]:
            return ["ls", "show", "rm", "prune"]
        case ["runs", "show" | "rm" | "prune", *_] | ["compare", *_]:
            return _runs()
        case ["cache"]:
            return ["ls", "verify", "clear"]
        case ["cache", "verify"]:
            return _runs()
        case ["cache", "clear"]:
            return ["all", *(file.parent.name for file in sorted(Path("runs/cache").glob("*/key.json")))]
        case ["configs"]:
            return ["ls", "cp", "schema"]
        case ["configs", "schema"]:
            return list(PRIMARIES)
        case ["configs", "cp"]:
            return [f"{group}/{option}" for group, options in search.groups().items() for option in options]
    return []


def _hydra(primary: str, words: list[str], current: str) -> list[str]:
    from distillcli.config import search
    from distillcli.config.keys import dotted_keys
    from distillcli.config.overrides import PATH_KEYS
    from distillcli.config.primaries import PRIMARIES
    from distillcli.launch.arguments import FLAGS

    if current.startswith("-"):
        return [*FLAGS, "-m"]
    search.use([after for before, after in itertools.pairwise(words) if before == "--config-dir"])
    known = dotted_keys(PRIMARIES[primary].schema)
    overlays = PRIMARIES[primary].overlays
    groups = {name: options for name, options in search.groups().items() if name in known or overlays}
    typed, equals, value = current.partition("=")
    key = typed.lstrip("+")
    if not equals:
        keys = [name for name, word in known.items() if word not in ("config", "mapping")]
        terms = _term_keys(key) if "distill.terms" in known else []
        return [f"{typed[: len(typed) - len(key)]}{name}=" for name in (*keys, *groups, *terms)]
    if key in ("resume", "checkpoint") and not value.startswith(("/", "~", ".")):
        return [f"{typed}={option}" for option in (*_paths(value), *_runs())]
    name = f"{primary}.{key}" if primary in ("export", "predict") and key in ("format", "epoch") else key
    values = _values(name, groups, known.get(key, ""), value if key in PATH_KEYS else None)
    return [f"{typed}={option}" for option in values]


def _term_keys(typed: str) -> list[str]:
    """The options of every term, once somebody asks for ``distill.terms.``."""
    from distillcli.config.terms import KNOWN_TERMS

    if not typed.startswith(_TERMS[:9]):
        return []
    return [
        f"{_TERMS}{name}.{option.name}"
        for name, known in KNOWN_TERMS.items()
        for option in dataclasses.fields(known.options)
    ]


def _runs() -> list[str]:
    """The run folders below ``runs``, those of fitted teachers and sweeps included."""
    found = sorted(Path("runs").glob("*/*/config.yaml")) + sorted(Path("runs").glob("sweeps/*/*/config.yaml"))
    return [str(file.parent) for file in found]


def _values(key: str, groups: dict[str, dict[str, Path]], word: str, path: str | None) -> Iterable[str]:
    from distillcli.config import check_export, check_models, check_predict, checks, model_names

    if path is not None:
        return _paths(path)
    if key in ("teacher.name", "student.name"):
        return model_names.model_names()
    if word.startswith("true or false"):
        return word.split(" or ")
    choices: dict[str, Iterable[str]] = {
        "trainer.precision": check_models.PRECISIONS,
        "teacher.precision": check_models.PRECISIONS,
        "teacher.fit.mode": check_models.FIT_MODES,
        "format": checks.FORMATS,
        "export.format": check_export.EXPORT_FORMATS,
        "predict.format": check_predict.PREDICT_FORMATS,
        "export.epoch": check_export.EPOCHS,
        "optimizer.name": model_names.optimizer_names(),
        "schedule.name": model_names.SCHEDULES,
        "trainer.device": ("auto", "cpu", "cuda", "mps"),
    }
    return choices.get(key, groups.get(key, {}))


def _paths(typed: str) -> list[str]:
    folder = Path(os.path.dirname(typed) or ".").expanduser()  # noqa: PTH120 - keeps what was typed, "./" included
    head = typed[: len(typed) - len(typed.rsplit("/", 1)[-1])]
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [f"{head}{entry.name}{'/' * entry.is_dir()}" for entry in entries if not entry.name.startswith(".")]

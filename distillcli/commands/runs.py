"""``distill runs``: list past runs, look at one, delete some, and free the room that finished ones no longer need."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distillcli.commands.table import COMMANDS
from distillcli.errors import UserError, did_you_mean
from distillcli.report.console import closing_table, say
from distillcli.report.format import byte_count
from distillcli.report.listing import print_listing
from distillcli.report.runs import HEADERS, object_of, row_of
from distillcli.runs.folder import point_latest
from distillcli.runs.inventory import STATES, Run, existing, find_runs, is_run, is_sweep

USAGE = f"distill runs {COMMANDS['runs'].usage}"
ORDERS: dict[str, Callable[[Run], Any]] = {
    "changed": lambda run: run.changed,
    "top1": lambda run: -1 if run.result.student is None else run.result.student.top1 or -1,
    "size": lambda run: run.size,
    "run": lambda run: str(run.folder),
}
OPTIONS = ("state", "sort", "runs")  # of ls
JSON_FLAG = "--json"


def run(arguments: list[str]) -> None:
    """Dispatch on the verb. Raises UserError for a wrong one."""
    match arguments:
        case ["ls", *words]:
            _list(words)
        case ["show", folder]:
            _show(folder)
        case ["rm", _, *_]:
            _remove(arguments[1:])
        case ["prune", *words]:
            _prune(words)
        case _:
            raise UserError(f"usage: {USAGE}")


def _list(words: list[str]) -> None:
    options, patterns = _options([word for word in words if word != JSON_FLAG], OPTIONS)
    if len(patterns) > 1:
        raise UserError(f"one PATTERN at most; quote it for the shell: distill runs ls '*{patterns[0]}*'")
    state, order = options.get("state"), options.get("sort", "changed")
    for key, value, known in (("state", state, STATES), ("sort", order, ORDERS)):
        if value is not None and value not in known:
            raise UserError(f"{key}={value}: one of {', '.join(known)}{did_you_mean(value, known)}")
    wanted = f"*{patterns[0]}*" if patterns else "*"
    runs = [
        run
        for run in find_runs(Path(options.get("runs", "runs")))
        if fnmatch.fnmatch(str(run.folder), wanted) and state in (None, run.state)
    ]
    runs.sort(key=ORDERS[order])
    if JSON_FLAG in words:
        say(json.dumps([object_of(run) for run in runs], ensure_ascii=False))
    elif runs:
        print_listing(HEADERS, [row_of(run) for run in runs])
    else:
        say("no such run here" if words else "no runs here yet; start one with distill train")


def _show(name: str) -> None:
    found = existing(name)
    say(f"{found.folder}: {found.state}, last changed {found.changed:%Y-%m-%d %H:%M}, {byte_count(found.size)}")
    say(f"set: {' '.join(found.result.overrides) or 'nothing, all is as shipped'}")
    closing_table(found.result, found.folder)


def _remove(names: list[str]) -> None:
    """Delete the named runs and sweeps, if no process works in them and no other run needs them."""
    doomed: dict[Path, list[Run]] = {}
    for name in names:
        folder = Path(name).expanduser().resolve()
        doomed[folder] = find_runs(folder) if is_sweep(folder) else [existing(name)]
    gone = {run.folder.resolve() for runs in doomed.values() for run in runs}
    for run in (run for runs in doomed.values() for run in runs):
        if run.state == "running":
            raise UserError(f"{run.folder}: a process is working in it; stop it first")
        if users := [user for user in _users(run.folder) if user.resolve() not in gone]:
            raise UserError(
                f"{run.folder}: {users[0]} was made with it{f', and {len(users) - 1} more' * (len(users) > 1)}; "
                "name these too, or keep it"
            )
    for folder, runs in doomed.items():
        shutil.rmtree(folder)
        say(f"removed {folder}, {byte_count(sum(run.size for run in runs))}")
        _repoint_latest(folder.parent)


def _users(folder: Path) -> list[Path]:
    """The runs whose teacher, assistant or control was fitted in ``folder``."""
    role = folder.resolve().parent
    if role.name not in ("teachers", "assistants", "controls"):
        return []
    users = []
    for run in find_runs(role.parent):
        result = run.result
        measured = [result.teacher, result.baseline, *result.chain]
        fits = [fit for model in measured if model for fit in (model.run, *(model.runs or ())) if fit]
        if any(Path(fit).name == folder.name for fit in fits):
            users.append(run.folder)
    return users


def _repoint_latest(parent: Path) -> None:
    link = parent / "latest"
    if not link.is_symlink() or link.exists():
        return
    left = sorted(folder for folder in parent.iterdir() if not folder.is_symlink() and is_run(folder))
    if left:
        point_latest(left[-1])
    else:
        link.unlink()


def _prune(words: list[str]) -> None:
    """Free what finished runs keep only to be resumed; without names, say what that would be."""
    from distillcli.training.checkpoint import ballast, drop_ballast

    options, names = _options(words, ("runs",))
    root = Path(options.get("runs", "runs"))
    runs = find_runs(root) if not names or names == ["all"] else [existing(name) for name in names]
    for name, run in zip(names, runs, strict=False):
        if names != ["all"] and run.state != "ok":
            raise UserError(f"{name}: {run.state}; only a finished run has what it no longer needs")
    sizes = {run.folder: ballast(run.folder) for run in runs if run.state == "ok"}
    heavy = {folder: size for folder, size in sizes.items() if size}
    for folder, size in heavy.items():
        if names:
            drop_ballast(folder)
        say(f"{'freed' if names else 'can be freed'}: {byte_count(size)}  {folder}")
    if not heavy:
        say("nothing to free")
    elif not names:
        say(f"{byte_count(sum(heavy.values()))} in all; name the runs, or free all: distill runs prune all")


def _options(words: list[str], known: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Words of the form KEY=VALUE with a known key, and the others."""
    pairs = [word.partition("=") for word in words]
    options = {key: value for key, equals, value in pairs if equals and key in known}
    rest = [word for word, (key, equals, _) in zip(words, pairs, strict=True) if not (equals and key in known)]
    for word in rest:
        if word.startswith("-"):
            raise UserError(f"unknown flag {word!r}; usage: {USAGE}")
    return options, rest

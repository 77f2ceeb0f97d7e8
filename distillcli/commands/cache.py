"""``distill cache``: what teachers have said so far, whether it is still true, and how to be rid of it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from distillcli.errors import UserError, did_you_mean
from distillcli.report.console import say, warn
from distillcli.report.format import byte_count
from distillcli.teachers.rows import cache_folders, look_into

USAGE = "distill cache ls [DIR] | verify RUN | clear NAME|all [DIR]; DIR is runs/cache unless given"
VERIFIED_ROWS = 256


def run(arguments: list[str]) -> None:
    """Dispatch on the verb. Raises UserError for a wrong one."""
    match arguments:
        case ["ls"]:
            _list(Path("runs/cache"))
        case ["ls", folder]:
            _list(Path(folder))
        case ["verify", run_folder]:
            _verify(Path(run_folder))
        case ["clear", name]:
            _clear(name, Path("runs/cache"))
        case ["clear", name, folder]:
            _clear(name, Path(folder))
        case _:
            raise UserError(f"usage: {USAGE}")


def _list(root: Path) -> None:
    folders = cache_folders(root)
    for folder in folders:
        try:
            cache = look_into(folder)
        except UserError as error:
            warn(f"{error}; it is made anew when it is used")
            continue
        damaged = f", {cache.damaged:,} damaged rows that will be computed again" if cache.damaged else ""
        say(
            f"{cache.folder.name}  {cache.teacher}  {cache.format}  {cache.views} views, "
            f"{cache.rows:,} rows, {byte_count(cache.bytes)}{damaged}"
        )
    if not folders:
        say(f"nothing is cached in {root}")


def _clear(name: str, root: Path) -> None:
    known = [folder.name for folder in cache_folders(root)]
    if name != "all" and name not in known:
        raise UserError(f"no cache {name!r} in {root}{did_you_mean(name, known) or '; see distill cache ls'}")
    for folder in known if name == "all" else [name]:
        shutil.rmtree(root / folder)
        say(f"removed {root / folder}")


def _verify(run_folder: Path) -> None:
    """Ask the teacher of a run again for a sample of its rows, and compare. Raises UserError when they differ."""
    from distillcli.config.checks import check_train
    from distillcli.runs.reading import read_config
    from distillcli.sources.open import open_source

    if not (run_folder / "config.yaml").is_file():
        raise UserError(f"{run_folder}: not a run folder; {USAGE}")
    config = dataclasses.replace(read_config(run_folder), resume=str(run_folder))
    check_train(config)
    source = open_source(config.dataset)

    from distillcli.distillation.plan import make_plan
    from distillcli.distillation.reopening import reopen_teacher
    from distillcli.runtime import start
    from distillcli.teachers.cached import CachedTeacher, compare_with_live, with_cache
    from distillcli.views.loader import open_data

    plan = make_plan(config, source)
    with start(config.trainer) as runtime:
        live = reopen_teacher(run_folder, config, plan.source, runtime, plan.objective.teacher_taps)
        if live is None:
            raise UserError(f"{run_folder}: this run had no teacher")
        data = open_data(plan.source, config.dataset, config.trainer.workers, runtime)
        teacher, _, why = with_cache(config, data, live, runtime)
        if not isinstance(teacher, CachedTeacher):
            raise UserError(f"{run_folder}: {why}")
        compared, largest, allowed = compare_with_live(config, data, teacher, VERIFIED_ROWS)
    if compared == 0:
        raise UserError(f"{run_folder}: none of its teacher's answers are cached")
    words = f"{compared} rows asked again: the largest difference is {largest:.2g}, rounding allows {allowed:.2g}"
    if largest > allowed:
        raise UserError(f"{run_folder}: {words}; distill cache clear all")
    say(words)

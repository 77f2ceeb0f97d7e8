"""The bridge to ``hydra.main``: every job is composed and checked before the first one runs, then Hydra takes over."""

from __future__ import annotations

import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distillcli.config import search
from distillcli.config.compose import compose_raw, parse_override, register_schemas, typed_config
from distillcli.config.job import Job, is_main_process, is_restarted, process_count
from distillcli.config.keys import dotted_keys
from distillcli.config.mistakes import unknown_key
from distillcli.config.origin import Given, given_keys
from distillcli.config.overrides import key_of, normalise_overrides, quote_value
from distillcli.config.primaries import PRIMARIES
from distillcli.config.schema import RunConfig
from distillcli.config.unread import check_all_read, compose_for_user
from distillcli.errors import Interrupted, NumericError, UserError
from distillcli.launch.arguments import Arguments, parse_arguments
from distillcli.launch.resume import NEUTRAL_KEYS, check_unchanged, going_on, merge_overrides, recorded_overrides
from distillcli.report.format import clean
from distillcli.runs.folder import claim_new
from distillcli.runs.result import Result, read_result, write_result
from distillcli.signals import EXIT_CODES

Action = Callable[[Any, Job], None]  # Any: each command takes the dataclass of its own primary config


def launch(primary: str, arguments: list[str], action: Action) -> None:
    """Run ``action`` with the config of every job that ``arguments`` describe.

    Raises UserError for a mistake, whatever ``action`` raises in a single run, and SystemExit(1) after a sweep in which
    a job failed.
    """
    parsed = parse_arguments(arguments)
    search.use(parsed.config_folders)
    overrides = normalise_overrides(primary, parsed.overrides, parsed.multirun)
    if is_restarted():
        overrides = going_on(overrides)
    command = shlex.join(["distill", primary, *arguments])
    known = dotted_keys(PRIMARIES[primary].schema)
    if parsed.package is not None and parsed.package not in known:
        raise UserError(f"--package {unknown_key(parsed.package, known)}")
    if parsed.multirun:
        _run_sweep(primary, parsed, overrides, command, action)
    elif any(key_of(override) == "resume" for override in overrides):
        _run_single(primary, parsed, _resumed(primary, overrides), command, action)
    else:
        compose_for_user(primary, overrides)
        _run_single(primary, parsed, overrides, command, action)


def _run_single(primary: str, parsed: Arguments, overrides: list[str], command: str, action: Action) -> None:
    failures: list[Exception] = []

    def task(composed: DictConfig) -> None:
        try:
            action(typed_config(primary, composed), Job(_task_overrides(), command, None, None))
        except Exception as error:  # Hydra would print it and exit; the command line decides instead
            failures.append(error)

    _hydra_main(primary, parsed.flags, overrides, task)
    if failures:
        raise failures[0]


def _resumed(primary: str, overrides: list[str]) -> list[str]:
    """The recorded overrides with the typed ones on top, once the configs have been compared."""
    if not issubclass(PRIMARIES[primary].schema, RunConfig):
        raise UserError(f"resume= continues a run; distill {primary} has none to continue; leave resume= out")
    value = next(override for override in overrides if key_of(override) == "resume")
    resume = parse_override(value).value()
    if resume is None:
        return overrides
    run = Path(str(resume))
    overrides = merge_overrides(normalise_overrides(primary, recorded_overrides(run)), overrides)
    config = typed_config(primary, compose_raw(primary, overrides))
    assert isinstance(config, RunConfig)
    for line in check_unchanged(run, config):
        if is_main_process():
            print(f"resuming with {clean(line)}", file=sys.stderr)
    return overrides


def _run_sweep(primary: str, parsed: Arguments, overrides: list[str], command: str, action: Action) -> None:
    if any(key_of(override) == "resume" for override in overrides):
        raise UserError("resume= continues a single run; to continue a sweep, repeat its command with out=SWEEP_FOLDER")
    if process_count() > 1:
        raise UserError("-m starts many runs, torchrun the processes of one; start torchrun once per run")
    from hydra.core.hydra_config import HydraConfig

    overrides, folder = _take_folder(overrides)
    jobs = _jobs(primary, overrides)
    first = _preflight(primary, jobs, [override for override in overrides if _is_hydra(override)])
    runs = first.runs if isinstance(first, RunConfig) else "runs"
    resuming = folder is not None and (folder / "multirun.yaml").exists()
    if folder is not None and not resuming and folder.exists() and not _is_empty_folder(folder):
        raise UserError(f"out={folder}: exists and is not a sweep folder; choose another")
    folder = folder or claim_new(Path(runs) / "sweeps")
    _check_old_jobs(folder, jobs)

    def task(composed: DictConfig) -> None:
        number = HydraConfig.get().job.num
        print(f"[{number + 1}/{len(jobs)}] {clean(' '.join(_varying(jobs, number)))}", flush=True)
        _run_job(primary, composed, command, folder, action)

    print(
        f"sweep of {len(jobs)} job{'s' * (len(jobs) != 1)} in {folder}" + (" (resumed)" if resuming else ""), flush=True
    )
    try:
        _hydra_main(primary, parsed.flags, [*overrides, f"hydra.sweep.dir={quote_value(str(folder.absolute()))}"], task)
    except (Interrupted, KeyboardInterrupt) as stop:
        code = stop.exit_code if isinstance(stop, Interrupted) else EXIT_CODES[signal.SIGINT]
        named = ("out=", "hydra.sweep.dir=")
        words = [word for word in shlex.split(command) if not word.startswith(named)]
        raise Interrupted(f"interrupted; continue with: {shlex.join([*words, f'out={folder}'])}", code) from None
    finally:
        from distillcli.report.sweep import close_sweep

        close_sweep(folder)
    # Launchers may run jobs in other processes, so only the files tell.
    results = [read_result(folder / str(number)) for number in range(len(jobs))]
    if any(result is None or not result.finished for result in results):
        raise SystemExit(1)


def _varying(jobs: list[list[str]], number: int) -> list[str]:
    """What a job has and not every other one."""
    return [override for override in jobs[number] if any(override not in job for job in jobs)]


def _run_job(primary: str, composed: DictConfig, command: str, sweep_folder: Path, action: Action) -> None:
    """One job of a sweep. An error ends this job only; an interruption ends the sweep."""
    from hydra.core.hydra_config import HydraConfig

    overrides = _task_overrides()
    folder = sweep_folder / str(HydraConfig.get().job.num)
    old = read_result(folder)
    if old is not None and old.finished:
        print(f"job {folder.name}: already done, skipped", flush=True)
        return
    try:
        config = typed_config(primary, composed)
        if isinstance(config, RunConfig) and (folder / "checkpoints" / "last.pt").exists():
            config.resume = str(folder)
        action(config, Job(overrides, command, sweep_folder, folder))
    except (UserError, NumericError) as error:
        print(f"error: job {folder.name}: {clean(error)}", file=sys.stderr)
        _record_failure(folder, str(error), overrides, old)
    except Exception as error:
        traceback.print_exc()
        _record_failure(folder, f"{type(error).__name__}: {error}", overrides, old)


def _record_failure(folder: Path, error: str, overrides: tuple[str, ...], old: Result | None) -> None:
    """Write the job's result.json unless the job itself did."""
    if read_result(folder) != old:
        return
    write_result(folder, Result(status="failed", error=error, overrides=overrides))


def _take_folder(overrides: list[str]) -> tuple[list[str], Path | None]:
    """Take ``out=`` or ``hydra.sweep.dir=`` out of the overrides: in a sweep it names the folder of all jobs."""
    rest, folder = [], None
    for override in overrides:
        if key_of(override) in ("out", "hydra.sweep.dir"):
            value = parse_override(override).value()
            if not isinstance(value, str):
                raise UserError(f"{override}: name one folder for the whole sweep")
            folder = Path(value)
        elif key_of(override) == "hydra.sweep.subdir":
            raise UserError("hydra.sweep.subdir: jobs live in SWEEP/0, SWEEP/1, ...; leave it out")
        else:
            rest.append(override)
    return rest, folder


def _is_hydra(override: str) -> bool:
    return key_of(override).startswith(("hydra.", "hydra/"))


def _jobs(primary: str, overrides: list[str]) -> list[list[str]]:
    """The overrides of every job: the product of all swept values, as Hydra's basic sweeper makes it."""
    jobs = _product(overrides)
    # A config may define a sweep of its own; typed overrides take precedence.
    params = compose_raw(primary, normalise_overrides(primary, jobs[0])).hydra.sweeper.params if jobs else None
    if not params and not any(parse_override(override).is_sweep_override() for override in overrides):
        raise UserError(
            "-m: nothing is swept; give a key several values, e.g. distill.temperature=1,2,4, or leave -m out"
        )
    return _product([*(f"{key}={value}" for key, value in params.items()), *overrides]) if params else jobs


def _product(overrides: list[str]) -> list[list[str]]:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra._internal.utils import create_automatic_config_search_path
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    register_schemas()
    for override in overrides:
        parse_override(override)
    loader = ConfigLoaderImpl(create_automatic_config_search_path(None, None, str(search.builtin_folder())))
    try:
        # Only with a loader can glob(*) be expanded to the options of a group.
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(
            [override for override in overrides if not _is_hydra(override)]
        )
        return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    except HydraException as error:
        raise UserError(f"cannot sweep: {' '.join(str(error).split())}") from error


def _preflight(primary: str, jobs: list[list[str]], hydra_overrides: list[str]) -> object:
    """Compose and check jobs until every swept value has been seen: the sum of the values, not their product."""
    seen: set[str] = set()
    checked: list[tuple[object, list[Given]]] = []
    for job in jobs:
        if not checked or not seen.issuperset(job):
            typed = [*normalise_overrides(primary, job), *hydra_overrides]
            checked.append((typed_config(primary, compose_raw(primary, typed)), given_keys(primary, typed)))
            seen.update(job)
    if not checked:
        raise UserError("the sweep has no jobs, because a glob matches nothing; see distill configs ls")
    check_all_read(checked)
    return checked[0][0]


def _check_old_jobs(folder: Path, jobs: list[list[str]]) -> None:
    """Refuse to continue a sweep folder whose jobs had other overrides."""
    for number, job in enumerate(jobs):
        old = read_result(folder / str(number))
        if old is not None and _identity(old.overrides) != _identity(job):
            was, now = shlex.join(old.overrides), shlex.join(job)
            raise UserError(
                f"out={folder}: job {number} ran with {was} and would now run with {now}; choose another folder"
            )


def _identity(overrides: Sequence[str]) -> set[str]:
    return {override for override in overrides if key_of(override) not in NEUTRAL_KEYS}


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _task_overrides() -> tuple[str, ...]:
    from hydra.core.hydra_config import HydraConfig

    return tuple(str(override) for override in HydraConfig.get().overrides.task)


def _hydra_main(primary: str, flags: list[str], overrides: list[str], task: Callable[[DictConfig], None]) -> None:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    register_schemas()
    GlobalHydra.instance().clear()
    before = sys.argv
    # Flags first: Hydra's parser refuses a flag after an override.
    sys.argv = ["distill", *flags, *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(search.builtin_folder()), config_name=primary)(task)()
    finally:
        sys.argv = before

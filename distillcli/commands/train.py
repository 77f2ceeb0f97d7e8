"""``distill train``: claim a run folder, distil, and leave a result whatever happens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distillcli.config.job import Job, is_main_process
from distillcli.config.schema import TrainConfig
from distillcli.errors import Interrupted
from distillcli.report.console import LOG, closing_table, say
from distillcli.runs.folder import claim, claim_new, locked, point_latest
from distillcli.runs.result import Result, read_result, write_result
from distillcli.sources.open import open_source
from distillcli.sources.source import Source


def run(config: TrainConfig, job: Job) -> None:
    """Run one training. The data is opened before torch is imported: most mistakes are in the data."""
    source = open_source(config.dataset)
    if not is_main_process():
        done = None if config.resume is None else read_result(Path(config.resume))
        if done is None or not done.finished:
            _run(config, job, source, None)
        return
    folder = _folder(config, job)
    with locked(folder):
        done = read_result(folder)
        if done is not None and done.finished:
            say(f"{folder} is finished already")
            closing_table(done, folder)
            return
        if config.out is None and job.folder is None:
            point_latest(folder)
        _run(config, job, source, folder)


def _folder(config: TrainConfig, job: Job) -> Path:
    if config.resume is not None:
        return Path(config.resume).resolve()
    if job.folder is not None:
        return job.folder
    return claim(Path(config.out)) if config.out is not None else claim_new(Path(config.runs) / config.name)


def _run(config: TrainConfig, job: Job, source: Source, claimed: Path | None) -> None:
    """``claimed``: the run folder; None in the other processes of ``torchrun``, which learn it from the main one."""
    from distillcli.distillation.whole import distill, session
    from distillcli.runtime import from_main

    known = Result(name=config.name, role="student", command=job.command, overrides=job.overrides, seed=config.seed)
    with session(config, job.command, claimed) as current:
        folder = Path(from_main(str(claimed) if claimed else None, current.runtime))
        try:
            distill(config, job, source, folder, current)
        except (Interrupted, KeyboardInterrupt) as stop:
            if current.runtime.is_main:
                write_result(folder, replace(known, status="interrupted"))
            if isinstance(stop, KeyboardInterrupt):
                raise
            raise Interrupted(f"interrupted; continue with: distill train resume={folder}", stop.exit_code) from None
        except Exception as error:
            if current.runtime.is_main:
                LOG.exception("failed")
                write_result(folder, replace(known, status="failed", error=f"{type(error).__name__}: {error}"))
            raise

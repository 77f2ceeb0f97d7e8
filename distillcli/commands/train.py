"""``distill train``: refuse what cannot work, claim a run folder, distil."""

from __future__ import annotations

from pathlib import Path

from distillcli.config.check_published import check_published_weights
from distillcli.config.job import Job, is_main_process
from distillcli.config.schema import TrainConfig
from distillcli.distillation.same_data import check_same_data
from distillcli.report.console import closing_table, say, say_loading
from distillcli.runs.folder import check_place, claim, claim_new, locked
from distillcli.runs.result import read_result
from distillcli.sources.open import check_reported, open_source


def run(config: TrainConfig, job: Job) -> None:
    """Run one training.

    The data is opened before torch is imported, since most mistakes are in the data; the folder is claimed only when
    everything that can be refused has been, a folder that cannot be written first of all.
    """
    _check_place(config, job)
    source = open_source(config.dataset)
    check_reported(source)
    if config.resume is not None:
        check_same_data(Path(config.resume), source)
    check_published_weights(config)
    if is_main_process():
        say_loading()

    from distillcli.distillation.plan import check_weights, make_plan

    plan = make_plan(config, source)
    found = check_weights(plan)

    from distillcli.distillation import whole  # training and its metrics take a moment more to import

    for words in found if is_main_process() else ():
        say(words)
    if not is_main_process():
        done = None if config.resume is None else read_result(Path(config.resume))
        if done is None or not done.finished:
            whole.run(plan, job, None)
        return
    folder = _folder(config, job)
    with locked(folder):
        done = read_result(folder)
        if done is not None and done.finished:
            say(f"{folder} is finished already")
            closing_table(done, folder)
            return
        whole.run(plan, job, folder)


def _check_place(config: TrainConfig, job: Job) -> None:
    """Only the main process writes."""
    if is_main_process() and job.folder is None:
        check_place(Path(config.resume or config.out or Path(config.runs) / config.name))


def _folder(config: TrainConfig, job: Job) -> Path:
    if config.resume is not None:
        return Path(config.resume).resolve()
    if job.folder is not None:
        return job.folder
    return claim(Path(config.out)) if config.out is not None else claim_new(Path(config.runs) / config.name)

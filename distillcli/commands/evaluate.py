"""``distill eval``: the numbers of a finished model, from any form of checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import OmegaConf

from distillcli.config.job import Job
from distillcli.config.schema import EvalConfig, TrainConfig
from distillcli.errors import UserError
from distillcli.report.console import evaluation_table, say, sentence
from distillcli.runs.result import to_json
from distillcli.sources.open import open_source


def run(config: EvalConfig, job: Job) -> None:
    """Evaluate a model on the data of its run, or on the data that is named, and print a table or JSON."""
    what = config.checkpoint
    assert what is not None  # the checks of the config refuse None
    run_folder = _run_folder(Path(what))
    trained = None if run_folder is None else read_config(run_folder)
    dataset = config.dataset if config.dataset is not None else None if trained is None else trained.dataset
    if dataset is None:
        raise UserError(f"checkpoint={what}: no config.yaml next to it, so the dataset is unknown; add dataset=NAME")
    source = open_source(dataset)

    from distillcli.distillation.reopening import reopen_model, reopen_teacher
    from distillcli.runtime import start
    from distillcli.teachers.frozen import with_classes
    from distillcli.training.evaluation import measure
    from distillcli.views.loader import open_data

    with start(config.trainer) as runtime:
        trainer = config.trainer if trained is None else trained.trainer
        backbone = reopen_model(what, source, dataset, trainer.channels_last, runtime, config.model)
        teacher = None
        if trained is not None and run_folder is not None:
            teacher = reopen_teacher(run_folder, trained, with_classes(source, trained), runtime)
        data = open_data(source, dataset, config.trainer.workers, runtime)
        numbers = measure(backbone, data, teacher=teacher)
        if not runtime.is_main:
            return
    images = len(source.evaluation.labels)
    facts = {"checkpoint": what, "dataset": source.name, "evaluated_on": source.evaluated_on, "images": images}
    if config.format == "json":
        for line in json.dumps(facts | to_json(numbers) | {"name": what}, ensure_ascii=False, indent=2).splitlines():
            say(line)
        return
    sentence(f"{what} on the {source.evaluated_on} part of {source.name}, {images:,} images", "bold")
    evaluation_table([(what, numbers)])


def read_config(folder: Path) -> TrainConfig:
    """The config that a run saved, read as plain data: nothing in it is executed or interpolated."""
    loaded = OmegaConf.load(folder / "config.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), loaded))
    assert isinstance(config, TrainConfig)
    return config


def _run_folder(what: Path) -> Path | None:
    """The run folder that ``what`` is, or lies in: RUN, RUN/student, RUN/checkpoints/best.pt."""
    for folder in (what, *what.parents[:2]):
        if (folder / "config.yaml").is_file():
            return folder
    return None

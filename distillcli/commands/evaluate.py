"""``distill eval``: the numbers of a finished model, from any form of checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from distillcli.config.check_data import check_dataset
from distillcli.config.check_models import check_teacher
from distillcli.config.job import Job, is_main_process
from distillcli.config.schema import DatasetConfig, EvalConfig, TrainConfig
from distillcli.distillation.same_data import data_changes, may_be_same_images
from distillcli.errors import UserError
from distillcli.report.console import evaluation_table, say, say_loading, sentence, warn
from distillcli.runs.reading import read_config, try_json
from distillcli.runs.result import read_result, to_json
from distillcli.sources.labels import with_class_names
from distillcli.sources.open import open_source
from distillcli.sources.overlap import training_note
from distillcli.sources.source import Source


def run(config: EvalConfig, job: Job) -> None:
    """Evaluate a model on the data of its run, or on the data that is named, and print a table or JSON.

    Data that is named is evaluated whole where it has no parts, unless it is what the run was trained on.
    """
    what = config.checkpoint
    assert what is not None  # the checks of the config refuse None
    run_folder = _run_folder(Path(what))
    trained = None if run_folder is None else read_config(run_folder)
    result = None if run_folder is None else read_result(run_folder)
    if trained is not None:
        check_dataset(trained.dataset)
        if result is not None and result.teacher is not None:
            check_teacher(trained.teacher)
    if run_folder is not None and (result is None or not result.finished):
        warn(f"{run_folder}: the run is not finished, or its result.json is broken; it is compared with no teacher")
    dataset, source = _open(config, run_folder, trained)
    if run_folder is not None:
        source = with_class_names(source, _class_names(run_folder))
    for note in source.notes:
        warn(note)
    seen = None if trained is None else _seen_in_training(source, dataset, trained.dataset)
    if seen is not None:
        warn(seen)
    if config.format != "json" and is_main_process():
        say_loading()

    from distillcli.distillation.reopening import reopen_model, reopen_teacher
    from distillcli.runtime import start
    from distillcli.teachers.frozen import with_classes
    from distillcli.training.evaluation import measure
    from distillcli.training.latency import architecture, time_together
    from distillcli.views.loader import open_data

    with start(config.trainer) as runtime:
        trainer = config.trainer if trained is None else trained.trainer
        backbone = reopen_model(what, source, dataset, trainer.channels_last, runtime, config.model)
        teacher = None
        if trained is not None and run_folder is not None:
            teacher = reopen_teacher(run_folder, trained, with_classes(source, trained), runtime)
        data = open_data(source, dataset, config.trainer.workers, runtime)
        numbers, _ = measure(backbone, data, teacher=teacher)
        if not runtime.is_main:
            return
        numbers = time_together([backbone], runtime)[architecture(backbone)].of(numbers)
    images, total = len(source.evaluation.labels), source.count
    facts = {"checkpoint": what, "dataset": source.name, "evaluated_on": source.evaluated_on, "images": images}
    facts |= {"share": images / total}
    if config.format == "json":
        for line in json.dumps(facts | to_json(numbers) | {"name": what}, ensure_ascii=False, indent=2).split("\n"):
            say(line)
        return
    if source.evaluated_on == "all":
        where = f"all {images:,} images of {source.name}"
    else:
        where = f"the {source.evaluated_on} part of {source.name}, {images:,} of {total:,} images"
    sentence(f"{what} on {where}", "bold")
    evaluation_table([(what, numbers)])


def _class_names(run: Path) -> tuple[str, ...]:
    """Those of the run's student; empty where it has not left one yet."""
    exported = try_json(run / "student" / "config.json") or {}
    names = exported.get("label_names")
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _open(config: EvalConfig, run: Path | None, trained: TrainConfig | None) -> tuple[DatasetConfig, Source]:
    """What is evaluated: the data that is named, or else that of the run.

    The images that the run was trained on are left out, as they were by the run, wherever its data lies now.
    """
    named, own = config.dataset, None if trained is None else trained.dataset
    if run is None or own is None:
        if named is None:
            raise UserError(
                f"checkpoint={config.checkpoint}: no config.yaml next to it, so the dataset is unknown; add "
                "dataset=NAME"
            )
        return _opened(dataclasses.replace(named, val_fraction=0.0))
    if named is not None and _place(named) != _place(own):
        dataset, source = _opened(dataclasses.replace(named, val_fraction=0.0))
        if source.evaluated_on != "all" or not may_be_same_images(run, source):
            return dataset, source
        as_split = _opened(_split_as(named, own))
        return (dataset, source) if data_changes(run, as_split[1]) else as_split
    dataset, source = _opened(own if named is None else _split_as(named, own))
    changes = data_changes(run, source)
    if changes:
        warn(
            f"{source.name} has changed since the run began ({changes}): the run may have been trained on some of the"
            " images it is evaluated on"
        )
    return dataset, source


def _seen_in_training(source: Source, dataset: DatasetConfig, own: DatasetConfig) -> str | None:
    """A line where some of the evaluated images were trained on; None too where the run's data is no longer there."""
    if _place(dataset) == _place(own):
        return None
    try:
        return training_note(source, open_source(dataclasses.replace(own, on_error="raise")))
    except UserError:
        return None


def _opened(dataset: DatasetConfig) -> tuple[DatasetConfig, Source]:
    return dataset, open_source(dataset)


def _split_as(dataset: DatasetConfig, own: DatasetConfig) -> DatasetConfig:
    return dataclasses.replace(dataset, val_fraction=own.val_fraction, split_seed=own.split_seed)


def _place(dataset: DatasetConfig) -> tuple[str, str | None, str | None]:
    """Where the images of a data set are."""
    root, path = (None if place is None else str(Path(place).resolve()) for place in (dataset.root, dataset.path))
    return dataset.name, root, path


def _run_folder(what: Path) -> Path | None:
    """The run folder that ``what`` is, or lies in: RUN, RUN/student, RUN/checkpoints/best.pt."""
    for folder in (what, *what.parents[:2]):
        if (folder / "config.yaml").is_file():
            return folder
    return None

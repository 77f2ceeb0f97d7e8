"""``distill eval``: the numbers of a finished model, from any form of checkpoint."""

from __future__ import annotations

import json

from distillcli.commands.checkpoint_data import open_images, surroundings
from distillcli.config.check_models import check_teacher
from distillcli.config.job import Job, is_main_process
from distillcli.config.schema import EvalConfig
from distillcli.report.console import evaluation_table, say, say_loading, sentence, warn
from distillcli.runs.result import read_result, to_json


def run(config: EvalConfig, job: Job) -> None:
    """Evaluate a model on the data of its run, or on the data that is named, and print a table or JSON.

    Data that is named is evaluated whole where it has no parts, unless it is what the run was trained on.
    """
    what = config.checkpoint
    assert what is not None  # the checks of the config refuse None
    around = surroundings(what)
    run_folder, trained = around.run, around.trained
    result = None if run_folder is None else read_result(run_folder)
    if trained is not None and result is not None and result.teacher is not None:
        check_teacher(trained.teacher)
    if run_folder is not None and (result is None or not result.finished):
        warn(f"{run_folder}: the run is not finished, or its result.json is broken; it is compared with no teacher")
    dataset, source = open_images(what, config.dataset, around)
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

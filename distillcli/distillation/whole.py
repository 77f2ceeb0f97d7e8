"""One distillation from beginning to end: teacher, student, control, evidence."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from distillcli.config.job import Job
from distillcli.config.schema import TrainConfig
from distillcli.config.terms import check_labels, learns_labels, trains_head
from distillcli.distillation.facts import describe_folder, export_student, measure, run_facts
from distillcli.distillation.fits import fit_once
from distillcli.distillation.plan import (
    check_class_maps,
    check_sizes,
    family_warnings,
    start_warnings,
    student_warnings,
    teacher_warnings,
)
from distillcli.distillation.recipes import control_recipe, recipe_fingerprint
from distillcli.distillation.reopening import reopen_model
from distillcli.distillation.students import new_backbone, student_model, with_teachers_head
from distillcli.distillation.teaching import Teaching, check_chain, prepare_teaching, teaching_models, teaching_specs
from distillcli.errors import UserError
from distillcli.models.backbone import Backbone, describe, place
from distillcli.models.memory_layout import settle_layout
from distillcli.report.console import LOG, Opening, Progress, closing_table, opening, say, warn
from distillcli.report.curves import draw_curves
from distillcli.report.markdown import write_report
from distillcli.runs.folder import read_result, write_result
from distillcli.runtime import Runtime, resolve_precision, seed_everything, start
from distillcli.signals import listening
from distillcli.sources.source import Source
from distillcli.teachers.frozen import with_classes
from distillcli.terms.base import Setting
from distillcli.terms.objective import Objective
from distillcli.training.engine import Session, fit
from distillcli.training.evaluation import evaluate
from distillcli.training.probe import probe
from distillcli.types import Spec
from distillcli.views.loader import Data, open_data


@contextmanager
def session(config: TrainConfig, command: str, folder: Path | None) -> Iterator[Session]:
    """The device, the ranks, the signals and the voice of one command; what is said goes to ``train.log`` as well.

    ``folder``: None where nothing is written, on all ranks but the main one.
    """
    with start(config.trainer) as runtime, listening() as stop:
        if folder is None:
            yield Session(runtime, stop, command, lambda *_: nullcontext(Silence()), _say_nothing, _say_nothing)
            return
        handler = logging.FileHandler(folder / "train.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger()
        logger.addHandler(handler)
        LOG.setLevel(logging.INFO)
        try:
            yield Session(runtime, stop, command, Progress, say, warn)
        finally:
            logger.removeHandler(handler)
            handler.close()


class Silence:
    """Watches a fit on the ranks that do not speak."""

    def step(self, loss: float | None) -> None:
        pass

    def epoch(self, train: dict[str, Any], evaluation: dict[str, Any]) -> None:
        pass


def _say_nothing(_words: str) -> None:
    pass


def distill(config: TrainConfig, job: Job, source: Source, folder: Path, session: Session) -> dict[str, Any]:
    """Fit or find the teacher, distil the student, fit or find the control; returns what ``result.json`` then holds."""
    started = time.monotonic()
    runtime = session.runtime
    check_sizes(config)
    check_chain(config)
    check_labels(config.distill, source.train.labelled, len(source.train.labels))
    source = with_classes(source, config)
    classes = len(source.classes)
    with_probe = wants_probe(config, source)
    # A head that nothing trains would answer at random: without one the student is a feature extractor.
    learned = source if trains_head(config.distill) else replace(source, classes=())
    learner = replace(config, student=student_model(config, classes))
    size, channels = config.dataset.image_size, config.dataset.channels
    student_spec = describe(learner.student, len(learned.classes), size, "student", channels)
    teachers = teaching_specs(config, student_spec, classes)
    objective = build_objective(config, source, [*teachers, student_spec])
    if config.teacher.mean and objective.prepared_terms:
        name = next(iter(objective.prepared_terms))
        raise UserError(
            f"distill.terms.{name}: it learns from the teacher before the first step, when the moving average of the "
            "student knows nothing; use a teacher that is fitted"
        )
    if objective.teacher_taps.class_maps:
        check_class_maps([*teaching_models(config), learner.student], classes, config.dataset)
    data = open_data(source, config.dataset, config.trainer.workers, runtime)  # may decode all of it
    seen = replace(data, source=learned)
    overrides = list(job.overrides)
    settled = settle_layout(config, classes, runtime)
    if settled is not config:
        config, learner = settled, replace(learner, trainer=settled.trainer)
        overrides.append(f"trainer.channels_last={str(config.trainer.channels_last).lower()}")  # for resume=
    if runtime.is_main:
        describe_folder(folder, config, job.command, overrides, data)
        introduce(config, source, student_spec, teachers[0] if teachers else None, objective, runtime, folder)

    teaching = prepare_teaching(config, data, objective.teacher_taps, session)
    warnings = data_warnings(source) + student_warnings(config)
    if teaching.teacher is not None:
        warnings += teacher_warnings(config) + family_warnings([*objective.terms], student_spec, teachers[0])

    begun = time.monotonic()
    student = new_backbone(config, config.student, seen, "student")
    if teaching.facts is not None and (config.student.pretrained or config.student.checkpoint is not None):
        place(student, runtime.device, config.trainer.channels_last)
        warnings += start_warnings(evaluate(student, data.evaluation, runtime), teaching.facts, source.evaluated_on)
    if learner.student != config.student:
        student = with_teachers_head(learner, student, teaching.nearest)
    for warning in warnings:
        session.warn(warning)
    peers = [
        new_backbone(replace(config, seed=config.seed + n), peer, data, "peers")
        for n, peer in enumerate(config.peers, 1)
    ]
    above = teaching.nearest.backbone if teaching.nearest else None
    recipe = recipe_fingerprint(learner, seen, student, runtime, above, teaching.rounding, peers)
    fitted = fit(learner, seen, student, objective, teaching.targets, folder, recipe, "student", session, peers)
    timings = teaching.timings | {"student": time.monotonic() - begun}
    facts = run_facts(learner, seen, fitted, folder, recipe, objective, runtime, teaching.teacher)
    facts["dataset"]["classes"] = classes
    peer_facts = [measure(peer, data, runtime) for peer in peers]
    if runtime.is_main:
        export_student(fitted.backbone, folder / "student", config, seen)
        for number, peer in enumerate(peers, 1):
            export_student(peer, folder / "peers" / str(number), config, data)

    begun = time.monotonic()
    baseline = find_control(config, data, session) if config.baseline and teachers else None
    if baseline is not None:
        timings["control"] = time.monotonic() - begun
    if with_probe and runtime.is_main:
        add_probes(config, data, fitted.backbone, facts["student"], teaching, baseline, runtime)

    late = comparison_warnings(facts["student"], teaching.facts)
    for warning in late:
        session.warn(warning)
    result = {"status": "ok", "error": None, "role": "student", **facts}
    result |= {"command": job.command, "overrides": list(job.overrides)}
    result |= {"teacher": teaching.facts, "chain": teaching.chain, "peers": peer_facts, "baseline": baseline}
    result |= {"gap_closed": gap_closed(facts["student"], teaching.facts, baseline), "cache": teaching.rounding}
    result |= {"warnings": warnings + late, "timings": timings, "seconds": time.monotonic() - started}
    if runtime.is_main:
        write_result(folder, result)
        draw_curves(folder)
        write_report(folder)
        closing_table(result, folder)
    return result


def build_objective(config: TrainConfig, source: Source, chain: list[Spec]) -> Objective:
    """The objective of the last in ``chain``, taught by the one before it, if any.

    Raises UserError where any of the chain does not suit the one above it, before the first of them is fitted.
    """

    def taught(learner: Spec, above: Spec | None) -> Objective:
        return Objective(config.distill, Setting(learner, above, source.train.labels, config.trainer.epochs))

    for above, assistant in pairwise(chain[:-1]):
        taught(assistant, above)
    seed_everything(config.seed, "init", "objective")
    return taught(chain[-1], chain[-2] if len(chain) > 1 else None)


def find_control(config: TrainConfig, data: Data, session: Session) -> dict[str, Any] | None:
    """The numbers of the same student without a teacher, fitted or found; None where there are no labels to fit."""
    if not data.source.train.labelled:
        session.say("control: none, as no training image has a label")
        return None
    folder = fit_once(control_recipe(config), "control", data, session)
    result = read_result(folder)
    assert result is not None
    facts: dict[str, Any] = result["student"] | {"run": str(folder), "best": result["best"]}
    return facts


def add_probes(
    config: TrainConfig,
    data: Data,
    student: Backbone,
    facts: dict[str, Any],
    teaching: Teaching,
    baseline: dict[str, Any] | None,
    runtime: Runtime,
) -> None:
    """Add k-NN and linear probes of the embeddings to the facts of student, teacher and control."""
    facts |= probe(student, data)
    if teaching.teacher is not None and teaching.facts is not None and isinstance(teaching.teacher.backbone, Backbone):
        teaching.facts.update(probe(teaching.teacher.backbone, data))
    if baseline is not None:
        channels_last = config.trainer.channels_last
        baseline |= probe(reopen_model(baseline["run"], data.source, config.dataset, channels_last, runtime), data)


def wants_probe(config: TrainConfig, source: Source) -> bool:
    """Whether embeddings are measured. Raises UserError where it is asked for and there are no labels to read."""
    possible = bool(source.train.labelled and source.evaluation.labelled)
    if config.probe and not possible:
        part = source.evaluated_on if source.train.labelled else "train"
        raise UserError(f"probe=true: it reads labels from embeddings and the {part} part has none; use probe=null")
    return possible and not learns_labels(config.distill) if config.probe is None else config.probe


def introduce(
    config: TrainConfig,
    source: Source,
    student: Spec,
    teacher: Spec | None,
    objective: Objective,
    runtime: Runtime,
    folder: Path,
) -> None:
    """The panel at the start."""
    opening(
        Opening(
            student=student.name,
            student_params=student.params,
            student_macs=student.macs,
            teacher=teacher.name if teacher else None,
            teacher_params=teacher.params if teacher else None,
            teacher_macs=teacher.macs if teacher else None,
            dataset=source.name,
            classes=len(source.classes),
            train=len(source.train.labels),
            labelled=source.train.labelled,
            val=len(source.val.labels),
            test=len(source.test.labels) if source.test else 0,
            objective=objective.words(),
            device=str(runtime.device),
            precision=resolve_precision(config.trainer.precision, runtime.device),
            run=str(folder),
        )
    )


def data_warnings(source: Source) -> list[str]:
    """What was left out of the data."""
    if not source.skipped:
        return []
    return [
        f"{source.name}: {len(source.skipped)} images that cannot be decoded are left out, e.g. {source.skipped[0]}"
    ]


def comparison_warnings(student: dict[str, Any], teacher: dict[str, Any] | None) -> list[str]:
    if teacher is not None and _known(teacher, student) and teacher["top1"] <= student["top1"]:
        return [f"the teacher ({teacher['top1']:.2f}) is no better than the student ({student['top1']:.2f})"]
    return []


def gap_closed(student: dict[str, Any], teacher: dict[str, Any] | None, control: dict[str, Any] | None) -> float | None:
    """(student - control) / (teacher - control) in top-1; None without a control, labels or a gap to close."""
    if teacher is None or control is None or not _known(student, teacher, control):
        return None
    if teacher["top1"] <= control["top1"]:
        return None
    share: float = (student["top1"] - control["top1"]) / (teacher["top1"] - control["top1"])
    return share


def _known(*models: dict[str, Any]) -> bool:
    return all(model["top1"] is not None for model in models)

"""One distillation from beginning to end: teacher, student, control, evidence."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import timm

from distillcli.cached_teacher import with_cache
from distillcli.config.job import Job
from distillcli.config.schema import TrainConfig
from distillcli.data.loader import Data, open_data
from distillcli.data.source import Source
from distillcli.engine import Session, fit
from distillcli.errors import NumericError, UserError
from distillcli.fits import (
    control_recipe,
    describe_folder,
    export_student,
    fit_once,
    measure,
    new_backbone,
    recipe_fingerprint,
    run_facts,
    teacher_recipe,
)
from distillcli.models import Backbone, describe
from distillcli.objective import Objective, check_labels, check_terms, learns_labels, needs_teacher, trains_head
from distillcli.probe import probe
from distillcli.reopening import reopen_model
from distillcli.report.console import LOG, Opening, Progress, closing_table, opening, say, warn
from distillcli.report.curves import draw_curves
from distillcli.report.markdown import write_report
from distillcli.run_folder import read_result, write_result
from distillcli.runtime import Runtime, resolve_precision, seed_everything, start
from distillcli.signals import listening
from distillcli.teachers import (
    FrozenTeacher,
    Teacher,
    describe_teacher,
    is_imagenet,
    members_of,
    open_teacher,
    with_classes,
)
from distillcli.types import Spec, Taps

# timm's recipes of "ResNet strikes back" train with binary cross-entropy; their softmax is not calibrated.
BCE_TAGS = ("a1_", "a2_", "a3_", "a1h_", "b1k_", "b2k_", "c1_", "c2_")


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
    check_terms(config.distill)
    check_labels(config.distill, source.train)
    source = with_classes(source, config)
    size, classes = config.dataset.image_size, len(source.classes)
    with_probe = wants_probe(config, source)
    # A head that nothing trains would answer at random: without one the student is a feature extractor.
    has_head = trains_head(config.distill)
    student_spec = describe(config.student, classes if has_head else 0, size, "student")
    with_teacher = needs_teacher(config.distill)
    teacher_spec = describe_teacher(config, classes) if with_teacher else None
    seed_everything(config.seed, "init", "objective")
    objective = Objective(config.distill, student_spec, teacher_spec)
    data = open_data(source, config.dataset, config.trainer.workers, runtime)
    if runtime.is_main:
        describe_folder(folder, config, job.command, list(job.overrides), data)
        introduce(config, source, student_spec, teacher_spec, objective, runtime, folder)

    warnings: list[str] = []
    frozen, timings = None, {}
    teacher_facts: dict[str, Any] | None = None
    targets: Teacher | None = None
    rounding = "off"
    if with_teacher:
        begun = time.monotonic()
        frozen, runs = find_teacher(config, data, objective.teacher_taps, session)
        timings["teacher"] = time.monotonic() - begun
        teacher_facts = measure(frozen.backbone, data, runtime, frozen.precision)
        teacher_facts |= {"run": runs[0] if len(runs) == 1 else None, "runs": runs}
        if teacher_facts["nll"] is not None and math.isnan(teacher_facts["nll"]):
            raise NumericError(f"teacher {config.teacher.name}: its answers are not finite; it teaches nothing")
        if config.teacher.head:
            session.say(f"teacher: {accuracy_words(teacher_facts['top1'], source)}")
        warnings = teacher_warnings(config)
        for warning in warnings:
            session.warn(warning)
        try:
            targets, rounding, why = with_cache(config, data, frozen, runtime)
            session.say(why)
        except OSError as error:  # costs the cache and no more
            session.warn(f"teacher cache: off, its folder cannot be written ({error.strerror}: {error.filename})")
            targets = frozen

    begun = time.monotonic()
    seen = data if has_head else dataclasses.replace(data, source=dataclasses.replace(source, classes=()))
    student = new_backbone(config, config.student, seen, "student")
    recipe = recipe_fingerprint(config, seen, student, runtime, frozen.backbone if frozen else None, rounding)
    fitted = fit(config, seen, student, objective, targets, folder, recipe, "student", session)
    timings["student"] = time.monotonic() - begun
    facts = run_facts(config, seen, fitted, folder, recipe, objective, runtime, frozen)
    facts["dataset"]["classes"] = classes
    if runtime.is_main:
        export_student(fitted.backbone, folder, config, seen)

    baseline = None
    if config.baseline and with_teacher and not source.train.labelled:
        session.say("control: none, as no training image has a label")
    elif config.baseline and with_teacher:
        begun = time.monotonic()
        control = fit_once(control_recipe(config), "control", data, session)
        timings["control"] = time.monotonic() - begun
        result = read_result(control)
        assert result is not None
        baseline = result["student"] | {"run": str(control), "best": result["best"]}

    if with_probe and runtime.is_main:
        facts["student"] |= probe(fitted.backbone, data)
        if teacher_facts is not None and frozen is not None and isinstance(frozen.backbone, Backbone):
            teacher_facts |= probe(frozen.backbone, data)
        if baseline is not None:
            channels_last = config.trainer.channels_last
            baseline |= probe(reopen_model(baseline["run"], source, size, channels_last, runtime), data)

    late = comparison_warnings(facts["student"], teacher_facts)
    for warning in late:
        session.warn(warning)
    result = {"status": "ok", "error": None, "role": "student", **facts}
    result |= {"command": job.command, "overrides": list(job.overrides)}
    result |= {"teacher": teacher_facts, "baseline": baseline}
    result |= {"gap_closed": gap_closed(facts["student"], teacher_facts, baseline), "cache": rounding}
    result |= {"warnings": warnings + late, "timings": timings, "seconds": time.monotonic() - started}
    if runtime.is_main:
        write_result(folder, result)
        draw_curves(folder)
        write_report(folder)
        closing_table(result, folder)
    return result


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


def find_teacher(
    config: TrainConfig, data: Data, taps: Taps, session: Session
) -> tuple[FrozenTeacher, list[str | None]]:
    """The frozen teacher, and for each of its members the run folder in which it was fitted, or None.

    Raises UserError when a teacher's classes are not those of the data and ``teacher.fit.mode`` allows no fit.
    """
    members = members_of(config)
    runs = [find_weights(member, data, session) for member in members]
    sources = [run or member.teacher.checkpoint for run, member in zip(runs, members, strict=True)]
    return open_teacher(config, sources, data.source.classes, taps, session.runtime), runs


def find_weights(config: TrainConfig, data: Data, session: Session) -> str | None:
    """The run folder of the fitted teacher; None when its checkpoint or timm's weights serve as they are."""
    teacher, classes = config.teacher, data.source.classes
    ready = teacher.checkpoint is not None or (teacher.pretrained and (is_imagenet(classes) or not teacher.head))
    if ready and teacher.fit.mode != "always":
        return None
    if not data.source.train.labelled:
        raise UserError(
            f"teacher.name={teacher.name}: no training image has a label to fit it to; give teacher.checkpoint=RUN "
            "with teacher.fit.mode=auto"
        )
    if teacher.fit.mode == "never":
        raise UserError(
            f"teacher.fit.mode=never: {teacher.name} has no weights for the {len(classes)} classes of the data; give "
            "teacher.checkpoint=PATH, or let it be fitted with teacher.fit.mode=auto"
        )
    return str(fit_once(teacher_recipe(config, session.runtime), "teacher", data, session))


def teacher_warnings(config: TrainConfig) -> list[str]:
    """What published results say against these teachers."""
    found = []
    for teacher in (member.teacher for member in members_of(config)):
        tag = str(timm.get_pretrained_cfg(teacher.name).tag) if teacher.pretrained else ""
        if tag.startswith(BCE_TAGS):
            found.append(
                f"teacher {teacher.name}: its weights ({tag}) were trained with binary cross-entropy, which cost "
                "students 0.6 to 1.9 points at T=4 in published runs; a tag trained with cross-entropy may teach better"
            )
    return found


def accuracy_words(top1: float | None, source: Source) -> str:
    if top1 is None:
        return f"top-1 not known, the {source.evaluated_on} part has no labels"
    return f"top-1 {top1:.2f} on {source.evaluated_on}"


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

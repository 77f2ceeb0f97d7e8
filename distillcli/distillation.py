"""One distillation from beginning to end: teacher, student, control, evidence."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from distillcli.chain import describe_assistants, hand_down
from distillcli.class_names import teacher_classes
from distillcli.config.job import Job
from distillcli.config.schema import TrainConfig
from distillcli.data.loader import Data, open_data
from distillcli.data.source import Source
from distillcli.engine import Session, fit
from distillcli.ensemble import join_specs
from distillcli.errors import NumericError, UserError
from distillcli.evaluation import evaluate
from distillcli.fits import (
    check_class_maps,
    control_recipe,
    describe_folder,
    export_student,
    fit_once,
    measure,
    new_backbone,
    open_cache_or_warn,
    recipe_fingerprint,
    run_facts,
    teacher_recipe,
)
from distillcli.layout import settle_layout
from distillcli.models import Backbone, describe, place
from distillcli.objective import Objective, check_labels, check_terms, learns_labels, needs_teacher, trains_head
from distillcli.preflight import check_sizes, family_warnings, start_warnings, student_warnings, teacher_warnings
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
    members_of,
    open_teacher,
    pretrained_classes,
    with_classes,
)
from distillcli.terms.base import Setting
from distillcli.types import Spec, Taps


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
    check_sizes(config)
    check_labels(config.distill, source.train)
    source = with_classes(source, config)
    size, classes = config.dataset.image_size, len(source.classes)
    with_probe = wants_probe(config, source)
    # A head that nothing trains would answer at random: without one the student is a feature extractor.
    has_head = trains_head(config.distill)
    student_spec = describe(config.student, classes if has_head else 0, size, "student")
    teachers = teaching_specs(config, student_spec, classes)

    def setting(learner: Spec, above: Spec | None) -> Setting:
        return Setting(learner, above, source.train.labels, config.trainer.epochs)

    for above, assistant in pairwise(teachers):  # each must suit the next, which is seen before the first is fitted
        Objective(config.distill, setting(assistant, above))
    seed_everything(config.seed, "init", "objective")
    objective = Objective(config.distill, setting(student_spec, teachers[-1] if teachers else None))
    data = open_data(source, config.dataset, config.trainer.workers, runtime)
    overrides = list(job.overrides)
    if config.trainer.channels_last is None:
        config = settle_layout(config, classes, runtime)
        overrides.append(f"trainer.channels_last={str(config.trainer.channels_last).lower()}")  # for resume=
    if runtime.is_main:
        describe_folder(folder, config, job.command, overrides, data)
        introduce(config, source, student_spec, teachers[0] if teachers else None, objective, runtime, folder)

    warnings = data_warnings(source) + student_warnings(config)
    frozen, taught_by, timings = None, None, {}
    teacher_facts: dict[str, Any] | None = None
    targets: Teacher | None = None
    rounding = "off"
    chain: list[dict[str, Any]] = []
    if teachers and not learns_with_student(config):
        begun = time.monotonic()
        frozen, runs = find_teacher(config, data, objective.teacher_taps, session)
        timings["teacher"] = time.monotonic() - begun
        teacher_facts = measure(frozen.backbone, data, runtime, frozen.precision)
        teacher_facts |= {"run": runs[0] if len(runs) == 1 else None, "runs": runs}
        if teacher_facts["nll"] is not None and math.isnan(teacher_facts["nll"]):
            raise NumericError(f"teacher {config.teacher.name}: its answers are not finite; it teaches nothing")
        if config.teacher.head:
            session.say(f"teacher: {accuracy_words(teacher_facts['top1'], source)}")
        warnings += teacher_warnings(config) + family_warnings([*objective.terms], student_spec, teachers[0])
        begun = time.monotonic()
        taught_by = frozen
        for taught_by, run in hand_down(config, data, frozen, session):
            chain.append(measure(taught_by.backbone, data, runtime, taught_by.precision, frozen) | {"run": run})
            session.say(f"assistant: {accuracy_words(chain[-1]['top1'], source)}")
        if chain:
            timings["assistants"] = time.monotonic() - begun
        taught_by = replace(taught_by, taps=objective.teacher_taps)
        targets, rounding = open_cache_or_warn(config, data, taught_by, session)

    begun = time.monotonic()
    seen = data if has_head else replace(data, source=replace(source, classes=()))
    student = new_backbone(config, config.student, seen, "student")
    if teacher_facts is not None and (config.student.pretrained or config.student.checkpoint is not None):
        place(student, runtime.device, config.trainer.channels_last)
        warnings += start_warnings(evaluate(student, data.evaluation, runtime), teacher_facts, source.evaluated_on)
    for warning in warnings:
        session.warn(warning)
    check_class_maps(objective, student, taught_by)
    peers = [
        new_backbone(replace(config, seed=config.seed + n), peer, data, "peers")
        for n, peer in enumerate(config.peers, 1)
    ]
    recipe = recipe_fingerprint(
        config, seen, student, runtime, taught_by.backbone if taught_by else None, rounding, peers
    )
    fitted = fit(config, seen, student, objective, targets, folder, recipe, "student", session, peers)
    timings["student"] = time.monotonic() - begun
    facts = run_facts(config, seen, fitted, folder, recipe, objective, runtime, frozen)
    facts["dataset"]["classes"] = classes
    peer_facts = [measure(peer, data, runtime) for peer in peers]
    if runtime.is_main:
        export_student(fitted.backbone, folder / "student", config, seen)
        for number, peer in enumerate(peers, 1):
            export_student(peer, folder / "peers" / str(number), config, data)

    baseline = None
    if config.baseline and teachers and not source.train.labelled:
        session.say("control: none, as no training image has a label")
    elif config.baseline and teachers:
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
    result |= {"teacher": teacher_facts, "chain": chain, "peers": peer_facts, "baseline": baseline}
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


def learns_with_student(config: TrainConfig) -> bool:
    """Whether who teaches is itself in training: the peers, or the moving average of the student."""
    return bool(config.peers) or config.teacher.mean


def teaching_specs(config: TrainConfig, student: Spec, classes: int) -> list[Spec]:
    """Who teaches, in order: the teacher and its assistants, the last of whom teaches the student; empty for nobody."""
    if not needs_teacher(config.distill):
        return []
    if config.peers:
        peers = [describe(peer, classes, config.dataset.image_size, "peers") for peer in config.peers]
        return [replace(join_specs(peers), name="peers: " + ", ".join(peer.name for peer in peers))]
    if config.teacher.mean:
        return [replace(student, name="moving average of the student")]
    return [describe_teacher(config, classes), *describe_assistants(config, classes)]


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
    wanted = teacher_classes(teacher.class_map, classes)
    ready = teacher.checkpoint is not None or (
        teacher.pretrained and (not teacher.head or pretrained_classes(teacher.name, wanted) is not None)
    )
    if teacher.class_map is not None and not ready:
        raise UserError(
            f"teacher.class_map={teacher.class_map}: {teacher.name} does not know all {len(classes)} classes "
            "under the names it gives them; use WordNet ids"
        )
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


def data_warnings(source: Source) -> list[str]:
    """What was left out of the data."""
    if not source.skipped:
        return []
    return [
        f"{source.name}: {len(source.skipped)} images that cannot be decoded are left out, e.g. {source.skipped[0]}"
    ]


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

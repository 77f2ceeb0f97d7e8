"""One distillation from beginning to end: teacher, student, control, evidence."""

from __future__ import annotations

import dataclasses
import shlex
import signal
from pathlib import Path

from distillcli.config.job import Job
from distillcli.config.schema import TrainConfig
from distillcli.distillation.advice import comparison_warnings, planned_warnings, start_warnings
from distillcli.distillation.disagreements import keep_disagreements
from distillcli.distillation.fits import fit_once
from distillcli.distillation.folders import Spent, describe
from distillcli.distillation.plan import Plan
from distillcli.distillation.recipes import Above, control_recipe, ingredients
from distillcli.distillation.reopening import reopen_model
from distillcli.distillation.results import dataset_facts, images_words, result_of_fit
from distillcli.distillation.sessions import open_session
from distillcli.distillation.students import export_for_timm, new_backbone, new_peers, with_teachers_head
from distillcli.distillation.teaching import Teaching, find_teaching
from distillcli.distillation.timing import with_latency
from distillcli.distillation.verdict import verdict_of
from distillcli.errors import Interrupted
from distillcli.models.backbone import Backbone, place
from distillcli.models.backbone import describe as describe_model
from distillcli.models.memory_layout import settle_layout
from distillcli.report.console import LOG, Opening, closing_table, opening, warn
from distillcli.report.curves import draw_curves
from distillcli.report.documents import write_report
from distillcli.report.hub_card import write_hub_card
from distillcli.runs.folder import point_latest
from distillcli.runs.predictions import read_predictions, write_predictions
from distillcli.runs.result import Measured, Result, Verdict, read_result, top1_of, write_result
from distillcli.runtime import Runtime, from_main, one_fate, resolve_precision
from distillcli.signals import EXIT_CODES
from distillcli.sources.source import Source
from distillcli.training.engine import fit
from distillcli.training.evaluation import evaluate, measure
from distillcli.training.fit import Fit
from distillcli.training.probe import probe
from distillcli.training.session import Session
from distillcli.views.loader import Data, open_data


def run(plan: Plan, job: Job, claimed: Path | None) -> None:
    """Distil in the folder ``claimed`` and leave a result there whatever happens.

    ``claimed``: None in the other processes of ``torchrun``, which learn it from the main one.
    """
    config = plan.config
    known = Result(name=config.name, role="student", command=job.command, overrides=job.overrides, seed=config.seed)
    with open_session(config, job.command, claimed) as current:
        folder = Path(from_main(str(claimed) if claimed else None, current.runtime))
        spent = Spent.on(folder)
        try:
            with one_fate(current.runtime):
                distill(plan, job, folder, spent, current)
        except (Interrupted, KeyboardInterrupt) as stop:
            code = stop.exit_code if isinstance(stop, Interrupted) else EXIT_CODES[signal.SIGINT]
            line = f"interrupted; continue with: {resume_command(folder)}"
            if current.runtime.is_main:
                LOG.info(line)
                so_far = dataclasses.replace(known, seconds=spent.seconds, timings=spent.parts)
                _leave(folder, dataclasses.replace(so_far, status="interrupted"))
            raise Interrupted(line if current.runtime.is_main else "", code) from None
        except Exception as error:
            if current.runtime.is_main:
                LOG.exception("failed")
                why = f"{type(error).__name__}: {error}"
                so_far = dataclasses.replace(known, seconds=spent.seconds, timings=spent.parts)
                _leave(folder, dataclasses.replace(so_far, status="failed", error=why))
            raise
        if current.runtime.stop.is_asked():
            # Too late for this run, but not for the other jobs of a sweep.
            raise Interrupted(f"interrupted; {folder} is finished", current.runtime.stop.exit_code)


def _leave(folder: Path, result: Result) -> None:
    """Write what is known of a run that ends early; a full disk must not hide why it does."""
    try:
        write_result(folder, result)
    except OSError as error:
        warn(f"{folder / 'result.json'}: cannot be written ({error.strerror})")


def resume_command(folder: Path) -> str:
    return shlex.join(["distill", "train", f"resume={folder}"])


def distill(plan: Plan, job: Job, folder: Path, spent: Spent, session: Session) -> Result:
    """Fit or find the teacher, distil the student, fit or find the control; returns what ``result.json`` then holds."""
    runtime = session.runtime
    # 1. The memory layout, which enters every fingerprint below.
    overrides = list(job.overrides)
    if plan.config.trainer.channels_last is None:
        plan = plan.settled(settle_layout(plan.config, plan.inputs, runtime))
        overrides.append(f"trainer.channels_last={str(plan.config.trainer.channels_last).lower()}")  # for resume=
    # 2. The run describes itself: from here on it can be resumed. Then its data, decoded if it fits into memory.
    if runtime.is_main:
        describe(folder, plan.config, overrides, plan.source, session)
    session.say(f"opening {plan.source.count:,} images of {plan.source.name}")
    data = open_data(plan.source, plan.config.dataset, plan.config.trainer.workers, runtime)
    if runtime.is_main:
        opening(_opening(plan, runtime, folder))
    warnings = planned_warnings(plan)
    for warning in warnings:
        session.warn(warning)
    # 3. The teacher, then the student, then its control: each uses what the one before has left.
    teaching = find_teaching(plan.config, data, plan.objective.teacher_taps, spent, session)
    is_named_latest = runtime.is_main and plan.config.out is None and job.folder is None
    to_student = dataclasses.replace(session, saved=point_latest) if is_named_latest else session
    with spent.part("student"):
        trained, result = _fit_student(plan, data, teaching, warnings, folder, to_student)
    control = None
    if plan.config.baseline and plan.teachers and data.source.train.labelled:
        with spent.part("control"):
            control = _find_control(plan.config, data, session)
    elif plan.config.baseline and plan.teachers:
        session.say("control: none, as no training image has a label")
    # 4. The evidence.
    warnings += teaching.warnings
    result = dataclasses.replace(result, teacher=teaching.numbers, chain=teaching.chain, baseline=control)
    if runtime.is_main:
        result = with_latency(result, teaching, trained, _like_control(result, plan, trained[0], runtime), runtime)
    if plan.with_probe and runtime.is_main:
        result = _with_probes(result, plan.config, data, trained[0], teaching, runtime)
    for warning in comparison_warnings(result):
        session.warn(warning)
        warnings.append(warning)
    result = dataclasses.replace(
        result,
        command=job.command,
        overrides=job.overrides,
        images=images_words(plan.config.dataset, plan.student, plan.teachers[0] if plan.teachers else None),
        gap_closed=gap_closed(result),
        verdict=None if control is None else _verdict(folder, control, teaching, plan),
        cache=teaching.cache_format,
        warnings=tuple(warnings),
        timings=spent.parts,
        seconds=spent.seconds,
    )
    runtime.obey_stop()
    if runtime.is_main:
        write_result(folder, result)
        _keep_disagreements(folder, control, teaching, plan.source)
        draw_curves(folder)
        write_report(folder)
        write_hub_card(folder, result)
        closing_table(result, folder)
    return result


def _fit_student(
    plan: Plan, data: Data, teaching: Teaching, warnings: list[str], folder: Path, session: Session
) -> tuple[list[Backbone], Result]:
    """Train, measure and export the student and its peers; returns them in this order.

    Adds to ``warnings`` what the student's start gives rise to.
    """
    runtime = session.runtime
    student_data = dataclasses.replace(data, source=plan.student_source)
    # 1. The student and its peers, as they are before step 1.
    student = new_backbone(plan.config, student_data, "student")
    for warning in _start_warnings(plan, student, data, teaching, runtime):
        session.warn(warning)
        warnings.append(warning)
    if plan.student_run.student != plan.config.student:
        assert teaching.nearest is not None
        student = with_teachers_head(plan.student_run.student, student, teaching.nearest, plan.config)
    peers = new_peers(plan.config, data)
    # 2. The fit, named by all that decides the weights afterwards.
    above = Above(teaching.nearest.backbone, teaching.cache_format) if teaching.nearest else None
    made_of = ingredients(plan.student_run, student_data, student, runtime, above, peers)
    wanted = Fit(
        plan.student_run, student_data, student, plan.objective, folder, made_of, "student", teaching.targets, peers
    )
    fitted = fit(wanted, session)
    # 3. What came of it. The classes that are reported are those of the data, also where the student has no head.
    result, predictions = result_of_fit(dataclasses.replace(wanted, data=data), fitted, session, teaching.teacher)
    result = dataclasses.replace(result, peers=tuple(measure(peer, data)[0] for peer in peers))
    if runtime.is_main:
        if predictions is not None:
            write_predictions(folder, predictions)
        export_for_timm(fitted.backbone, folder / "student", student_data)
        for number, peer in enumerate(peers, 1):
            export_for_timm(peer, folder / "peers" / str(number), data)
    return [fitted.backbone, *peers], result


def _start_warnings(plan: Plan, student: Backbone, data: Data, teaching: Teaching, runtime: Runtime) -> list[str]:
    """A student that does not start from scratch is measured before its first step."""
    config = plan.config
    if teaching.numbers is None or not (config.student.pretrained or config.student.checkpoint):
        return []
    place(student, runtime.device, config.trainer.channels_last)
    before = evaluate(student, data.evaluation).get("top1")
    return start_warnings(before, teaching.numbers.top1, plan.source.evaluated_on)


def _find_control(config: TrainConfig, data: Data, session: Session) -> Measured:
    """The numbers of the same student without a teacher, fitted or found."""
    folder = fit_once(control_recipe(config), data, session)
    result = read_result(folder)
    assert result is not None
    assert result.student is not None
    return dataclasses.replace(result.student, run=str(folder), best=result.best)


def _like_control(result: Result, plan: Plan, student: Backbone, runtime: Runtime) -> Backbone:
    """A model of the control's architecture: the student, unless it has another head than the data ask for."""
    config = plan.config
    if result.baseline is None or plan.student == describe_model(config.student, plan.inputs, "student"):
        return student
    assert result.baseline.run is not None
    return reopen_model(result.baseline.run, plan.source, config.dataset, config.trainer.channels_last, runtime)


def _verdict(folder: Path, control: Measured, teaching: Teaching, plan: Plan) -> Verdict | None:
    assert control.run is not None
    student, other = read_predictions(folder), read_predictions(Path(control.run))
    return verdict_of(student, other, teaching.predictions, plan.source.classes)


def _keep_disagreements(folder: Path, control: Measured | None, teaching: Teaching, source: Source) -> None:
    """With the control, which shows what distilling changed; with the teacher where there is none."""
    student = read_predictions(folder)
    role, other = "teacher", teaching.predictions
    if control is not None:
        assert control.run is not None
        role, other = "control", read_predictions(Path(control.run))
    if student is not None and other is not None:
        keep_disagreements(folder, student, other, role, source)


def _with_probes(
    result: Result, config: TrainConfig, data: Data, student: Backbone, teaching: Teaching, runtime: Runtime
) -> Result:
    """``result`` with k-NN and linear probes of the embeddings of student, teacher and control."""

    def probed(numbers: Measured, backbone: Backbone) -> Measured:
        found = probe(backbone, data)
        return dataclasses.replace(numbers, knn_top1=found["knn_top1"], probe_top1=found["probe_top1"])

    assert result.student is not None
    teacher, control = result.teacher, result.baseline
    if teacher is not None and teaching.teacher is not None and isinstance(teaching.teacher.backbone, Backbone):
        teacher = probed(teacher, teaching.teacher.backbone)
    if control is not None:
        assert control.run is not None
        channels_last = config.trainer.channels_last
        control = probed(control, reopen_model(control.run, data.source, config.dataset, channels_last, runtime))
    return dataclasses.replace(result, student=probed(result.student, student), teacher=teacher, baseline=control)


def _opening(plan: Plan, runtime: Runtime, folder: Path) -> Opening:
    student = plan.student
    teacher = plan.teachers[0] if plan.teachers else None
    return Opening(
        student=student.name,
        student_params=student.params,
        student_macs=student.macs,
        teacher=teacher.name if teacher else None,
        teacher_params=teacher.params if teacher else None,
        teacher_macs=teacher.macs if teacher else None,
        dataset=dataset_facts(plan.source),
        objective=plan.objective.words(),
        device=str(runtime.device),
        precision=resolve_precision(plan.config.trainer.precision, runtime.device),
        run=str(folder),
        images=images_words(plan.config.dataset, student, teacher),
    )


def gap_closed(result: Result) -> float | None:
    """(student - control) / (teacher - control) in top-1; None without a control, labels or a gap to close."""
    student, teacher, control = top1_of(result.student), top1_of(result.teacher), top1_of(result.baseline)
    if student is None or teacher is None or control is None or teacher <= control:
        return None
    return (student - control) / (teacher - control)

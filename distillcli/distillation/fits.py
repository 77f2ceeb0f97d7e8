"""Fitted once, found again: teachers and controls as ordinary run folders named by their recipe.

A teacher is a student of the labels, and a control is a student without a teacher: both are a TrainConfig whose
objective has label terms only. The fingerprint of that recipe and of its data names the folder, so a sweep over
temperatures fits each of them once, and parallel jobs wait for the one that got there first.
"""

from __future__ import annotations

import dataclasses
import re
import time
from contextlib import nullcontext
from pathlib import Path

from distillcli.config.schema import TrainConfig
from distillcli.distillation.recipes import recipe_fingerprint
from distillcli.distillation.results import result_of_fit
from distillcli.distillation.students import new_backbone
from distillcli.models.weights import export
from distillcli.runs.folder import describe_folder, locked
from distillcli.runs.result import read_result, write_result
from distillcli.runtime import any_rank, barrier, seed_everything
from distillcli.teachers.cached import with_cache
from distillcli.teachers.frozen import FrozenTeacher, Teacher
from distillcli.terms.base import Setting
from distillcli.terms.objective import Objective
from distillcli.training.engine import Session, fit
from distillcli.views.loader import Data


def fit_once(
    config: TrainConfig, role: str, data: Data, session: Session, teacher: FrozenTeacher | None = None
) -> Path:
    """The run folder of this recipe: found if it is complete, else fitted, or continued where it was stopped.

    ``role``: teacher, assistant or control, which names the parent folder. ``teacher``: who teaches an assistant.
    """
    runtime = session.runtime
    student = new_backbone(config, config.student, data, role)
    seed_everything(config.seed, "init", "objective")
    above = None if teacher is None else teacher.backbone.spec
    objective = Objective(config.distill, Setting(student.spec, above, data.source.train.labels, config.trainer.epochs))
    targets: Teacher | None = None
    rounding = "off"
    if teacher is not None:
        teacher = dataclasses.replace(teacher, taps=objective.teacher_taps)
        targets, rounding = open_cache_or_warn(config, data, teacher, session)
    recipe = recipe_fingerprint(config, data, student, runtime, None if teacher is None else teacher.backbone, rounding)
    safe_name = re.sub(r"[^A-Za-z0-9_.-]+", "_", config.student.name)
    folder = Path(config.runs) / f"{role}s" / f"{safe_name}-{recipe[:8]}"
    if runtime.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True) if runtime.is_main else nullcontext():
        result = read_result(folder) if runtime.is_main else None
        if any_rank(result is not None and result.finished, runtime):
            session.say(f"{role}: {config.student.name} found in {folder}")
        else:
            whom = "the labels" if teacher is None else teacher.backbone.spec.name
            session.say(f"{role}: fitting {config.student.name} to {whom}, {config.trainer.epochs} epochs")
            started = time.monotonic()
            if runtime.is_main:
                describe_folder(folder, dataclasses.asdict(config), session.command, [], data.source.classes)
            fitted = fit(config, data, student, objective, targets, folder, recipe, role, session)
            outcome = dataclasses.replace(
                result_of_fit(config, data, fitted, folder, recipe, objective),
                role=role,
                command=session.command,
                cache=rounding,
                seconds=time.monotonic() - started,
            )
            if runtime.is_main:
                export(fitted.backbone, folder / "student", data.source.classes, config.dataset.crop_fraction)
                write_result(folder, outcome)
    barrier(runtime)
    return folder


def open_cache_or_warn(
    config: TrainConfig, data: Data, teacher: FrozenTeacher, session: Session
) -> tuple[Teacher, str]:
    """The teacher, its answers cached where that is possible, and the format of the cache; says which."""
    try:
        targets, rounding, why = with_cache(config, data, teacher, session.runtime)
    except OSError as error:  # costs the cache and no more
        session.warn(f"teacher cache: off, its folder cannot be written ({error.strerror}: {error.filename})")
        return teacher, "off"
    session.say(why)
    return targets, rounding

"""Trained once, then reused: teachers, assistants and controls as ordinary run folders named by their recipe.

The fingerprint of a recipe and of its data names the folder, so a sweep over temperatures fits each of them once, and
parallel jobs wait for the one that got there first.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from distillcli.config.schema import TrainConfig
from distillcli.distillation.folders import Spent, describe, in_turn
from distillcli.distillation.recipes import Above, Recipe, ingredients
from distillcli.distillation.results import result_of_fit
from distillcli.distillation.students import export_for_timm, new_backbone
from distillcli.errors import Interrupted, UserError
from distillcli.models.card import read_card
from distillcli.models.weights import check_file
from distillcli.runs.folder import fingerprint, writable
from distillcli.runs.predictions import write_predictions
from distillcli.runs.result import Result, read_result, write_result
from distillcli.runtime import any_rank, barrier, seed_everything
from distillcli.teachers.cached import with_cache
from distillcli.teachers.frozen import FrozenTeacher, Teacher
from distillcli.terms.base import Setting
from distillcli.terms.objective import Objective
from distillcli.training.engine import fit
from distillcli.training.fit import Fit
from distillcli.training.session import Session
from distillcli.views.loader import Data


def fit_once(recipe: Recipe, data: Data, session: Session, teacher: FrozenTeacher | None = None) -> Path:
    """The run folder of a recipe: reused if it is complete, else trained, or continued where it was stopped.

    ``teacher``: of an assistant.
    """
    runtime, role, name = session.runtime, recipe.role, recipe.config.student.name
    # 1. All that decides the weights afterwards: it names the folder.
    wanted = _fit_of(recipe, data, session, teacher)
    folder, reused = wanted.folder, f"{role}: reusing {name} from {wanted.folder}"
    # 2. What is there and whole is only read: the folder may be somebody else's. The main rank looks for all.
    if any_rank(runtime.is_main and _fault(folder) is None, runtime):
        session.say(reused)
        return folder
    if runtime.is_main:
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
    # 3. The main rank holds the folder; the others go along with what it finds there.
    with in_turn(folder, f"training this {role}", session):
        fault = _fault(folder) if runtime.is_main else ""
        if any_rank(fault is None, runtime):  # somebody else was faster
            session.say(reused)
        else:
            if fault:
                session.warn(f"{role}: {fault}; it is fitted again, from its last checkpoint")
            session.say(_training_words(recipe, teacher))
            _carry_out(wanted, session)
    # 4. The others read what the main rank wrote.
    barrier(runtime)
    return folder


def _fit_of(recipe: Recipe, data: Data, session: Session, teacher: FrozenTeacher | None) -> Fit:
    config = recipe.config
    student = new_backbone(config, data, recipe.key)
    seed_everything(config.seed, "init", "objective")
    above = None if teacher is None else teacher.backbone.spec
    objective = Objective(config.distill, Setting(student.spec, above, data.source.train.labels, config.trainer.epochs))
    targets: Teacher | None = None
    taught = None
    if teacher is not None:
        teacher = dataclasses.replace(teacher, taps=objective.teacher_taps)
        targets, cache_format = open_cache_or_warn(config, data, teacher, session)
        taught = Above(teacher.backbone, cache_format)
    made_of = ingredients(config, data, student, session.runtime, taught)
    safe_name = re.sub(r"[^A-Za-z0-9_.-]+", "_", config.student.name)
    folder = Path(config.runs) / f"{recipe.role}s" / f"{safe_name}-{fingerprint(made_of)[:8]}"
    return Fit(config, data, student, objective, folder, made_of, recipe.role, targets)


def _fault(folder: Path) -> str | None:
    """Why the fit in ``folder`` cannot be used; empty where it is just not there yet, None where it is whole."""
    result = read_result(folder)
    if result is None or not result.finished or result.student is None:
        return ""
    try:
        read_card(folder / "student")
        check_file(folder / "student" / "model.safetensors")
    except UserError as error:
        return str(error)
    return None


def _carry_out(wanted: Fit, session: Session) -> None:
    """Fit, export and leave a result."""
    runtime, folder, spent = session.runtime, wanted.folder, Spent.on(wanted.folder)
    if runtime.is_main:
        (folder / "result.json").unlink(missing_ok=True)  # until there is another, nobody takes this fit
        describe(folder, wanted.config, [], wanted.data.source, session)
    try:
        fitted = fit(wanted, session)
        result, predictions = result_of_fit(wanted, fitted, session)
    except (Interrupted, KeyboardInterrupt):
        if runtime.is_main:
            known = Result(name=wanted.config.name, role=wanted.role, command=session.command, seed=wanted.config.seed)
            write_result(folder, dataclasses.replace(known, status="interrupted", seconds=spent.seconds))
        raise
    if runtime.is_main:
        if predictions is not None:
            write_predictions(folder, predictions)
        export_for_timm(fitted.backbone, folder / "student", wanted.data)
        write_result(folder, dataclasses.replace(result, command=session.command, seconds=spent.seconds))


def _training_words(recipe: Recipe, teacher: FrozenTeacher | None) -> str:
    name, epochs = recipe.config.student.name, recipe.config.trainer.epochs
    on = "on the labels" if teacher is None else f"with {teacher.backbone.spec.name} as its teacher"
    return f"{recipe.role}: training {name} {on}, {epochs} epochs"


def open_cache_or_warn(
    config: TrainConfig, data: Data, teacher: FrozenTeacher, session: Session
) -> tuple[Teacher, str]:
    """The teacher, its outputs cached where that is possible, and the format of the cache, which is printed."""
    try:
        targets, cache_format, why = with_cache(config, data, teacher, session.runtime)
    except OSError as error:  # costs the cache and no more
        session.warn(f"teacher cache: off, its folder cannot be written ({error.strerror}: {error.filename})")
        return teacher, "off"
    session.say(why)
    return targets, cache_format

"""Fitted once, found again: teachers and controls as ordinary run folders named by their recipe.

A teacher is a student of the labels, and a control is a student without a teacher: both are a TrainConfig whose
objective has label terms only. The fingerprint of that recipe and of its data names the folder, so a sweep over
temperatures fits each of them once, and parallel jobs wait for the one that got there first.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from distillcli.cached_teacher import with_cache
from distillcli.config.schema import CacheConfig, ModelConfig, StudentConfig, TrainConfig
from distillcli.data.loader import Data
from distillcli.engine import Session, fit
from distillcli.ensemble import Classifier
from distillcli.errors import UserError
from distillcli.facts import describe_folder, export_student, run_facts
from distillcli.freezing import freeze
from distillcli.models import Backbone, build, describe
from distillcli.objective import Objective, labels_only, needs_teacher, reused_head_options
from distillcli.reused_head import join, start_from
from distillcli.run_folder import (
    fingerprint,
    locked,
    read_result,
    write_result,
)
from distillcli.runtime import Runtime, any_rank, barrier, resolve_precision, seed_everything
from distillcli.teachers import FrozenTeacher, Teacher, answer_settings, describe_teacher
from distillcli.terms.base import Setting
from distillcli.weights import knows_classes, load_into, read_weights, weights_fingerprint

# Raise this number when a change of the code changes what the same recipe trains.
RECIPE_VERSION = 2


def teacher_recipe(config: TrainConfig, runtime: Runtime) -> TrainConfig:
    """The run that fits the teacher to the labels, in the teacher's own budget and precision."""
    teacher = config.teacher
    return dataclasses.replace(
        config,
        name=f"teacher {teacher.name}",
        baseline=False,
        student=as_student(teacher),
        distill=labels_only(config.distill),
        teacher=dataclasses.replace(teacher, cache=CacheConfig()),
        optimizer=dataclasses.replace(
            config.optimizer,
            lr=teacher.fit.lr,
            weight_decay=teacher.fit.weight_decay,
            layer_decay=teacher.fit.layer_decay,
        ),
        trainer=dataclasses.replace(
            config.trainer,
            epochs=teacher.fit.epochs,
            precision=resolve_precision(teacher.precision, runtime.device, teacher=True),
        ),
    )


def as_student(model: ModelConfig) -> StudentConfig:
    """A teacher or an assistant in the place of the student, where it is fitted."""
    return StudentConfig(model.name, model.pretrained, model.checkpoint, model.args, model.image_size, model.freeze)


def control_recipe(config: TrainConfig) -> TrainConfig:
    """The same student with the same budget and no teacher.

    The budget is counted in optimizer steps: where only some images are labelled, the control sees these alone, and as
    often as it takes to make as many steps as the student.
    """
    name = f"control {config.student.name}"
    return dataclasses.replace(config, name=name, baseline=False, peers=[], distill=labels_only(config.distill))


def recipe_fingerprint(
    config: TrainConfig,
    data: Data,
    student: Backbone,
    runtime: Runtime,
    teacher: Classifier | None = None,
    rounding: str = "off",
    peers: Sequence[Backbone] = (),
) -> str:
    """Names what ``config`` trains on ``data``, from ``student`` as it is before step 1: all that decides the weights
    afterwards, and nothing else. ``rounding``: the format in which the teacher's answers are cached.
    """
    trainer = config.trainer
    learning = (
        {"peers": [[peer.spec.name, weights_fingerprint(peer.net.state_dict())] for peer in peers]} if peers else {}
    )
    if config.teacher.mean and needs_teacher(config.distill):
        learning["mean_teacher"] = [[config.teacher.precision]]
    return fingerprint(
        {
            **learning,
            "version": RECIPE_VERSION,
            "data": data.source.fingerprint,
            "views": data.train.rendering(config.augment),
            "sampling": [config.dataset.balanced, trainer.progressive],
            "model": [config.student.name, config.student.args, student.image_size, config.student.freeze],
            "start": weights_fingerprint(student.net.state_dict()),
            "teacher": None if teacher is None else weights_fingerprint(teacher.state_dict()),
            "teacher_settings": None if teacher is None else answer_settings(config),
            "teacher_arithmetic": None if teacher is None else [config.teacher.precision, rounding],
            "view_cycle": config.teacher.cache.views,
            "objective": dataclasses.asdict(config.distill),
            "optimizer": dataclasses.asdict(config.optimizer),
            "schedule": dataclasses.asdict(config.schedule),
            "augment": dataclasses.asdict(config.augment),
            "budget": [trainer.epochs, trainer.batch_size, trainer.accumulate, trainer.clip_grad, trainer.ema],
            "arithmetic": [resolve_precision(trainer.precision, runtime.device), trainer.channels_last, runtime.world],
            "seed": config.seed,
        }
    )


def new_backbone(config: TrainConfig, model: ModelConfig, data: Data, role: str) -> Backbone:
    """The model to be trained: fresh, pretrained, or from own weights, with a new classifier if the classes differ.

    Control and student start from the same weights: the seed of the initialisation does not depend on their role.
    """
    seed_everything(config.seed, "init", model.name)
    classes = data.source.classes
    backbone = build(model, len(classes), config.dataset.image_size, role, config.dataset.channels)
    if model.checkpoint is not None:
        weights = read_weights(model.checkpoint)
        load_into(backbone, weights, role, new_head=not knows_classes(weights, backbone, classes))
    freeze(backbone, model.freeze, role)
    return backbone


def student_model(config: TrainConfig, classes: int) -> StudentConfig:
    """What is trained: the student of ``config``, joined to the teacher's head where the objective reuses that.

    Raises UserError when the teacher's head does not pool a feature map.
    """
    options = reused_head_options(config.distill)
    if options is None:
        return config.student
    size, channels = config.dataset.image_size, config.dataset.channels
    describe(config.student, classes, size, "student", channels)  # refuses what cannot be built under its own name
    teacher = describe_teacher(config, classes)
    if teacher.feature_shape is None:
        raise UserError(
            f"distill.terms.simkd: the head of {teacher.name} takes no feature map, B x C x H x W; choose a "
            "convolutional teacher, e.g. a ResNet, or another objective"
        )
    return as_student(join(config.student, config.teacher, options.reduction, options.relu))


def with_teachers_head(config: TrainConfig, student: Backbone, teacher: FrozenTeacher | None) -> Backbone:
    """The model of ``config``, which joins both, with their weights; what lies between them is drawn.

    The teacher's head is not trained.
    """
    assert teacher is not None
    assert isinstance(teacher.backbone, Backbone)  # the checks of the config refuse an ensemble
    seed_everything(config.seed, "init", "projector")
    dataset, classes = config.dataset, teacher.backbone.spec.classes
    joined = build(config.student, classes, dataset.image_size, "student", dataset.channels)
    start_from(joined.net, student.net, teacher.backbone.net)
    joined.net.teacher_head.requires_grad_(False)
    joined.frozen = [*joined.net.teacher_head.modules()]
    joined.train(joined.training)
    return joined


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
        if any_rank(result is not None and result["status"] == "ok", runtime):
            session.say(f"{role}: {config.student.name} found in {folder}")
        else:
            whom = "the labels" if teacher is None else teacher.backbone.spec.name
            session.say(f"{role}: fitting {config.student.name} to {whom}, {config.trainer.epochs} epochs")
            started = time.monotonic()
            if runtime.is_main:
                describe_folder(folder, config, session.command, [], data)
            fitted = fit(config, data, student, objective, targets, folder, recipe, role, session)
            outcome = run_facts(config, data, fitted, folder, recipe, objective, runtime) | {
                "status": "ok",
                "error": None,
                "role": role,
                "command": session.command,
                "overrides": [],
                "teacher": None,
                "baseline": None,
                "gap_closed": None,
                "warnings": [],
                "seconds": time.monotonic() - started,
            }
            if runtime.is_main:
                export_student(fitted.backbone, folder / "student", config, data)
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

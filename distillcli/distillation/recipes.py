"""What is fitted beside the student, as configs of their own, and the fingerprint that names what a config trains.

A teacher is a student of the labels, and a control is a student without a teacher: both are a TrainConfig whose
objective has label terms only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distillcli.config.schema import CacheConfig, ModelConfig, StudentConfig, TrainConfig
from distillcli.config.terms import labels_only, needs_teacher
from distillcli.models.backbone import Backbone
from distillcli.models.ensemble import Classifier
from distillcli.models.weights import weights_fingerprint
from distillcli.runs.folder import (
    fingerprint,
)
from distillcli.runtime import Runtime, resolve_precision
from distillcli.teachers.frozen import answer_settings
from distillcli.views.loader import Data

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

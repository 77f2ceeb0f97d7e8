"""What is fitted beside the student, as configs of their own, and all that decides what a config trains.

A teacher is a student of the labels, and a control is a student without a teacher: both are a TrainConfig whose
objective has label terms only. Assistants stand between a large teacher and a small student (teacher assistants:
Mirzadeh et al., AAAI 2020), or are earlier generations of the student itself (born-again networks: Furlanello et al.,
ICML 2018): students in a row, each the teacher of the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distillcli.config.schema import AssistantConfig, CacheConfig, ModelConfig, StudentConfig, TrainConfig
from distillcli.config.terms import labels_only, needs_teacher
from distillcli.errors import UserError
from distillcli.models.backbone import Backbone
from distillcli.models.ensemble import Classifier
from distillcli.models.imagenet import pretrained_classes
from distillcli.models.weights import weights_fingerprint
from distillcli.runtime import Runtime, resolve_precision
from distillcli.sources.source import Source
from distillcli.teachers.frozen import Member, output_settings
from distillcli.views.loader import Data

# Raise this number when a change of the code changes what the same recipe trains.
RECIPE_VERSION = 3


@dataclass(frozen=True)
class Recipe:
    """A run beside the student's own, trained once and then reused.

    ``config``: of that run, in which the model is the student. ``role``: teacher, assistant or control. ``key``: where
    the config of the whole run names the model, for messages.
    """

    config: TrainConfig
    role: str
    key: str


def recipe_to_fit(member: Member, source: Source, device: torch.device) -> Recipe | None:
    """How a teacher is fitted to the labels; None when its checkpoint or timm's weights serve as they are.

    Raises UserError when its classes are not those of the data and it cannot, or may not, be fitted.
    """
    teacher, classes, key = member.config.teacher, source.classes, member.key
    wanted = member.own_names(classes)
    serves = teacher.checkpoint is not None or (
        teacher.pretrained and (not teacher.head or pretrained_classes(teacher.name, wanted) is not None)
    )
    if teacher.class_map is not None and not serves:
        raise UserError(
            f"{key}.class_map={teacher.class_map}: {teacher.name} does not know all {len(classes)} classes "
            "under the names it gives them; use WordNet ids"
        )
    if serves and teacher.fit.mode != "always":
        return None
    if not source.train.labelled:
        raise UserError(
            f"{key}.name={teacher.name}: no training image has a label to fit it to; give {key}.checkpoint=RUN "
            "with teacher.fit.mode=auto"
        )
    if teacher.fit.mode == "never":
        raise UserError(
            f"teacher.fit.mode=never: {teacher.name} has no weights for the {len(classes)} classes of the data; give "
            f"{key}.checkpoint=PATH, or let it be fitted with teacher.fit.mode=auto"
        )
    return teacher_recipe(member, device)


def teacher_recipe(member: Member, device: torch.device) -> Recipe:
    """The run that fits a teacher to the labels, in the teacher's own budget and precision."""
    config, teacher = member.config, member.config.teacher
    fitted = dataclasses.replace(
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
            select="last",
            precision=resolve_precision(teacher.precision, device, teacher=True),
        ),
    )
    return Recipe(fitted, "teacher", member.key)


def control_recipe(config: TrainConfig) -> Recipe:
    """The same student with the same budget and no teacher.

    The budget is counted in optimizer steps: where only some images are labelled, the control sees these alone, and as
    often as it takes to make as many steps as the student.
    """
    name = f"control {config.student.name}"
    alone = dataclasses.replace(config, name=name, baseline=False, peers=[], distill=labels_only(config.distill))
    return Recipe(alone, "control", "student")


def assistants_of(config: TrainConfig) -> list[AssistantConfig]:
    """All models between the teacher and the student of this run, the earlier generations of the student last.

    Every generation has a seed of its own, as in the paper: the run's, plus the number of generations still to come.
    """
    student = config.student
    earlier = [
        AssistantConfig(**dataclasses.asdict(student), seed=config.seed + to_come)
        for to_come in range(config.generations - 1, 0, -1)
    ]
    return [*config.teacher.assistants, *earlier]


def assistant_recipes(config: TrainConfig) -> list[Recipe]:
    """One run for each assistant, in order; the config of each holds those before it, so that it explains itself."""
    models = assistants_of(config)
    named = len(config.teacher.assistants)
    return [
        Recipe(
            dataclasses.replace(
                config,
                name=f"assistant {model.name}",
                seed=config.seed if model.seed is None else model.seed,
                student=as_student(model),
                teacher=dataclasses.replace(config.teacher, assistants=models[:position]),
                baseline=False,
                generations=1,
                trainer=dataclasses.replace(config.trainer, select="last"),
            ),
            "assistant",
            f"teacher.assistants[{position}]" if position < named else "student",
        )
        for position, model in enumerate(models)
    ]


def as_student(model: ModelConfig) -> StudentConfig:
    """A teacher or an assistant in the place of the student, where it is fitted."""
    return StudentConfig(model.name, model.pretrained, model.checkpoint, model.args, model.image_size, model.freeze)


@dataclass(frozen=True)
class Above:
    """The teacher of a fit, as far as it decides what the student learns.

    ``cache_format``: of the stored answers, "off" where the teacher is run each time.
    """

    model: Classifier
    cache_format: str


def ingredients(
    config: TrainConfig,
    data: Data,
    student: Backbone,
    runtime: Runtime,
    above: Above | None = None,
    peers: Sequence[Backbone] = (),
) -> dict[str, Any]:
    """What decides the weights that ``config`` trains on ``data``, from ``student`` as it is before step 1.

    Plain data, whose fingerprint names the recipe: all that decides the weights afterwards, and nothing else.
    """
    trainer = config.trainer
    learning = (
        {"peers": [[peer.spec.name, weights_fingerprint(peer.net.state_dict())] for peer in peers]} if peers else {}
    )
    if config.teacher.mean and needs_teacher(config.distill):
        learning["mean_teacher"] = [[config.teacher.precision]]
    selection = {} if trainer.select == "last" else {"select": trainer.select}
    return {
        **learning,
        **selection,
        "version": RECIPE_VERSION,
        "data": data.source.fingerprint,
        "views": data.train.rendering(config.augment),
        "sampling": [config.dataset.balanced, trainer.progressive],
        "model": [config.student.name, config.student.args, student.image_size, config.student.freeze],
        "start": weights_fingerprint(student.net.state_dict()),
        "teacher": None if above is None else weights_fingerprint(above.model.state_dict()),
        "teacher_settings": None if above is None else output_settings(config),
        "teacher_arithmetic": None if above is None else [config.teacher.precision, above.cache_format],
        "view_cycle": config.teacher.cache.views,
        "objective": dataclasses.asdict(config.distill),
        "optimizer": dataclasses.asdict(config.optimizer),
        "schedule": dataclasses.asdict(config.schedule),
        "augment": dataclasses.asdict(config.augment),
        "budget": [trainer.epochs, trainer.batch_size, trainer.accumulate, trainer.clip_grad, trainer.ema],
        "arithmetic": [resolve_precision(trainer.precision, runtime.device), trainer.channels_last],
        "seed": config.seed,
    }

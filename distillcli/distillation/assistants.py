"""A teacher handed down: assistants between a large teacher and a small student, and generations of one student.

Teacher assistants: Mirzadeh et al., AAAI 2020. Born-again networks: Furlanello et al., ICML 2018. Both are students in
a row, each the teacher of the next; every one is an ordinary run, found again by the fingerprint of its recipe.
"""

from __future__ import annotations

import dataclasses

from distillcli.config.schema import AssistantConfig, TrainConfig
from distillcli.distillation.fits import fit_once
from distillcli.distillation.recipes import as_student
from distillcli.models.backbone import describe
from distillcli.teachers.frozen import FrozenTeacher, open_single
from distillcli.training.engine import Session
from distillcli.types import LOGITS_ONLY, Spec
from distillcli.views.loader import Data


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


def describe_assistants(config: TrainConfig, classes: int) -> list[Spec]:
    size, channels = config.dataset.image_size, config.dataset.channels
    return [describe(model, classes, size, "teacher.assistants", channels) for model in assistants_of(config)]


def assistant_recipes(config: TrainConfig) -> list[TrainConfig]:
    """One run for each assistant, in order; the config of each holds those before it, so that it explains itself."""
    models = assistants_of(config)
    return [
        dataclasses.replace(
            config,
            name=f"assistant {model.name}",
            seed=config.seed if model.seed is None else model.seed,
            student=as_student(model),
            teacher=dataclasses.replace(config.teacher, assistants=models[:position]),
            baseline=False,
            generations=1,
        )
        for position, model in enumerate(models)
    ]


def hand_down(
    config: TrainConfig, data: Data, teacher: FrozenTeacher, session: Session
) -> list[tuple[FrozenTeacher, str]]:
    """Fit or find every assistant of ``config``, the first one taught by ``teacher``; each with its run folder."""
    chain: list[tuple[FrozenTeacher, str]] = []
    for recipe in assistant_recipes(config):
        folder = str(fit_once(recipe, "assistant", data, session, teacher))
        teacher = open_single(recipe.student, folder, recipe, data.source.classes, LOGITS_ONLY, session.runtime)
        chain.append((teacher, folder))
    return chain

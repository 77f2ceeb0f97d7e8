"""The teacher of a run: found or trained, then passed on through its assistants."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from dataclasses import dataclass

from distillcli.config.schema import TrainConfig
from distillcli.distillation.fits import fit_once, open_cache_or_warn
from distillcli.distillation.folders import Spent
from distillcli.distillation.kinds import kind_of
from distillcli.distillation.proving import prove_given
from distillcli.distillation.recipes import assistant_recipes, assistants_of, recipe_to_fit
from distillcli.errors import NumericError
from distillcli.models.ensemble import Classifier
from distillcli.runs.predictions import Predictions
from distillcli.runs.result import Measured
from distillcli.sources.source import Source
from distillcli.teachers.frozen import FrozenTeacher, Teacher, members_of, open_single, open_teacher
from distillcli.training.evaluation import measure
from distillcli.training.session import Session
from distillcli.types import LOGITS_ONLY, Taps
from distillcli.views.loader import Data


@dataclass(frozen=True)
class Teaching:
    """The teacher of a run. The defaults describe a run without a fixed teacher.

    ``teacher``: the configured one. ``nearest``: the one the student learns from: the last assistant, or the teacher.
    ``targets``: the outputs of ``nearest``, cached as ``cache_format`` where they can be. ``numbers`` and ``chain``: of
    the teacher and of its ``assistants``, for ``result.json``. ``predictions``: the teacher's, None without a head.
    ``warnings``: what speaks against a teacher that was given; printed already.
    """

    teacher: FrozenTeacher | None = None
    nearest: FrozenTeacher | None = None
    targets: Teacher | None = None
    cache_format: str = "off"
    numbers: Measured | None = None
    predictions: Predictions | None = None
    chain: tuple[Measured, ...] = ()
    assistants: tuple[Classifier, ...] = ()
    warnings: tuple[str, ...] = ()


def find_teaching(config: TrainConfig, data: Data, taps: Taps, spent: Spent, session: Session) -> Teaching:
    """Find or train the teacher, measure it, and train its assistants.

    Raises NumericError when the teacher's outputs are not finite, and UserError when a given one knows nothing.
    """
    if not kind_of(config).is_fixed:
        return Teaching()
    # 1. The teacher itself, measured before anything learns from it; what is given is asked before anything is fitted.
    with spent.part("teacher"):
        warnings = prove_given(config, data, session)
        teacher, runs = find_teacher(config, data, taps, session)
    session.say(f"teacher: measuring it on {len(data.evaluation.shown):,} images ({data.source.evaluated_on})")
    numbers, predictions = measure(teacher.backbone, data, teacher.precision)
    numbers = dataclasses.replace(numbers, run=runs[0] if len(runs) == 1 else None, runs=tuple(runs))
    if numbers.nll is not None and not math.isfinite(numbers.nll):
        raise NumericError(
            f"teacher {config.teacher.name}: its outputs are not finite, so nothing can be learned from it"
        )
    if config.teacher.head:
        session.say(f"teacher: {_accuracy(numbers, data.source)}")
    # 2. Its assistants, each the teacher of the next.
    nearest, chain, assistants = teacher, list[Measured](), list[Classifier]()
    with spent.part("assistants") if assistants_of(config) else nullcontext():
        for nearest, run in train_assistants(config, data, teacher, session):
            assistant, _ = measure(nearest.backbone, data, nearest.precision, teacher)
            chain.append(dataclasses.replace(assistant, run=run))
            assistants.append(nearest.backbone)
            session.say(f"assistant: {_accuracy(chain[-1], data.source)}")
    # 3. The model nearest to the student outputs what the objective compares.
    nearest = dataclasses.replace(nearest, taps=taps)
    targets, cache_format = open_cache_or_warn(config, data, nearest, session)
    return Teaching(
        *(teacher, nearest, targets, cache_format, numbers, predictions),
        chain=tuple(chain),
        assistants=tuple(assistants),
        warnings=tuple(warnings),
    )


def find_teacher(
    config: TrainConfig, data: Data, taps: Taps, session: Session
) -> tuple[FrozenTeacher, list[str | None]]:
    """The frozen teacher, and for each of its members the run folder in which it was fitted, or None."""
    members = members_of(config)
    recipes = [recipe_to_fit(member, data.source, session.runtime.device) for member in members]
    runs = [None if recipe is None else str(fit_once(recipe, data, session)) for recipe in recipes]
    sources = [run or member.config.teacher.checkpoint for run, member in zip(runs, members, strict=True)]
    return open_teacher(config, sources, data.source.classes, taps, session.runtime), runs


def train_assistants(
    config: TrainConfig, data: Data, teacher: FrozenTeacher, session: Session
) -> list[tuple[FrozenTeacher, str]]:
    """Fit or find every assistant of ``config``, the first one taught by ``teacher``; each with its run folder."""
    chain: list[tuple[FrozenTeacher, str]] = []
    for recipe in assistant_recipes(config):
        folder = str(fit_once(recipe, data, session, teacher))
        run = recipe.config
        teacher = open_single(run.student, folder, run, data.source.classes, LOGITS_ONLY, session.runtime)
        chain.append((teacher, folder))
    return chain


def _accuracy(numbers: Measured, source: Source) -> str:
    if numbers.top1 is None:
        return f"top-1 not known, the {source.evaluated_on} part has no labels"
    return f"top-1 {numbers.top1:.2f} on {source.evaluated_on}"

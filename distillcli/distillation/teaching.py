"""Who teaches a student: described before anything is fitted, then found or fitted, and handed down."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.config.terms import needs_teacher, trains_head
from distillcli.distillation.assistants import assistants_of, describe_assistants, hand_down
from distillcli.distillation.facts import measure
from distillcli.distillation.fits import fit_once, open_cache_or_warn
from distillcli.distillation.recipes import teacher_recipe
from distillcli.errors import NumericError, UserError
from distillcli.models.backbone import describe
from distillcli.models.class_names import teacher_classes
from distillcli.models.ensemble import join_specs
from distillcli.models.imagenet import pretrained_classes
from distillcli.sources.source import Source
from distillcli.teachers.frozen import (
    FrozenTeacher,
    Teacher,
    describe_teacher,
    members_of,
    open_teacher,
)
from distillcli.training.engine import Session
from distillcli.types import Spec, Taps
from distillcli.views.loader import Data


@dataclass(frozen=True)
class Teaching:
    """Who teaches; as it is for nobody, or for those that learn with the student.

    ``teacher``: the one that was asked for. ``nearest``: who teaches the student, the last of its assistants or itself.
    ``targets``: the answers of ``nearest``, kept in the format ``rounding`` where they can be. ``facts`` and ``chain``:
    the numbers of the teacher and of its assistants for ``result.json``. ``timings``: seconds of finding each.
    """

    teacher: FrozenTeacher | None = None
    nearest: FrozenTeacher | None = None
    targets: Teacher | None = None
    rounding: str = "off"
    facts: dict[str, Any] | None = None
    chain: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)


def learns_with_student(config: TrainConfig) -> bool:
    """Whether who teaches is itself in training: the peers, or the moving average of the student."""
    return bool(config.peers) or config.teacher.mean


def teaching_models(config: TrainConfig) -> list[ModelConfig]:
    """The teacher and its assistants, in order; empty where who teaches learns with the student."""
    return [] if learns_with_student(config) else [config.teacher, *assistants_of(config)]


def teaching_specs(config: TrainConfig, student: Spec, classes: int) -> list[Spec]:
    """Who teaches, in order: the teacher and its assistants, the last of whom teaches the student; empty for nobody."""
    if not needs_teacher(config.distill):
        return []
    if config.peers:
        dataset = config.dataset
        peers = [describe(peer, classes, dataset.image_size, "peers", dataset.channels) for peer in config.peers]
        return [replace(join_specs(peers), name="peers: " + ", ".join(peer.name for peer in peers))]
    if config.teacher.mean:
        return [replace(student, name="moving average of the student")]
    return [describe_teacher(config, classes), *describe_assistants(config, classes)]


def check_chain(config: TrainConfig) -> None:
    """Raise UserError if a teacher is to be handed down by assistants whose heads nothing would train."""
    if assistants_of(config) and not trains_head(config.distill):
        key = "teacher.assistants" if config.teacher.assistants else f"generations={config.generations}"
        raise UserError(
            f"{key}: no term of distill={config.distill.name} trains a head, so nobody could tell what an assistant "
            "has learned; add a term of logits or labels, or leave the assistants out"
        )


def prepare_teaching(config: TrainConfig, data: Data, taps: Taps, session: Session) -> Teaching:
    """Find or fit the teacher, measure it, and hand it down to its assistants.

    Raises NumericError when the teacher's answers are not finite.
    """
    if not needs_teacher(config.distill) or learns_with_student(config):
        return Teaching()
    runtime, begun = session.runtime, time.monotonic()
    teacher, runs = find_teacher(config, data, taps, session)
    timings = {"teacher": time.monotonic() - begun}
    facts = measure(teacher.backbone, data, runtime, teacher.precision)
    facts |= {"run": runs[0] if len(runs) == 1 else None, "runs": runs}
    if facts["nll"] is not None and math.isnan(facts["nll"]):
        raise NumericError(f"teacher {config.teacher.name}: its answers are not finite; it teaches nothing")
    if config.teacher.head:
        session.say(f"teacher: {_accuracy(facts, data.source)}")
    begun, nearest, chain = time.monotonic(), teacher, []
    for nearest, run in hand_down(config, data, teacher, session):
        chain.append(measure(nearest.backbone, data, runtime, nearest.precision, teacher) | {"run": run})
        session.say(f"assistant: {_accuracy(chain[-1], data.source)}")
    if chain:
        timings["assistants"] = time.monotonic() - begun
    nearest = replace(nearest, taps=taps)
    targets, rounding = open_cache_or_warn(config, data, nearest, session)
    return Teaching(teacher, nearest, targets, rounding, facts, chain, timings)


def find_teacher(
    config: TrainConfig, data: Data, taps: Taps, session: Session
) -> tuple[FrozenTeacher, list[str | None]]:
    """The frozen teacher, and for each of its members the run folder in which it was fitted, or None.

    Raises UserError when a teacher's classes are not those of the data and ``teacher.fit.mode`` allows no fit.
    """
    members = members_of(config)
    runs = [_find_weights(member, data, session) for member in members]
    sources = [run or member.teacher.checkpoint for run, member in zip(runs, members, strict=True)]
    return open_teacher(config, sources, data.source.classes, taps, session.runtime), runs


def _find_weights(config: TrainConfig, data: Data, session: Session) -> str | None:
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


def _accuracy(facts: dict[str, Any], source: Source) -> str:
    if facts["top1"] is None:
        return f"top-1 not known, the {source.evaluated_on} part has no labels"
    return f"top-1 {facts['top1']:.2f} on {source.evaluated_on}"

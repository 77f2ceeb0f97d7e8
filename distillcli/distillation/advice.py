"""What speaks against a run that is possible: one line each, most of them before the first step."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import timm

from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.config.terms import needs_teacher
from distillcli.distillation.kinds import kind_of
from distillcli.distillation.plan import Plan
from distillcli.runs.result import Result, top1_of
from distillcli.sources.source import Source
from distillcli.teachers.frozen import members_of
from distillcli.types import Spec

# timm's recipes of "ResNet strikes back" train with binary cross-entropy; their softmax is not calibrated.
BCE_TAGS = ("a1_", "a2_", "a3_", "a1h_", "b1k_", "b2k_", "c1_", "c2_")

LOW_TEMPERATURE = 0.1

MAPS_OF_ONE_FAMILY = ("at", "nst", "fsp", "hint")


def planned_warnings(plan: Plan) -> list[str]:
    """Warnings that are known before anything is trained."""
    found = data_warnings(plan.source) + _enlarged("student", plan.config.student, plan.config)
    found += plan.objective.doubts + schedule_warnings(plan.config) + share_warnings(plan.config)
    found += temperature_warnings(plan.config) + batch_warnings(plan.config, len(plan.source.train.labels))
    if kind_of(plan.config).is_fixed:
        found += teacher_warnings(plan.config) + family_warnings(
            [*plan.objective.terms], plan.student, plan.teachers[0]
        )
    return found


def data_warnings(source: Source) -> list[str]:
    """What was left out of the data, and what looks wrong in it."""
    found = list(source.notes)
    if source.skipped:
        found.append(
            f"{source.name}: {len(source.skipped)} images that cannot be decoded are left out, e.g. {source.skipped[0]}"
        )
    return found


def share_warnings(config: TrainConfig) -> list[str]:
    """Whether an objective with terms of a teacher leaves it no share."""
    if config.distill.alpha != 0 or needs_teacher(config.distill) or len(config.distill.terms) == 1:
        return []
    return ["distill.alpha=0: the student learns from the labels alone, and no teacher is trained or asked"]


def batch_warnings(config: TrainConfig, images: int) -> list[str]:
    """Whether a batch is larger than the training data."""
    wanted = config.trainer.batch_size
    if wanted <= images:
        return []
    return [f"trainer.batch_size={wanted}: there are {images:,} training images, so that every step takes them all"]


def temperature_warnings(config: TrainConfig) -> list[str]:
    """Whether a temperature leaves so little of the teacher's answer that it is a label."""
    found = {"distill": asdict(config.distill)}
    found |= {f"teacher.members[{number}]": asdict(member) for number, member in enumerate(config.teacher.members)}
    return [
        f"{key}={value:g}: below {LOW_TEMPERATURE} a teacher's answer is hardly more than its decision; 1 to 8 is usual"
        for key, value in _temperatures(found)
        if value < LOW_TEMPERATURE
    ]


def _temperatures(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _temperatures(value, f"{above}{name}.")
        elif name.startswith("temperature") and value is not None:
            yield from ((f"{above}{name}", each) for each in (value if isinstance(value, list) else [value]))


def schedule_warnings(config: TrainConfig) -> list[str]:
    """Whether the run ends before its learning rate has decayed as it says."""
    schedule, epochs = config.schedule, config.trainer.epochs
    if schedule.name == "multistep" and max(schedule.milestones) >= epochs:
        key, value = "milestones", str(list(schedule.milestones))
    elif schedule.name == "step" and schedule.decay_epochs >= epochs:
        key, value = "decay_epochs", f"{schedule.decay_epochs:g}"
    else:
        return []
    return [f"schedule.{key}={value}: not all of it is reached, as the run ends after {epochs} epochs; lower it"]


def teacher_warnings(config: TrainConfig) -> list[str]:
    """What published results say against these teachers, and against how they are used."""
    found = []
    for member in members_of(config):
        teacher = member.config.teacher
        found += _enlarged(member.key, teacher, config)
        tag = str(timm.get_pretrained_cfg(teacher.name).tag) if teacher.pretrained else ""
        if tag.startswith(BCE_TAGS):
            found.append(
                f"teacher {teacher.name}: its weights ({tag}) were trained with binary cross-entropy, which cost "
                "students 0.6 to 1.9 points at T=4 in published runs; a tag trained with cross-entropy may teach better"
            )
    return found


def family_warnings(terms: Collection[str], student: Spec, teacher: Spec) -> list[str]:
    """Whether ``terms`` compare maps of two families: plain transformers have stages of one shape.

    Comparing their maps directly lost to training without teacher (Hao et al., NeurIPS 2023, one for all).
    """
    doubtful = [name for name in terms if name in MAPS_OF_ONE_FAMILY]
    if not doubtful or _is_plain(student) == _is_plain(teacher):
        return []
    return [
        f"distill.terms.{doubtful[0]}: {teacher.name} and {student.name} belong to families with unlike maps; "
        "such terms lost to training without teacher in published runs; kl or dist compare their logits"
    ]


def start_warnings(student: float | None, teacher: float | None, split: str) -> list[str]:
    """Whether a student that does not start from scratch has anything to learn from its teacher: top-1 of both."""
    if student is None or teacher is None or teacher > student:
        return []
    return [
        f"the teacher (top-1 {teacher:.2f} on {split}) is no better than the student is before the first step "
        f"({student:.2f})"
    ]


def comparison_warnings(result: Result) -> list[str]:
    """Whether the student has overtaken its teacher."""
    student, teacher = top1_of(result.student), top1_of(result.teacher)
    if student is None or teacher is None or teacher > student:
        return []
    return [f"the teacher ({teacher:.2f}) is no better than the student ({student:.2f})"]


def _is_plain(spec: Spec) -> bool:
    return len(set(spec.stage_shapes)) == 1


def _enlarged(key: str, model: ModelConfig, config: TrainConfig) -> list[str]:
    views = config.dataset.image_size
    if model.image_size is None or model.image_size <= views:
        return []
    return [
        f"{key}.image_size={model.image_size}: {model.name} sees the views of {views} pixels enlarged, which costs "
        "time and adds no detail; raise dataset.image_size"
    ]

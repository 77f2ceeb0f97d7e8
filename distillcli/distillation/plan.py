"""What can be known to go wrong, or to be in vain, before the first step: one line each."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import timm

from distillcli.config.schema import DatasetConfig, ModelConfig, TrainConfig
from distillcli.config.terms import needs_teacher
from distillcli.errors import UserError
from distillcli.models.backbone import build
from distillcli.teachers.frozen import members_of
from distillcli.types import Spec

# timm's recipes of "ResNet strikes back" train with binary cross-entropy; their softmax is not calibrated.
BCE_TAGS = ("a1_", "a2_", "a3_", "a1h_", "b1k_", "b2k_", "c1_", "c2_")

MAPS_OF_ONE_FAMILY = ("at", "nst", "fsp", "hint")


def check_sizes(config: TrainConfig) -> None:
    """Raise UserError if views are to grow and a model was made for one size."""
    if config.trainer.progressive is None:
        return
    models: list[ModelConfig] = [config.student]
    if needs_teacher(config.distill):
        models += config.peers or [*(member.teacher for member in members_of(config)), *config.teacher.assistants]
    for model in models:
        known = timm.get_pretrained_cfg(model.name)
        if known is not None and known.fixed_input_size:
            raise UserError(f"trainer.progressive: {model.name} takes images of one size; use trainer.progressive=null")


def check_class_maps(models: Sequence[ModelConfig], classes: int, dataset: DatasetConfig) -> None:
    """Raise UserError if one of ``models`` has no class maps. They are built for this, with fresh weights."""
    for model in models:
        fresh = dataclasses.replace(model, pretrained=False, checkpoint=None)
        build(fresh, classes, dataset.image_size, "student", dataset.channels).check_class_maps()


def student_warnings(config: TrainConfig) -> list[str]:
    """What speaks against the student as it is asked for."""
    return _enlarged("student", config.student, config)


def teacher_warnings(config: TrainConfig) -> list[str]:
    """What published results say against these teachers, and what speaks against how they are asked."""
    found = []
    for teacher in (member.teacher for member in members_of(config)):
        found += _enlarged("teacher", teacher, config)
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
        f"distill.terms.{doubtful[0]}: {teacher.name} and {student.name} are of two families with unlike maps; "
        "such terms lost to training without teacher in published runs; kl or dist compare their answers"
    ]


def start_warnings(student: dict[str, Any], teacher: dict[str, Any], split: str) -> list[str]:
    """Whether a student that does not start from scratch has anything to learn from its teacher."""
    if student.get("top1") is None or teacher["top1"] is None or teacher["top1"] > student["top1"]:
        return []
    return [
        f"the teacher (top-1 {teacher['top1']:.2f} on {split}) is no better than the student is before the first step "
        f"({student['top1']:.2f})"
    ]


def _is_plain(spec: Spec) -> bool:
    return len(set(spec.stage_shapes)) == 1


def _enlarged(role: str, model: ModelConfig, config: TrainConfig) -> list[str]:
    views = config.dataset.image_size
    if model.image_size is None or model.image_size <= views:
        return []
    return [
        f"{role}.image_size={model.image_size}: {model.name} sees the views of {views} pixels enlarged, which costs "
        "time and adds no detail; raise dataset.image_size"
    ]

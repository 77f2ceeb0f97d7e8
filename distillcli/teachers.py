"""A teacher: a frozen model that answers a batch, and where it comes from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from timm.data import ImageNetInfo

from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.ensemble import Classifier, Ensemble, join_specs
from distillcli.errors import UserError
from distillcli.models import Backbone, build, describe, place
from distillcli.runtime import Runtime, autocast, resolve_precision
from distillcli.types import Batch, Output, Spec, Taps
from distillcli.weights import knows_classes, load_into, read_weights


class Teacher(Protocol):
    """Whatever answers a batch of views with the targets of the teacher terms."""

    def __call__(self, batch: Batch) -> Output: ...


@dataclass(frozen=True)
class FrozenTeacher:
    """A backbone in eval mode, without gradients, in its own precision. It is no part of what is trained or saved."""

    backbone: Classifier
    precision: str
    taps: Taps

    def __post_init__(self) -> None:
        self.backbone.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Output:
        assert not self.backbone.training
        with autocast(batch.images.device, self.precision):
            output: Output = self.backbone(batch.images, self.taps)
        return output


def describe_teacher(config: TrainConfig, classes: int) -> Spec:
    """The spec of the teacher, or of all members of an ensemble together."""
    size = config.dataset.image_size
    if config.teacher.members:
        return join_specs([describe(member, classes, size, "teacher.members") for member in config.teacher.members])
    return describe(config.teacher, classes, size, "teacher")


def members_of(config: TrainConfig) -> list[TrainConfig]:
    """One config for each teacher: that of the run, or that of each member of the ensemble."""
    return [
        dataclasses.replace(
            config,
            seed=config.seed if member.seed is None else member.seed,
            teacher=dataclasses.replace(
                config.teacher,
                name=member.name,
                pretrained=member.pretrained,
                checkpoint=member.checkpoint,
                args=member.args,
                image_size=member.image_size,
                members=[],
            ),
        )
        for member in config.teacher.members
    ] or [config]


def answer_settings(config: TrainConfig) -> list[Any]:
    """What decides the answers of the teachers of ``config`` beside their weights and precision."""
    sizes = [member.teacher.image_size or config.dataset.image_size for member in members_of(config)]
    return [config.teacher.average, sizes]


def open_teacher(
    config: TrainConfig, weights_from: list[str | None], classes: tuple[str, ...], taps: Taps, runtime: Runtime
) -> FrozenTeacher:
    """The teacher of ``config``, ready to teach: an ensemble, or one model.

    ``weights_from``: for each member its checkpoint or run folder, or None for timm's weights. Raises UserError if
    weights do not fit their model or answer with other classes.
    """
    teacher = config.teacher
    precision = resolve_precision(teacher.precision, runtime.device, teacher=True)
    opened = [
        _open_one(member, source, classes, runtime)
        for member, source in zip(members_of(config), weights_from, strict=True)
    ]
    if not teacher.members:
        return FrozenTeacher(opened[0], precision, taps)
    ensemble = Ensemble(opened, [member.weight for member in teacher.members], teacher.average)
    return FrozenTeacher(ensemble.to(runtime.device), precision, taps)


def _open_one(config: TrainConfig, weights_from: str | None, classes: tuple[str, ...], runtime: Runtime) -> Backbone:
    teacher = config.teacher
    pretrained = weights_from is None
    model = ModelConfig(teacher.name, pretrained=pretrained, args=teacher.args, image_size=teacher.image_size)
    backbone = build(model, len(classes), config.dataset.image_size, "teacher")
    if weights_from is not None:
        weights = read_weights(weights_from)
        if not knows_classes(weights, backbone, classes):
            raise UserError(
                f"teacher.checkpoint={weights_from}: its classes are not the {len(classes)} of the data"
                f"{_first_names(weights.classes)}; use a teacher of these classes, or fit it with a new classifier by "
                "teacher.fit.mode=always"
            )
        load_into(backbone, weights, "teacher")
    return place(backbone, runtime.device, config.trainer.channels_last)


def is_imagenet(classes: tuple[str, ...]) -> bool:
    """Whether the classes are ImageNet-1k's, by their WordNet ids or names in order, so that timm's classifiers fit."""
    info = ImageNetInfo()
    return list(classes) in (info.label_names(), info.label_descriptions())


def _first_names(classes: tuple[str, ...] | None) -> str:
    if classes is None:
        return ""
    return f" but {len(classes)} others ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"

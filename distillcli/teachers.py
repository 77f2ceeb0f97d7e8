"""A teacher: a frozen model that answers a batch, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from timm.data import ImageNetInfo

from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.errors import UserError
from distillcli.models import Backbone, build, place
from distillcli.runtime import Runtime, autocast, resolve_precision
from distillcli.types import Batch, Output, Taps
from distillcli.weights import knows_classes, load_into, read_weights


class Teacher(Protocol):
    """Whatever answers a batch of views with the targets of the teacher terms."""

    def __call__(self, batch: Batch) -> Output: ...


@dataclass(frozen=True)
class FrozenTeacher:
    """A backbone in eval mode, without gradients, in its own precision. It is no part of what is trained or saved."""

    backbone: Backbone
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


def open_teacher(
    config: TrainConfig, weights_from: str | None, classes: tuple[str, ...], taps: Taps, runtime: Runtime
) -> FrozenTeacher:
    """The teacher of ``config``, ready to teach: its weights from a checkpoint or run folder, or timm's if None.

    Raises UserError if the weights do not fit the model or answer with other classes.
    """
    teacher = config.teacher
    model = ModelConfig(name=teacher.name, pretrained=weights_from is None, args=teacher.args)
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
    place(backbone, runtime.device, config.trainer.channels_last)
    return FrozenTeacher(backbone, resolve_precision(teacher.precision, runtime.device, teacher=True), taps)


def is_imagenet(classes: tuple[str, ...]) -> bool:
    """Whether the classes are ImageNet-1k's, by their WordNet ids or names in order, so that timm's classifiers fit."""
    info = ImageNetInfo()
    return list(classes) in (info.label_names(), info.label_descriptions())


def _first_names(classes: tuple[str, ...] | None) -> str:
    if classes is None:
        return ""
    return f" but {len(classes)} others ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"

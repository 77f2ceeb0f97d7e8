"""A teacher: a frozen model that answers a batch, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from timm.data import ImageNetInfo

from distillcli.cache import RowCache
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


@dataclass(frozen=True)
class CachedTeacher:
    """A teacher that is asked for each view of an image once. Rows hold the logits, then the embedding if it is tapped.

    Also the first answer is the one that was stored, rounded: otherwise the first run would differ from the later ones.
    """

    live: FrozenTeacher
    cache: RowCache

    def __call__(self, batch: Batch) -> Output:
        index, device = batch.index.numpy(), batch.images.device
        rows, present = self.cache.read(batch.view, index)
        if not present.all():
            answer = self.live(batch)
            parts = [answer.logits] if answer.embedding is None else [answer.logits, answer.embedding]
            fresh = torch.cat([part.float() for part in parts], dim=1).cpu().numpy()
            rows[~present] = self.cache.write(batch.view, index[~present], fresh[~present])
        answers = torch.from_numpy(rows).to(device, non_blocking=device.type == "cuda")
        classes = self.live.backbone.spec.classes
        embedding = answers[:, classes:] if self.live.taps.embedding else None
        return Output(answers[:, :classes], embedding, {})


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

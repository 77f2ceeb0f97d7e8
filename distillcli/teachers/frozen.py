"""A teacher: a frozen model that answers a batch, and where it comes from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import timm
import torch
from timm.data import ImageNetInfo

from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.errors import UserError
from distillcli.models.backbone import Backbone, build, describe, place
from distillcli.models.class_names import teacher_classes
from distillcli.models.ensemble import Classifier, Ensemble, join_specs
from distillcli.models.imagenet import IMAGENET_CLASSES, open_pretrained
from distillcli.models.inference import for_inference
from distillcli.models.weights import load_into, read_weights, select_classes
from distillcli.runtime import Runtime, autocast, resolve_precision
from distillcli.sources.source import Source
from distillcli.types import Batch, Output, Spec, Taps


class Teacher(Protocol):
    """Whatever answers a batch of views with the targets of the teacher terms."""

    def __call__(self, batch: Batch) -> Output: ...

    @property
    def live(self) -> FrozenTeacher:
        """The model behind it, which answers any images."""
        ...


@dataclass(frozen=True)
class FrozenTeacher:
    """A backbone in eval mode, without gradients, in its own precision. It is no part of what is trained or saved.

    ``answering``: a copy of the backbone for inference that answers in its place, or None.
    """

    backbone: Classifier
    precision: str
    taps: Taps
    answering: Classifier | None = None

    def __post_init__(self) -> None:
        for model in (self.backbone, self.answering):
            if model is not None:
                model.eval().requires_grad_(False)

    @property
    def live(self) -> FrozenTeacher:
        return self

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Output:
        model = self.answering or self.backbone
        assert not model.training
        with autocast(batch.images.device, self.precision):
            output: Output = model(batch.images, self.taps)
        return output


def describe_teacher(config: TrainConfig, classes: int) -> Spec:
    """The spec of the teacher, or of all members of an ensemble together."""
    size, channels = config.dataset.image_size, config.dataset.channels
    if config.teacher.members:
        members = config.teacher.members
        return join_specs([describe(member, classes, size, "teacher.members", channels) for member in members])
    return describe(config.teacher, classes if config.teacher.head else 0, size, "teacher", channels)


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
                freeze=member.freeze,
                class_map=member.class_map,
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
    weights do not fit their model or lack a class of the data. A teacher of more classes, or of the same in another
    order, answers with those of the data.
    """
    members = zip(members_of(config), weights_from, strict=True)
    return as_teacher(
        config, [_open_one(member, source, classes, runtime) for member, source in members], taps, runtime
    )


def as_teacher(config: TrainConfig, opened: list[Backbone], taps: Taps, runtime: Runtime) -> FrozenTeacher:
    """The teacher that the models ``opened`` make together, one for each member, with its copy for inference."""
    teacher = config.teacher
    precision = resolve_precision(teacher.precision, runtime.device, teacher=True)
    fast = [for_inference(backbone, precision) for backbone in opened]

    def joined(backbones: list[Backbone]) -> Classifier:
        if not teacher.members:
            return backbones[0]
        weights = [member.weight for member in teacher.members]
        temperatures = [member.temperature for member in teacher.members]
        return Ensemble(backbones, weights, temperatures, teacher.average).to(runtime.device)

    return FrozenTeacher(joined(opened), precision, taps, joined(fast))


def open_single(
    model: ModelConfig, weights_from: str, config: TrainConfig, classes: tuple[str, ...], taps: Taps, runtime: Runtime
) -> FrozenTeacher:
    """A model that was fitted in ``weights_from``, as a teacher with the settings of ``config.teacher``."""
    teacher = dataclasses.replace(
        config.teacher,
        name=model.name,
        args=model.args,
        image_size=model.image_size,
        class_map=None,
        head=True,
        pretrained=False,
        checkpoint=weights_from,
        members=[],
    )
    return open_teacher(dataclasses.replace(config, teacher=teacher), [weights_from], classes, taps, runtime)


def _open_one(config: TrainConfig, weights_from: str | None, classes: tuple[str, ...], runtime: Runtime) -> Backbone:
    teacher, size, channels = config.teacher, config.dataset.image_size, config.dataset.channels
    wanted = teacher_classes(teacher.class_map, classes)
    model = ModelConfig(teacher.name, args=teacher.args, image_size=teacher.image_size)
    if weights_from is None and teacher.head:
        backbone = open_pretrained(model, wanted, size, "teacher", channels)
    else:
        model = dataclasses.replace(model, pretrained=weights_from is None)
        backbone = build(model, len(wanted) if teacher.head else 0, size, "teacher", channels)
    if weights_from is not None:
        weights = read_weights(weights_from)
        if teacher.head:
            weights = select_classes(weights, backbone, wanted, "teacher.checkpoint")
        load_into(backbone, weights, "teacher", new_head=not teacher.head)
    return place(backbone, runtime.device, config.trainer.channels_last)


def with_classes(source: Source, config: TrainConfig) -> Source:
    """``source``, with the classes of its (first) teacher where nothing is labelled and so none has a name.

    With a teacher without head there are no classes, and so its student has no head either. Raises UserError when a
    teacher does not name its classes.
    """
    if source.classes or not config.teacher.head:
        return source
    teacher = members_of(config)[0].teacher
    classes = None
    if teacher.checkpoint is not None:
        classes = read_weights(teacher.checkpoint).classes
    elif teacher.pretrained and timm.get_pretrained_cfg_value(teacher.name, "num_classes") == IMAGENET_CLASSES:
        classes = tuple(ImageNetInfo().label_names())
    if classes is None:
        raise UserError(
            f"teacher.name={teacher.name}: {source.name} has no labels and this teacher does not name its classes; give"
            " teacher.checkpoint=RUN, a run folder or exported model, or teacher.pretrained=true"
        )
    return dataclasses.replace(source, classes=classes)

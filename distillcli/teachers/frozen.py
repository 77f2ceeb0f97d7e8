"""A teacher: a frozen model, and where its weights come from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
from timm.data import ImageNetInfo

from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.errors import UserError
from distillcli.models.backbone import Backbone, build, describe, fresh, place
from distillcli.models.class_names import teacher_classes
from distillcli.models.ensemble import Classifier, Ensemble, join_specs
from distillcli.models.imagenet import IMAGENET_CLASSES, open_pretrained
from distillcli.models.inference import for_inference
from distillcli.models.matching import check_body, check_normalisation, for_model, load_into, select_classes, with_names
from distillcli.models.weights import Weights, read_weights
from distillcli.runtime import Runtime, autocast, resolve_precision
from distillcli.sources.label_files import read_names
from distillcli.sources.source import Source
from distillcli.types import Batch, Inputs, Output, Spec, Taps


class Teacher(Protocol):
    """Whatever returns the targets of the teacher terms for a batch of views."""

    def __call__(self, batch: Batch) -> Output: ...

    @property
    def live(self) -> FrozenTeacher:
        """The model behind it, which takes any images."""
        ...

    @property
    def repaired(self) -> int:
        """How many stored answers were damaged, and computed again."""
        ...


@dataclass(frozen=True)
class FrozenTeacher:
    """A backbone in eval mode, without gradients, in its own precision. It is no part of what is trained or saved.

    ``inference_copy``: a faster copy of the backbone that is run in its place, or None.
    """

    backbone: Classifier
    precision: str
    taps: Taps
    inference_copy: Classifier | None = None

    def __post_init__(self) -> None:
        for model in (self.backbone, self.inference_copy):
            if model is not None:
                model.eval().requires_grad_(False)

    @property
    def live(self) -> FrozenTeacher:
        return self

    @property
    def repaired(self) -> int:
        return 0  # nothing is stored

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Output:
        model = self.backbone if self.inference_copy is None else self.inference_copy
        assert not model.training
        with autocast(batch.images.device, self.precision):
            output: Output = model(batch.images, self.taps)
        return output


@dataclass(frozen=True)
class Member:
    """One model of a teacher. ``config``: the run as if this were its only teacher; ``key``: where the run names it."""

    config: TrainConfig
    key: str

    def own_names(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """What the teacher calls each of the classes of the data. Raises UserError for a class map that is broken."""
        return teacher_classes(self.config.teacher.class_map, classes, f"{self.key}.class_map")


def members_of(config: TrainConfig) -> list[Member]:
    """The teacher of ``config`` itself, or each member of its ensemble."""
    return [
        Member(
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
                    classes=member.classes,
                    members=[],
                ),
            ),
            f"teacher.members[{number}]",
        )
        for number, member in enumerate(config.teacher.members)
    ] or [Member(config, "teacher")]


def describe_teacher(config: TrainConfig, inputs: Inputs) -> Spec:
    """The spec of the teacher, or of all members of an ensemble together. Without a head it has no classes."""
    if not config.teacher.head:
        inputs = dataclasses.replace(inputs, classes=0)
    specs = [describe(member.config.teacher, inputs, member.key) for member in members_of(config)]
    return join_specs(specs) if config.teacher.members else specs[0]


def output_settings(config: TrainConfig) -> list[Any]:
    """What decides the outputs of the teachers of ``config``, besides their weights and precision."""
    sizes = [member.config.teacher.image_size or config.dataset.image_size for member in members_of(config)]
    return [config.teacher.average, sizes]


def open_teacher(
    config: TrainConfig, weights_from: list[str | None], classes: tuple[str, ...], taps: Taps, runtime: Runtime
) -> FrozenTeacher:
    """The teacher of ``config``, ready for use: an ensemble, or one model.

    ``weights_from``: for each member its checkpoint or run folder, or None for timm's weights. Raises UserError if
    weights do not fit their model or lack a class of the data. A teacher of more classes, or of the same in another
    order, gives logits for those of the data.
    """
    members = zip(members_of(config), weights_from, strict=True)
    return as_teacher(
        config, [open_member(member, source, classes, runtime) for member, source in members], taps, runtime
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
        classes=None,
        head=True,
        pretrained=False,
        checkpoint=weights_from,
        members=[],
    )
    return open_teacher(dataclasses.replace(config, teacher=teacher), [weights_from], classes, taps, runtime)


def open_member(member: Member, weights_from: str | None, classes: tuple[str, ...], runtime: Runtime) -> Backbone:
    """One model of a teacher with its weights, placed; arguments and errors as of ``open_teacher``."""
    teacher, dataset = member.config.teacher, member.config.dataset
    wanted = member.own_names(classes)
    inputs = Inputs(len(wanted) if teacher.head else 0, dataset.image_size, dataset.channels)
    model = fresh(teacher)
    if weights_from is None and teacher.head:
        backbone = open_pretrained(model, wanted, inputs, member.key)
    else:
        backbone = build(dataclasses.replace(model, pretrained=weights_from is None), inputs, member.key)
    if weights_from is not None:
        load_into(backbone, weights_for(member, backbone, weights_from, wanted), member.key, new_head=not teacher.head)
    return place(backbone, runtime.device, member.config.trainer.channels_last)


def weights_for(member: Member, backbone: Backbone, weights_from: str, wanted: tuple[str, ...]) -> Weights:
    """The weights in ``weights_from``, with a classifier for the ``wanted`` classes where the teacher has a head.

    Raises UserError when they cannot be read, are those of another model, or lack a class.
    """
    weights, teacher = for_model(read_weights(weights_from), backbone, member.key), member.config.teacher
    check_normalisation(backbone, weights, member.key)
    check_body(backbone, weights, member.key)  # first: the classes of another model would say nothing
    if not teacher.head:
        return weights
    if teacher.classes is not None:
        given = f"{member.key}.classes"
        names = read_names(given, Path(teacher.classes))
        weights = with_names(weights, backbone, names, f"{given}={teacher.classes}")
    return select_classes(weights, backbone, wanted, f"{member.key}.checkpoint")


def with_classes(source: Source, config: TrainConfig) -> Source:
    """``source``, with the classes of its (first) teacher where nothing is labelled and so none has a name.

    With a teacher without head there are no classes, and so its student has no head either. Raises UserError when a
    teacher does not name its classes.
    """
    if source.classes or not config.teacher.head:
        return source
    teacher = members_of(config)[0].config.teacher
    classes = None
    if teacher.classes is not None:
        classes = read_names(f"{members_of(config)[0].key}.classes", Path(teacher.classes))
    elif teacher.checkpoint is not None:
        classes = read_weights(teacher.checkpoint).classes
    elif teacher.pretrained and timm.get_pretrained_cfg_value(teacher.name, "num_classes") == IMAGENET_CLASSES:
        classes = tuple(ImageNetInfo().label_names())
    if classes is None:
        raise UserError(
            f"teacher.name={teacher.name}: {source.name} has no labels and this teacher does not name its classes; give"
            " teacher.checkpoint=RUN, a run folder or exported model, teacher.classes=FILE, or teacher.pretrained=true"
        )
    return dataclasses.replace(source, classes=classes)

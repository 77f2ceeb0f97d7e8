"""The model that is trained: as it is before the first step, and as it leaves the run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from distillcli.config.schema import ModelConfig, StudentConfig, TrainConfig
from distillcli.config.terms import reused_head_options
from distillcli.distillation.recipes import as_student
from distillcli.errors import UserError
from distillcli.formats.deployed import Wanted
from distillcli.formats.formats import export
from distillcli.models.backbone import Backbone, build, describe
from distillcli.models.freezing import freeze
from distillcli.models.matching import knows_classes, load_into
from distillcli.models.weights import read_weights
from distillcli.reused_head import join, start_from
from distillcli.runtime import seed_everything
from distillcli.teachers.frozen import FrozenTeacher, describe_teacher
from distillcli.types import Inputs
from distillcli.views.loader import Data

CHECKED_IMAGES = 4


def new_backbone(config: TrainConfig, data: Data, key: str) -> Backbone:
    """The student of ``config``: fresh, pretrained, or from own weights, with a new classifier if the classes differ.

    Control and student start from the same weights: the seed of the initialisation does not depend on their role.
    ``key``: where the config that the user wrote names this model, for messages.
    """
    model = config.student
    seed_everything(config.seed, "init", model.name)
    backbone = build(model, data.inputs, key)
    if model.checkpoint is not None:
        weights = read_weights(model.checkpoint)
        load_into(backbone, weights, key, new_head=not knows_classes(weights, backbone, data.source.classes, key))
    freeze(backbone, model.freeze, key)
    return backbone


def new_peers(config: TrainConfig, data: Data) -> tuple[Backbone, ...]:
    """The models that learn with the student, each from a seed of its own."""
    return tuple(
        new_backbone(peer_config(config, number), data, f"peers[{number}]") for number in range(len(config.peers))
    )


def peer_config(config: TrainConfig, number: int) -> TrainConfig:
    """The run as if a peer were its student."""
    return dataclasses.replace(config, seed=config.seed + number + 1, student=as_student(config.peers[number]))


def export_for_timm(backbone: Backbone, folder: Path, data: Data) -> None:
    """Write a trained model into ``folder`` in timm's format, and check it on some images of the evaluated part."""
    batch = next(data.evaluation.plain())
    checked = (batch.images[:CHECKED_IMAGES], batch.targets[:CHECKED_IMAGES])
    export(backbone, folder, Wanted(data.source.classes, data.train.config.crop_fraction), [checked])


def student_model(config: TrainConfig, inputs: Inputs) -> StudentConfig:
    """What is trained: the student of ``config``, joined to the teacher's head where the objective reuses that.

    Raises UserError when the teacher's head does not pool a feature map.
    """
    options = reused_head_options(config.distill)
    if options is None:
        return config.student
    student = describe(config.student, inputs, "student")  # refuses what cannot be built under its own name
    teacher = describe_teacher(config, inputs)
    if teacher.feature_shape is None:
        raise UserError(
            f"distill.terms.simkd: the head of {teacher.name} takes no feature map, B x C x H x W; choose a "
            "convolutional teacher, e.g. a ResNet, or another objective"
        )
    size, its_size = student.stage_shapes[-1][1:], teacher.feature_shape[1:]
    largest = list(its_size) if any(mine > its for mine, its in zip(size, its_size, strict=True)) else None
    return as_student(join(config.student, config.teacher, options.reduction, options.relu, largest))


def with_teachers_head(
    joined_model: ModelConfig, student: Backbone, teacher: FrozenTeacher, config: TrainConfig
) -> Backbone:
    """``joined_model`` with the weights of both models it joins; the projector between them is drawn.

    The teacher's head is not trained.
    """
    assert isinstance(teacher.backbone, Backbone)  # the checks of the config refuse an ensemble
    seed_everything(config.seed, "init", "projector")
    inputs = Inputs(teacher.backbone.spec.classes, config.dataset.image_size, config.dataset.channels)
    joined = build(joined_model, inputs, "student")
    start_from(joined.net, student.net, teacher.backbone.net)
    joined.net.teacher_head.requires_grad_(False)
    joined.frozen = [*joined.net.teacher_head.modules()]
    joined.train(joined.training)
    return joined

"""The model that is trained, as it is before the first step."""

from __future__ import annotations

from distillcli.config.schema import ModelConfig, StudentConfig, TrainConfig
from distillcli.config.terms import reused_head_options
from distillcli.distillation.recipes import as_student
from distillcli.errors import UserError
from distillcli.models.backbone import Backbone, build, describe
from distillcli.models.freezing import freeze
from distillcli.models.weights import knows_classes, load_into, read_weights
from distillcli.reused_head import join, start_from
from distillcli.runtime import seed_everything
from distillcli.teachers.frozen import FrozenTeacher, describe_teacher
from distillcli.views.loader import Data


def new_backbone(config: TrainConfig, model: ModelConfig, data: Data, role: str) -> Backbone:
    """The model to be trained: fresh, pretrained, or from own weights, with a new classifier if the classes differ.

    Control and student start from the same weights: the seed of the initialisation does not depend on their role.
    """
    seed_everything(config.seed, "init", model.name)
    classes = data.source.classes
    backbone = build(model, len(classes), config.dataset.image_size, role, config.dataset.channels)
    if model.checkpoint is not None:
        weights = read_weights(model.checkpoint)
        load_into(backbone, weights, role, new_head=not knows_classes(weights, backbone, classes))
    freeze(backbone, model.freeze, role)
    return backbone


def student_model(config: TrainConfig, classes: int) -> StudentConfig:
    """What is trained: the student of ``config``, joined to the teacher's head where the objective reuses that.

    Raises UserError when the teacher's head does not pool a feature map.
    """
    options = reused_head_options(config.distill)
    if options is None:
        return config.student
    size, channels = config.dataset.image_size, config.dataset.channels
    describe(config.student, classes, size, "student", channels)  # refuses what cannot be built under its own name
    teacher = describe_teacher(config, classes)
    if teacher.feature_shape is None:
        raise UserError(
            f"distill.terms.simkd: the head of {teacher.name} takes no feature map, B x C x H x W; choose a "
            "convolutional teacher, e.g. a ResNet, or another objective"
        )
    return as_student(join(config.student, config.teacher, options.reduction, options.relu))


def with_teachers_head(config: TrainConfig, student: Backbone, teacher: FrozenTeacher | None) -> Backbone:
    """The model of ``config``, which joins both, with their weights; what lies between them is drawn.

    The teacher's head is not trained.
    """
    assert teacher is not None
    assert isinstance(teacher.backbone, Backbone)  # the checks of the config refuse an ensemble
    seed_everything(config.seed, "init", "projector")
    dataset, classes = config.dataset, teacher.backbone.spec.classes
    joined = build(config.student, classes, dataset.image_size, "student", dataset.channels)
    start_from(joined.net, student.net, teacher.backbone.net)
    joined.net.teacher_head.requires_grad_(False)
    joined.frozen = [*joined.net.teacher_head.modules()]
    joined.train(joined.training)
    return joined

"""Class activation transfer: where in the image each class is seen."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor
from torch.nn import functional

from distillcli.config.terms import ClassActivationOptions
from distillcli.errors import UserError
from distillcli.terms.base import Setting, TeacherTerm
from distillcli.terms.stages import unit
from distillcli.types import Batch, Output, Taps, tapped


def class_map_distance(student_BKHW: Tensor, teacher_BKHW: Tensor, size: int, normalize: bool) -> Tensor:
    """Mean over B, K and positions of the squared difference, both pooled to ``size`` x ``size``.

    ``normalize``: every class's pooled map as a unit vector of its positions.
    """
    student, teacher = (functional.adaptive_avg_pool2d(maps, size).flatten(2) for maps in (student_BKHW, teacher_BKHW))
    if normalize:
        student, teacher = unit(student, dim=2), unit(teacher, dim=2)
    return functional.mse_loss(student, teacher)


@final
class ClassActivation(TeacherTerm):
    """Class activation transfer (CAT-KD: Guo et al., CVPR 2023): squared distance of the class activation maps.

    The classifier is applied to each position of the last map by itself. In models that average-pool and end in one
    linear layer, the mean of these maps is the logits; other models are refused. Published weights span three decades:
    0.7 to 15 for maps as they are, 15 to 600 for normalised ones.
    """

    student_taps = Taps(class_maps=True)
    teacher_taps = Taps(class_maps=True)

    def __init__(self, options: ClassActivationOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.size = options.size
        self.normalize = options.normalize
        positions = [math.prod(spec.feature_shape[1:]) for spec in setting.models if spec.feature_shape is not None]
        if options.normalize and (options.size == 1 or 1 in positions):
            raise UserError(
                "distill.terms.cat_kd.normalize=true: only where in a map a class is seen is left, and these maps have "
                "one position; set it to false, or use distill.terms.cat_kd.size=2 and a larger dataset.image_size"
            )

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return class_map_distance(tapped(student.class_maps), tapped(teacher.class_maps), self.size, self.normalize)

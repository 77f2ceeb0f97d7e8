"""Class activation transfer: where in the image each class is seen."""

from __future__ import annotations

from typing import final

from torch import Tensor
from torch.nn import functional

from distillcli.config.terms import ClassActivationOptions
from distillcli.terms.base import Setting, Term
from distillcli.terms.stages import unit
from distillcli.types import Batch, Output, Taps


def class_map_distance(student_BKHW: Tensor, teacher_BKHW: Tensor, size: int, normalize: bool) -> Tensor:
    """Mean over B, K and positions of the squared difference, both pooled to ``size`` x ``size``.

    ``normalize``: every class's pooled map as a unit vector of its positions.
    """
    student, teacher = (functional.adaptive_avg_pool2d(maps, size).flatten(2) for maps in (student_BKHW, teacher_BKHW))
    if normalize:
        student, teacher = unit(student, dim=2), unit(teacher, dim=2)
    return functional.mse_loss(student, teacher)


@final
class ClassActivation(Term):
    """Class activation transfer (CAT-KD: Guo et al., CVPR 2023): squared distance of the class activation maps.

    The classifier is applied to every position of the last map by itself; the mean of these maps is the logits, in
    models that pool by averaging and then have one linear layer. Others are refused. Published weights span three
    decades: 0.7 to 15 for maps as they are, 15 to 600 for normalised ones.
    """

    student_taps = Taps(class_maps=True)
    teacher_taps = Taps(class_maps=True)

    def __init__(self, options: ClassActivationOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.size = options.size
        self.normalize = options.normalize

    def forward(self, student: Output, teacher: Output | None, batch: Batch, temperature: float) -> Tensor:
        assert teacher is not None
        assert student.class_maps is not None
        assert teacher.class_maps is not None
        return class_map_distance(student.class_maps, teacher.class_maps, self.size, self.normalize)

"""The term of students that end in their teacher's classifier."""

from __future__ import annotations

from typing import final

from torch import Tensor
from torch.nn import functional

from distillcli.config.terms import ReusedHeadOptions
from distillcli.terms.base import Setting, TeacherTerm
from distillcli.terms.stages import same_size
from distillcli.types import Batch, Output, Taps, tapped


@final
class ReusedHeadFeatures(TeacherTerm):
    """SimKD (Chen et al., CVPR 2022): the student ends in the teacher's classifier and learns the features it takes.

    Squared distance, mean over all elements, between the student's last stage, projected, and the input of the
    teacher's head. Projector and head are parts of the student and exported with it; labels are not used.
    ``reduction``: the factor by which the projector's middle layers are narrower. ``relu``: whether a ReLU also follows
    its last layer, as published; use false for teachers whose features may be negative, e.g. ConvNeXt.
    """

    student_taps = Taps(features=True)
    teacher_taps = Taps(features=True)

    def __init__(self, options: ReusedHeadOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        assert student.feature_shape is not None
        assert teacher.feature_shape is not None
        assert student.feature_shape[0] == teacher.feature_shape[0], "the student has the teacher's head"

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return functional.mse_loss(*same_size(tapped(student.features), tapped(teacher.features)))

"""The term of students that end in their teacher's classifier."""

from __future__ import annotations

from typing import final

from torch import Tensor
from torch.nn import functional

from distillcli.config.terms import ReusedHeadOptions
from distillcli.terms.base import Setting, Term
from distillcli.terms.stages import same_size
from distillcli.types import Batch, Output, Taps


@final
class ReusedHeadFeatures(Term):
    """SimKD (Chen et al., CVPR 2022): the student ends in the teacher's classifier and learns the features it takes.

    Squared distance, mean over all elements, of the student's last stage, projected, to what the teacher's head is
    given. Projector and head are parts of the student, exported with it; labels play no part. ``reduction``: by which
    the projector narrows the channels in its middle. ``relu``: after its last layer too, as published; false for
    teachers whose features may be negative, e.g. ConvNeXt.
    """

    student_taps = Taps(features=True)
    teacher_taps = Taps(features=True)

    def __init__(self, options: ReusedHeadOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        assert student.feature_shape is not None
        assert teacher.feature_shape is not None
        assert student.feature_shape[0] == teacher.feature_shape[0], "the student has the teacher's head"

    def forward(self, student: Output, teacher: Output | None, batch: Batch, temperature: float) -> Tensor:
        assert teacher is not None
        assert student.features is not None
        assert teacher.features is not None
        return functional.mse_loss(*same_size(student.features, teacher.features))

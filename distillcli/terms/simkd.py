"""The term of students that end in their teacher's classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from torch.nn import functional

from distillcli.errors import UserError
from distillcli.terms.base import Setting, Term, TermOptions
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

    compares = "teacher"
    reuses_head = True
    student_taps = Taps(features=True)
    teacher_taps = Taps(features=True)

    @dataclass(frozen=True)
    class Options(TermOptions):
        reduction: int = 2
        relu: bool = True

    def __init__(self, options: Options, setting: Setting) -> None:
        super().__init__(options, setting)
        if options.reduction < 1:
            raise UserError(f"distill.terms.simkd.reduction={options.reduction}: 1 or more; 2, 4 and 8 are published")
        student, teacher = setting.models
        assert student.feature_shape is not None
        assert teacher.feature_shape is not None
        assert student.feature_shape[0] == teacher.feature_shape[0], "the student has the teacher's head"

    def forward(self, student: Output, teacher: Output | None, batch: Batch, temperature: float) -> Tensor:
        assert teacher is not None
        assert student.features is not None
        assert teacher.features is not None
        return functional.mse_loss(*same_size(student.features, teacher.features))

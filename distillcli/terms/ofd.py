"""Overhaul of feature distillation: a teacher's stages before their activation, but no more negative than is usual."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from distillcli.config.terms import StageOptions
from distillcli.errors import UserError
from distillcli.terms.base import PreparedTerm, Setting
from distillcli.terms.stages import projector, same_size, stage_pairs
from distillcli.types import Batch, Output, Taps


def partial_distance(student_BCHW: Tensor, teacher_BCHW: Tensor, margin_C: Tensor) -> Tensor:
    """Squared distance to max(teacher, margin), sum over C, H and W, mean over B.

    Where that target is negative and the student is below it, both are off after a ReLU and nothing is asked.
    """
    target = torch.maximum(teacher_BCHW, margin_C[:, None, None])
    asked = (target > 0) | (student_BCHW > target)
    return torch.where(asked, student_BCHW - target, 0.0).square().sum() / len(student_BCHW)


@final
class Overhaul(PreparedTerm):
    """Overhaul of feature distillation (OFD: Heo et al., ICCV 2019): stages before the activation that ends them.

    What is negative there is cut off by the activation, so how negative it is says little: the target is the teacher's
    response, but no less than the margin of its channel, the mean of its negative responses. The margin is measured on
    one epoch of the teacher's answers, with several processes on the first one's share, before the student's first
    step. The original derives it from the weights of the batch norm before the activation, which do not know the
    shortcut that a residual block adds in between. A channel that was never negative has the margin 0, so that its
    target is the response after the activation.

    The student's stage is taken as the model gives it, through a 1 x 1 convolution and batch norm. The last stage
    weighs 1, each one before it half as much; the published weight is 0.001. The teacher answers in eval mode, where
    the authors' is in training mode. Transformers and others that end no stage so are refused as teachers.
    """

    prepare_epochs = 1
    margins: Tensor  # of all channels of all stages, one after the other

    def __init__(self, options: StageOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        self.pairs = stage_pairs(options, "ofd", student, teacher)
        for pair in self.pairs:
            if teacher.endings[pair.teacher] is None:
                raise UserError(
                    f"distill.terms.ofd: stage {pair.teacher} of {teacher.name} is not known before its activation, as "
                    "it ends neither in one nor in a convolution or batch norm; take another stage or a teacher that "
                    "does, e.g. a ResNet"
                )
        self.student_taps = Taps(stages=tuple(pair.student for pair in self.pairs))
        self.teacher_taps = Taps(preactivations=tuple(pair.teacher for pair in self.pairs))
        self.widths = [pair.teacher_shape[0] for pair in self.pairs]
        self.projectors = nn.ModuleList(projector(pair.student_shape[0], pair.teacher_shape[0]) for pair in self.pairs)
        self.register_buffer("margins", torch.zeros(sum(self.widths)))

    def prepare(self, answers: Iterable[Output]) -> None:
        total = torch.zeros(2, len(self.margins), dtype=torch.float64)  # sums and counts
        for answer in answers:
            maps = [answer.preactivations[pair.teacher].float() for pair in self.pairs]
            total[0] += torch.cat([stage.clamp(max=0).sum(dim=(0, 2, 3)) for stage in maps]).cpu()
            total[1] += torch.cat([(stage < 0).sum(dim=(0, 2, 3)) for stage in maps]).cpu()
        self.margins.copy_(total[0] / total[1].clamp(min=1))

    def forward(self, student: Output, teacher: Output | None, batch: Batch, temperature: float) -> Tensor:
        assert teacher is not None
        values = []
        margins = torch.split(self.margins, self.widths)
        for depth, (pair, project, margin) in enumerate(zip(self.pairs, self.projectors, margins, strict=True), 1):
            guess, target = same_size(student.stages[pair.student], teacher.preactivations[pair.teacher])
            values.append(2.0 ** (depth - len(self.pairs)) * partial_distance(project(guess), target, margin))
        return torch.stack(values).sum()

"""Overhaul of feature distillation: a teacher's stages before their activation, clipped from below at a margin."""

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

    Where the target is negative and the student below it, both are 0 after a ReLU, so that counts as reached.
    """
    target = torch.maximum(teacher_BCHW, margin_C[:, None, None])
    asked = (target > 0) | (student_BCHW > target)
    return torch.where(asked, student_BCHW - target, 0.0).square().sum() / len(student_BCHW)


@final
class Overhaul(PreparedTerm):
    """Overhaul of feature distillation (OFD: Heo et al., ICCV 2019): stages before the activation that ends them.

    The activation cuts off negative responses, so how negative they are says little: the target is the teacher's
    response, but no lower than the margin of its channel, the mean of its negative responses. Margins are measured over
    one epoch of the teacher's outputs, before the student's first step; with several processes, on the first one's
    share. The original derives them from the weights of the batch norm before the activation, which do not account for
    the shortcut that a residual block adds in between. A channel that is never negative has the margin 0, so its target
    is the response after the activation.

    The student's stage is taken as the model gives it, through a 1 x 1 convolution and batch norm. The last stage
    weighs 1 and each earlier one half as much as the next; the published weight is 0.001. The teacher runs in eval
    mode, the authors' in training mode. Teachers whose stages do not end in an activation, convolution or batch norm,
    such as transformers, are refused.
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
                    f"distill.terms.ofd: stage {pair.teacher} of {teacher.name} ends neither in an activation nor in a "
                    "convolution or batch norm, so it has no values before the activation; choose another stage, or a "
                    "teacher with such stages, e.g. a ResNet"
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

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        values = []
        margins = torch.split(self.margins, self.widths)
        for depth, (pair, project, margin) in enumerate(zip(self.pairs, self.projectors, margins, strict=True), 1):
            guess, target = same_size(student.stages[pair.student], teacher.preactivations[pair.teacher])
            values.append(2.0 ** (depth - len(self.pairs)) * partial_distance(project(guess), target, margin))
        return torch.stack(values).sum()

"""Activation boundaries: which units of a stage are active, not how much."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillcli.config.terms import ActivationBoundariesOptions
from distillcli.terms.base import Setting, TeacherTerm
from distillcli.terms.stages import projector, same_size, stage_pairs, taps_of
from distillcli.types import Batch, Output

_PUBLISHED_SCALE = 3 / 1000


def boundary_loss(student_BCHW: Tensor, active_BCHW: Tensor, margin: float) -> Tensor:
    """Sum over elements, mean over the batch, of the square by which a unit misses +margin where active, else -margin.

    Not 0 where the student equals the teacher: units within the margin still count.
    """
    missed = torch.where(active_BCHW, margin - student_BCHW, margin + student_BCHW)
    return functional.relu(missed).square().sum() / len(student_BCHW)


@final
class ActivationBoundaries(TeacherTerm):
    """Activation boundaries (Heo et al., AAAI 2019): the student's stages, projected, on the right side of 0.

    Only the sign of a teacher's unit matters. A ReLU keeps it, so stages as the model gives them serve as well as the
    original's, taken before the activation; a larger map of the teacher is pooled by majority. The last stage weighs 1
    and each earlier one half as much as the next, times the published 3 / 1000. The original uses this loss alone for
    30 epochs before training; ``fade`` comes close.
    """

    def __init__(self, options: ActivationBoundariesOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.pairs = stage_pairs(options, "ab", *setting.models)
        self.student_taps, self.teacher_taps = taps_of(self.pairs)
        self.projectors = nn.ModuleList(projector(pair.student_shape[0], pair.teacher_shape[0]) for pair in self.pairs)
        self.margin = options.margin

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        values = []
        for depth, (pair, project) in enumerate(zip(self.pairs, self.projectors, strict=True)):
            active = (teacher.stages[pair.teacher] > 0).float()
            guess, share = same_size(student.stages[pair.student], active)
            scale = _PUBLISHED_SCALE * 2.0 ** (depth + 1 - len(self.pairs))
            values.append(scale * boundary_loss(project(guess), share > 0.5, self.margin))
        return torch.stack(values).sum()

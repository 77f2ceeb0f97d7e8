"""What a step trains: a student with its objective, or students that teach each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillcli.models.backbone import Backbone
from distillcli.terms.objective import Objective
from distillcli.types import Batch, Output


class MutualLearning(nn.Module):
    """Students that teach each other (deep mutual learning: Zhang et al., CVPR 2018), the first of them the main one.

    The loss is the sum over the students of the mean, over the others, of the objective with that other as teacher.
    All learn in one step from outputs of the same weights; the paper updates them in turn. What is reported as the
    value of each term is the main student's.
    """

    def __init__(self, student: Backbone, peers: Sequence[Backbone], objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.peers = nn.ModuleList(peers)
        self.objective = objective

    def forward(self, batch: Batch, target: None, epoch: float) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = [student(batch.images) for student in (self.student, *self.peers)]
        fixed = [Output(output.logits.detach(), None, {}) for output in outputs]
        lessons = [
            [self.objective(output, other, batch, epoch) for place, other in enumerate(fixed) if place != own]
            for own, output in enumerate(outputs)
        ]
        others = len(self.peers)
        total = torch.stack([loss for lesson in lessons for loss, _ in lesson]).sum() / others
        names = lessons[0][0][1]
        values = {name: torch.stack([values[name] for _, values in lessons[0]]).mean() for name in names}
        return total, values


class Distillation(nn.Module):
    """Student and objective as one module, so that DistributedDataParallel sees every trained parameter."""

    def __init__(self, student: Backbone, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, batch: Batch, target: Output | None, epoch: float) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.student(batch.images, self.objective.student_taps)
        total, values = self.objective(output, target, batch, epoch)
        return total, values

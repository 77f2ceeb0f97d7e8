"""Terms on the relations between the samples of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from distillcli.terms.base import Term, TermOptions
from distillcli.types import Batch, Output, Spec, Taps

_SMALLEST_SQUARE = 1e-12  # below this a squared distance counts as this, so that its root has a gradient


def distances(embeddings_BD: Tensor) -> Tensor:
    """B x B Euclidean distances over their mean, the diagonal 0.

    The batch mean is subtracted first: the expanded square cancels badly when embeddings share a large offset.
    """
    others = ~torch.eye(len(embeddings_BD), dtype=torch.bool, device=embeddings_BD.device)
    centred = embeddings_BD - embeddings_BD.mean(dim=0)
    gram = centred @ centred.T
    squared = gram.diag()[:, None] - 2 * gram + gram.diag()[None, :]
    distance = squared.clamp(min=_SMALLEST_SQUARE).sqrt() * others
    return distance / distance[others].mean()


def angles(embeddings_BD: Tensor) -> Tensor:
    """B x B x B cosines of the angle at i between j and k, from the Gram matrix: no B x B x D differences.

    They are 0 where j or k coincides with i: there is no angle, and a cosine would be rounding over 1e-6.
    """
    centred = embeddings_BD - embeddings_BD.mean(dim=0)
    gram = centred @ centred.T
    # In this order the differences of coinciding samples cancel exactly.
    inner = (gram[None, :, :] - gram[:, None, :]) - (gram[:, :, None] - gram.diag()[:, None, None])
    squared = inner.diagonal(dim1=1, dim2=2)
    apart = squared > _SMALLEST_SQUARE
    length = squared.clamp(min=_SMALLEST_SQUARE).sqrt()
    return inner / (length[:, :, None] * length[:, None, :]) * (apart[:, :, None] & apart[:, None, :])


@final
class RKD(Term):
    """Relational knowledge distillation (Park et al., CVPR 2019): distances and angles between embeddings.

    Embeddings are not normalised; the published weights 25 and 50 are inside. Batches of one or two samples have no
    relations to compare and give 0.
    """

    compares = "teacher"
    whole_batch = True
    student_taps = Taps(embedding=True)
    teacher_taps = Taps(embedding=True)

    @dataclass(frozen=True)
    class Options(TermOptions):
        distance: float = 25.0
        angle: float = 50.0

    def __init__(self, options: Options, temperature: float, student: Spec, teacher: Spec | None) -> None:
        super().__init__(options, temperature, student, teacher)
        self.distance = options.distance
        self.angle = options.angle

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        assert teacher is not None
        assert student.embedding is not None
        assert teacher.embedding is not None
        if len(student.embedding) < 3:
            return student.embedding.sum() * 0
        apart = functional.smooth_l1_loss(distances(student.embedding), distances(teacher.embedding))
        turned = functional.smooth_l1_loss(angles(student.embedding), angles(teacher.embedding))
        return self.distance * apart + self.angle * turned


RELATION_TERMS: dict[str, type[Term]] = {"rkd": RKD}

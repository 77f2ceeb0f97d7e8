"""Terms on the relations between the samples of a batch."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from distillcli.config.terms import CorrelationCongruenceOptions, RKDOptions, SimilarityPreservingOptions, TermOptions
from distillcli.errors import UserError
from distillcli.terms.base import Setting, TeacherTerm, Term
from distillcli.terms.stages import stage_shape, unit
from distillcli.types import Batch, Output, Taps, tapped

_SMALLEST_SQUARE = 1e-12  # below this a squared distance counts as this, so that its root has a gradient
_MOST_ANGLES = 2**25  # elements of a tensor of angles, 128 MiB in float32: a batch of 322 at once, larger ones in slabs
_NEIGHBOUR_WIDTH = 128


def similarities(features: Tensor) -> Tensor:
    """B x B inner products of the flattened features, every row a unit vector."""
    rows = features.flatten(1)
    return unit(rows @ rows.T, dim=1)


@final
class SimilarityPreserving(TeacherTerm):
    """Similarity-preserving distillation (Tung & Mori, ICCV 2019): squared distance of the similarities, over B^2.

    Rows are normalised by their L2 norm. A stage is flattened; sizes, channels and widths may differ.
    """

    def __init__(self, options: SimilarityPreservingOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        if options.stage is None and options.teacher_stage is not None:
            raise UserError(
                f"distill.terms.sp.teacher_stage={options.teacher_stage}: distill.terms.sp.stage=null compares "
                "embeddings; set both or neither"
            )
        self.stage = options.stage
        self.teacher_stage = options.stage if options.teacher_stage is None else options.teacher_stage
        self.student_taps = self.teacher_taps = Taps(embedding=True)
        if self.stage is not None and self.teacher_stage is not None:
            stage_shape(student, self.stage, "distill.terms.sp.stage")
            stage_shape(teacher, self.teacher_stage, "distill.terms.sp.teacher_stage")
            self.student_taps, self.teacher_taps = Taps(stages=(self.stage,)), Taps(stages=(self.teacher_stage,))

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        mine = tapped(student.embedding) if self.stage is None else student.stages[self.stage]
        its = tapped(teacher.embedding) if self.teacher_stage is None else teacher.stages[self.teacher_stage]
        return functional.mse_loss(similarities(mine), similarities(its))


def bilinear(embeddings_BD: Tensor) -> Tensor:
    """B x B inner products."""
    return embeddings_BD @ embeddings_BD.T


def gaussian(embeddings_BD: Tensor, gamma: float, order: int) -> Tensor:
    """B x B: exp(-gamma ||e_i - e_j||^2) of unit vectors, as the Taylor series in e_i . e_j up to ``order``."""
    inner = 2 * gamma * bilinear(embeddings_BD)
    series = torch.stack([inner**power / math.factorial(power) for power in range(order + 1)])
    return math.exp(-2 * gamma) * series.sum(dim=0)


@final
class CorrelationCongruence(TeacherTerm):
    """Correlation congruence (Peng et al., ICCV 2019), as in the paper: squared distance of two kernel matrices, / B^2.

    The kernel, ``bilinear`` or ``gaussian``, is of the embeddings as unit vectors; widths may differ. What benchmarks
    train under this name is the term ``cc_neighbour``.
    """

    student_taps = Taps(embedding=True)
    teacher_taps = Taps(embedding=True)

    def __init__(self, options: CorrelationCongruenceOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.kernel = options.kernel
        self.gamma = options.gamma
        self.order = options.order

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return functional.mse_loss(self._matrix(tapped(student.embedding)), self._matrix(tapped(teacher.embedding)))

    def _matrix(self, embeddings_BD: Tensor) -> Tensor:
        vectors = unit(embeddings_BD, dim=1)
        return bilinear(vectors) if self.kernel == "bilinear" else gaussian(vectors, self.gamma, self.order)


def neighbour_products(difference_BD: Tensor) -> Tensor:
    """Inner products of the absolute differences of consecutive samples, mean over the B - 1 of them."""
    size = difference_BD.abs()
    return (size[:-1] * size[1:]).sum(dim=1).mean()


@final
class NeighbourCongruence(TeacherTerm):
    """What benchmarks train as correlation congruence (Tian et al., ICLR 2020): products of neighbouring differences.

    Both embeddings pass a trained linear map to 128 dimensions, so both can shrink together; the value depends on the
    order of the samples. One sample has no neighbour and gives 0.
    """

    student_taps = Taps(embedding=True)
    teacher_taps = Taps(embedding=True)

    def __init__(self, options: TermOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        self.student_map = nn.Linear(student.embedding_width, _NEIGHBOUR_WIDTH)
        self.teacher_map = nn.Linear(teacher.embedding_width, _NEIGHBOUR_WIDTH)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        difference: Tensor = self.student_map(tapped(student.embedding)) - self.teacher_map(tapped(teacher.embedding))
        return difference.sum() * 0 if len(difference) < 2 else neighbour_products(difference)


def neighbourhood(embeddings_BD: Tensor) -> Tensor:
    """B x B: (1 + cosine) / 2 over the sum of its row, the diagonal included."""
    vectors = unit(embeddings_BD, dim=1)
    kernel = (1 + vectors @ vectors.T) / 2
    return kernel / kernel.sum(dim=1, keepdim=True)


def probabilistic_transfer(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """P_t log((P_t + 1e-7) / (P_s + 1e-7)) of the neighbourhoods, mean over all B^2 pairs, not over B."""
    student, teacher = neighbourhood(student_BD), neighbourhood(teacher_BD)
    return (teacher * ((teacher + 1e-7).log() - (student + 1e-7).log())).mean()


@final
class ProbabilisticTransfer(TeacherTerm):
    """Probabilistic knowledge transfer (Passalis & Tefas, ECCV 2018): who is whose neighbour, as probabilities.

    Widths may differ. As the mean is over B^2 pairs, the published weight is 30000.
    """

    student_taps = Taps(embedding=True)
    teacher_taps = Taps(embedding=True)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return probabilistic_transfer(tapped(student.embedding), tapped(teacher.embedding))


def distances(embeddings_BD: Tensor) -> Tensor:
    """B x B Euclidean distances over their mean, the diagonal 0.

    The batch mean is subtracted first: the expanded square cancels badly when embeddings share a large offset.
    """
    others = ~torch.eye(len(embeddings_BD), dtype=torch.bool, device=embeddings_BD.device)
    gram = _centred_gram(embeddings_BD)
    squared = gram.diag()[:, None] - 2 * gram + gram.diag()[None, :]
    distance = squared.clamp(min=_SMALLEST_SQUARE).sqrt() * others
    return distance / distance[others].mean()


def angles(embeddings_BD: Tensor) -> Tensor:
    """B x B x B cosines of the angle at i between j and k, from the Gram matrix: no B x B x D differences.

    They are 0 where j or k coincides with i: there is no angle, and a cosine would be rounding error over 1e-6.
    """
    return _angles_at(_centred_gram(embeddings_BD), 0, len(embeddings_BD))


def angle_loss(student_BD: Tensor, teacher_BD: Tensor, most: int = _MOST_ANGLES) -> Tensor:
    """Smooth L1 between the angles of both, mean over B^3, from tensors of ``most`` elements or fewer.

    Larger ones are computed in slabs of vertices, at least one vertex each, and again in the backward pass, so that
    only one slab is in memory at a time.
    """
    count = len(student_BD)
    vertices = max(1, most // count**2)
    if vertices >= count:
        return functional.smooth_l1_loss(angles(student_BD), angles(teacher_BD))
    student, teacher = _centred_gram(student_BD), _centred_gram(teacher_BD)
    slabs = [
        checkpoint(_slab, student, teacher, first, first + vertices, use_reentrant=False, preserve_rng_state=False)
        for first in range(0, count, vertices)
    ]
    return torch.stack(slabs).sum() / count**3


def _slab(student_BB: Tensor, teacher_BB: Tensor, first: int, last: int) -> Tensor:
    student, teacher = _angles_at(student_BB, first, last), _angles_at(teacher_BB, first, last)
    return functional.smooth_l1_loss(student, teacher, reduction="sum")


def _centred_gram(embeddings_BD: Tensor) -> Tensor:
    centred = embeddings_BD - embeddings_BD.mean(dim=0)
    return centred @ centred.T


def _angles_at(gram_BB: Tensor, first: int, last: int) -> Tensor:
    """The angles at vertices first to last."""
    vertex = gram_BB[first:last]
    own = gram_BB.diag()[first:last, None, None]
    # In this order the differences of coinciding samples cancel exactly.
    inner = (gram_BB[None, :, :] - vertex[:, None, :]) - (vertex[:, :, None] - own)
    squared = inner.diagonal(dim1=1, dim2=2)
    apart = squared > _SMALLEST_SQUARE
    length = squared.clamp(min=_SMALLEST_SQUARE).sqrt()
    return inner / (length[:, :, None] * length[:, None, :]) * (apart[:, :, None] & apart[:, None, :])


@final
class RKD(TeacherTerm):
    """Relational knowledge distillation (Park et al., CVPR 2019): distances and angles between embeddings.

    Embeddings are not normalised; the value includes the published weights 25 and 50. Batches of one or two samples
    have no relations to compare and give 0.
    """

    student_taps = Taps(embedding=True)
    teacher_taps = Taps(embedding=True)

    def __init__(self, options: RKDOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.distance = options.distance
        self.angle = options.angle

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        mine, its = tapped(student.embedding), tapped(teacher.embedding)
        if len(mine) < 3:
            return mine.sum() * 0
        apart = functional.smooth_l1_loss(distances(mine), distances(its))
        turned = angle_loss(mine, its)
        return self.distance * apart + self.angle * turned


RELATION_TERMS: dict[str, type[Term]] = {
    "sp": SimilarityPreserving,
    "cc": CorrelationCongruence,
    "cc_neighbour": NeighbourCongruence,
    "rkd": RKD,
    "pkt": ProbabilisticTransfer,
}

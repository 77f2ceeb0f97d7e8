"""Terms on feature maps, addressed by stage, and on the pooled embedding.

Where student and teacher differ in size the larger map is average-pooled; where they differ in channels, and the method
needs them equal, the student's pass a trained 1 x 1 convolution.
"""

from __future__ import annotations

import itertools
import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillcli.config.terms import AttentionTransferOptions, EmbeddingOptions, HintOptions, StageOptions
from distillcli.errors import UserError
from distillcli.terms.base import Setting, TeacherTerm, Term
from distillcli.terms.stages import doubts_of_points, projector, same_size, stage_pairs, stage_shape, taps_of, unit
from distillcli.types import Batch, Output, Taps, tapped

_VID_START = 5.0  # variance of every channel at the start
_VID_LEAST = 1e-5


@final
class Hint(TeacherTerm):
    """FitNets hint (Romero et al., ICLR 2015): squared distance of a student stage, projected, to a teacher stage.

    The projector is a 1 x 1 convolution and batch norm, without the ReLU of the original, whose targets were never
    negative. The original trains on the hint first and distils afterwards; here both happen at once.
    """

    def __init__(self, options: HintOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        self.stage = options.stage
        self.teacher_stage = options.stage if options.teacher_stage is None else options.teacher_stage
        self.student_taps = Taps(stages=(self.stage,))
        self.teacher_taps = Taps(stages=(self.teacher_stage,))
        channels = stage_shape(student, self.stage, "distill.terms.hint.stage")[0]
        wanted = stage_shape(teacher, self.teacher_stage, "distill.terms.hint.teacher_stage")[0]
        self.projector = projector(channels, wanted)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        guess, target = same_size(student.stages[self.stage], teacher.stages[self.teacher_stage])
        return functional.mse_loss(self.projector(guess), target)


def attention(maps_BCHW: Tensor, power: float) -> Tensor:
    """B x HW: the mean over channels of |F|^power, as a unit vector."""
    return unit(maps_BCHW.abs().pow(power).mean(dim=1).flatten(1), dim=1)


def attention_transfer(student_BCHW: Tensor, teacher_BCHW: Tensor, power: float = 2.0, form: str = "code") -> Tensor:
    """``code``: mean over B and HW of (Q_s - Q_t)^2; ``paper``: half the distance ||Q_s - Q_t||, mean over B."""
    student, teacher = (attention(maps, power) for maps in same_size(student_BCHW, teacher_BCHW))
    if form == "code":
        return functional.mse_loss(student, teacher)
    length: Tensor = torch.linalg.vector_norm(student - teacher, dim=1)
    return length.mean() / 2


@final
class AttentionTransfer(TeacherTerm):
    """Attention transfer (Zagoruyko & Komodakis, ICLR 2017): where the energy of a stage lies, summed over stages.

    The authors' code squares and averages where their equation has a distance: ``form`` is ``code`` or ``paper``. The
    published weight 1000 belongs to ``code``, whose mean over positions makes it depend on the resolution. Maps of one
    position look alike to it.
    """

    def __init__(self, options: AttentionTransferOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        self.pairs = stage_pairs(options, "at", student, teacher)
        self.doubts = doubts_of_points(self.pairs, "at")
        self.student_taps, self.teacher_taps = taps_of(self.pairs)
        self.power = options.power
        self.form = options.form

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        values = [
            attention_transfer(student.stages[pair.student], teacher.stages[pair.teacher], self.power, self.form)
            for pair in self.pairs
        ]
        return torch.stack(values).sum()


def neuron_selectivity(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Squared MMD with the kernel <a, b>^2 between the channels of both, each a unit vector of HW positions.

    mean k(t, t') + mean k(s, s') - 2 mean k(s, t), as batched matrix products: no B x C x C x HW tensor.
    """
    student, teacher = (unit(maps.flatten(2), dim=2) for maps in same_size(student_BCHW, teacher_BCHW))

    def kernel(first_BCN: Tensor, second_BCN: Tensor) -> Tensor:
        return (first_BCN @ second_BCN.transpose(1, 2)).square().mean()

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


@final
class NeuronSelectivity(TeacherTerm):
    """Neuron selectivity transfer (Huang & Wang, 2017): the distribution of the channels' patterns, summed over stages.

    Student and teacher may differ in channels. Maps of one position look alike to it.
    """

    def __init__(self, options: StageOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        self.pairs = stage_pairs(options, "nst", student, teacher)
        self.doubts = doubts_of_points(self.pairs, "nst")
        self.student_taps, self.teacher_taps = taps_of(self.pairs)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        values = [neuron_selectivity(student.stages[pair.student], teacher.stages[pair.teacher]) for pair in self.pairs]
        return torch.stack(values).sum()


def flow(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """B x C_first x C_second: the inner products of the channels of two stages, mean over positions."""
    first, second = (maps.flatten(2) for maps in same_size(first_BCHW, second_BCHW))
    return first @ second.transpose(1, 2) / first.shape[2]


@final
class FSP(TeacherTerm):
    """Flow of solution procedure (Yim et al., CVPR 2017): squared distance of the flows between consecutive stages.

    Mean over B and both channels, summed over pairs. The original sums over the matrix and uses this loss alone for 30
    epochs before training. Where channels differ, student stages pass a 1 x 1 convolution and batch norm.
    """

    def __init__(self, options: StageOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        self.pairs = stage_pairs(options, "fsp", student, teacher)
        if len(self.pairs) < 2:
            given = [pair.student for pair in self.pairs]
            raise UserError(f"distill.terms.fsp.stages={given}: a flow joins two stages; give two or more")
        self.student_taps, self.teacher_taps = taps_of(self.pairs)
        self.projectors = nn.ModuleList(
            nn.Identity() if mine == wanted else projector(mine, wanted)
            for mine, wanted in ((pair.student_shape[0], pair.teacher_shape[0]) for pair in self.pairs)
        )

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        guesses = [
            project(student.stages[pair.student]) for project, pair in zip(self.projectors, self.pairs, strict=True)
        ]
        targets = [teacher.stages[pair.teacher] for pair in self.pairs]
        values = [
            functional.mse_loss(flow(*mine), flow(*wanted))
            for mine, wanted in zip(itertools.pairwise(guesses), itertools.pairwise(targets), strict=True)
        ]
        return torch.stack(values).sum()


def variational_information(mean_BCHW: Tensor, target_BCHW: Tensor, rho_C: Tensor) -> Tensor:
    """Half the mean of (mean - target)^2 / v + log v with v = softplus(rho) + 1e-5, one for each channel.

    The Gaussian negative log-likelihood without its constant: it may be negative.
    """
    variance = (functional.softplus(rho_C) + _VID_LEAST)[:, None, None]
    return ((mean_BCHW - target_BCHW).square() / variance + variance.log()).mean() / 2


@final
class VariationalInformation(TeacherTerm):
    """Variational information distillation (Ahn et al., CVPR 2019): likelihood of the teacher's stages, given ours.

    The mean is three 1 x 1 convolutions of the student's stage, the variance a trained number for each channel, 5 at
    the start. Summed over stages; not zero where the means are exact, and negative once variances fall below 1.
    """

    def __init__(self, options: StageOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        self.pairs = stage_pairs(options, "vid", student, teacher)
        self.student_taps, self.teacher_taps = taps_of(self.pairs)
        shapes = [(pair.student_shape[0], pair.teacher_shape[0]) for pair in self.pairs]
        self.means = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, wanted, 1, bias=False),
                nn.ReLU(),
                nn.Conv2d(wanted, wanted, 1, bias=False),
                nn.ReLU(),
                nn.Conv2d(wanted, wanted, 1, bias=False),
            )
            for channels, wanted in shapes
        )
        start = math.log(math.expm1(_VID_START - _VID_LEAST))
        self.rhos = nn.ParameterList(nn.Parameter(torch.full((wanted,), start)) for _, wanted in shapes)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        values = []
        for pair, mean, rho in zip(self.pairs, self.means, self.rhos, strict=True):
            guess, target = same_size(student.stages[pair.student], teacher.stages[pair.teacher])
            values.append(variational_information(mean(guess), target, rho))
        return torch.stack(values).sum()


def hierarchical_context(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Squared distance of maps of one size, and of both pooled to 4 x 4, 2 x 2 and 1 x 1 where that is smaller.

    The scales weigh 1, 1/2, 1/4, ... in this order, over the sum of the weights of those that are used.
    """
    difference = student_BCHW - teacher_BCHW  # the pool of it is the difference of the pools
    smaller = [side for side in (4, 2, 1) if side < min(difference.shape[2:])]
    scales = [difference] + [functional.adaptive_avg_pool2d(difference, side) for side in smaller]
    weights = [2.0**-power for power in range(len(scales))]
    values = [weight * maps.square().mean() for weight, maps in zip(weights, scales, strict=True)]
    return torch.stack(values).sum() / sum(weights)


@final
class ReviewKD(TeacherTerm):
    """Knowledge review (Chen et al., CVPR 2021): a teacher's stage is learned by the student's and all deeper ones.

    From the pooled embedding, a 1 x 1 map, towards the input: a stage passes a 1 x 1 convolution, is fused with the map
    carried from below, enlarged, by a learned attention, and a 3 x 3 convolution of it is compared with the teacher's
    stage, at several scales. Stages are compared as the model gives them, where the original takes the teacher's before
    their activation.
    """

    def __init__(self, options: StageOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        self.pairs = stage_pairs(options, "reviewkd", student, teacher)[::-1]
        self.student_taps, self.teacher_taps = taps_of(self.pairs, embedding=True)
        middle = min(512, student.embedding_width)
        widths = [student.embedding_width] + [pair.student_shape[0] for pair in self.pairs]
        wanted = [teacher.embedding_width] + [pair.teacher_shape[0] for pair in self.pairs]
        self.entries = nn.ModuleList(projector(width, middle) for width in widths)
        self.attentions = nn.ModuleList(nn.Conv2d(2 * middle, 2, 1) for _ in self.pairs)
        self.exits = nn.ModuleList(projector(middle, width, size=3) for width in wanted)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        carried = self.entries[0](tapped(student.embedding)[:, :, None, None])
        values = [hierarchical_context(self.exits[0](carried), tapped(teacher.embedding)[:, :, None, None])]
        for pair, enter, attend, leave in zip(
            self.pairs, self.entries[1:], self.attentions, self.exits[1:], strict=True
        ):
            entered, target = enter(student.stages[pair.student]), teacher.stages[pair.teacher]
            carried = functional.interpolate(carried, entered.shape[2:], mode="nearest")
            shares = attend(torch.cat([entered, carried], dim=1)).sigmoid()
            carried = entered * shares[:, :1] + carried * shares[:, 1:]
            guess = leave(functional.interpolate(carried, target.shape[2:], mode="nearest"))
            values.append(hierarchical_context(guess, target))
        return torch.stack(values).sum()


def cosine_distance(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """1 - cosine of the angle between both, mean over the batch; 1 where a vector is zero."""
    return (1 - (unit(student_BD, dim=1) * unit(teacher_BD, dim=1)).sum(dim=1)).mean()


@final
class Embedding(TeacherTerm):
    """The teacher's pooled embedding, by the student's or, where widths differ, a linear map of it; needs no labels.

    ``form``: ``cosine``, or ``mse``, a mean over B and D that follows the few dimensions in which the teacher varies
    most.
    """

    student_taps = Taps(embedding=True)
    teacher_taps = Taps(embedding=True)

    def __init__(self, options: EmbeddingOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        self.form = options.form
        mine, wanted = student.embedding_width, teacher.embedding_width
        self.projector = nn.Identity() if mine == wanted else nn.Linear(mine, wanted)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        guess: Tensor = self.projector(tapped(student.embedding))
        compare = cosine_distance if self.form == "cosine" else functional.mse_loss
        return compare(guess, tapped(teacher.embedding))


FEATURE_TERMS: dict[str, type[Term]] = {
    "hint": Hint,
    "at": AttentionTransfer,
    "nst": NeuronSelectivity,
    "fsp": FSP,
    "vid": VariationalInformation,
    "reviewkd": ReviewKD,
    "embedding": Embedding,
}

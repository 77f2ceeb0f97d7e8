"""Terms on logits: cross-entropy, divergences between softened distributions, correlations of their matrix."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from distillcli.config.terms import (
    CrossEntropyOptions,
    DISTOptions,
    MultiTemperatureOptions,
    SymmetricKLOptions,
)
from distillcli.errors import UserError
from distillcli.terms.base import FLAT, LogitTerm, Setting, TeacherTerm, Term, unflattened
from distillcli.types import Batch, Output, Taps

_TWO_CLASSES = "with two classes every sample correlates at 1 or -1 and this part of the loss has no gradient"


def cross_entropy(logits_BK: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the labelled samples of -sum_k q_k log p_k, 0 without any.

    ``targets``: class numbers B, -1 where the class is not known, or distributions q of shape B x K.
    """
    labelled = len(targets) if targets.ndim == 2 else (targets >= 0).sum().clamp(min=1)
    total = functional.cross_entropy(logits_BK, targets, label_smoothing=smoothing, ignore_index=-1, reduction="sum")
    return total / labelled


def kl_divergence(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softened distributions, mean over the batch.

    T^2 keeps the size of the gradient as T grows: d/dz = T (p_student - p_teacher) / B (Hinton et al., 2015).
    """
    student, teacher = (functional.log_softmax(logits / temperature, dim=1) for logits in (student_BK, teacher_BK))
    return temperature**2 * functional.kl_div(student, teacher, log_target=True, reduction="batchmean")


def reverse_kl(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """T^2 KL(student || teacher) of the softened distributions, mean over the batch.

    d/dz = T / B p_student (log p_student - log p_teacher - KL), which vanishes for classes the student has ruled out.
    """
    return kl_divergence(teacher_BK, student_BK, temperature)


def symmetric_kl(student_BK: Tensor, teacher_BK: Tensor, temperature: float, rho: float) -> Tensor:
    """rho T^2 KL(teacher || student) + (1 - rho) T^2 KL(student || teacher), mean over the batch."""
    forward = kl_divergence(student_BK, teacher_BK, temperature)
    return rho * forward + (1 - rho) * reverse_kl(student_BK, teacher_BK, temperature)


def jensen_shannon(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """T^2 [KL(teacher || m) + KL(student || m)] / 2, m the mean of both distributions; at most T^2 log 2."""
    student, teacher = (functional.log_softmax(logits / temperature, dim=1) for logits in (student_BK, teacher_BK))
    middle = torch.logaddexp(student, teacher) - math.log(2)
    to_middle = [functional.kl_div(middle, side, log_target=True, reduction="batchmean") for side in (teacher, student)]
    return temperature**2 * (to_middle[0] + to_middle[1]) / 2


def pearson(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Pearson correlation along ``dim``; 1e-8 is added to the product of the norms.

    As in the authors' code: slices that are small on both sides, such as classes absent from a batch, then count as
    uncorrelated. Clamping each norm instead would correlate them.
    """
    first, second = (side - side.mean(dim=dim, keepdim=True) for side in (first, second))
    return _correlation(first, second, torch.linalg.vector_norm(first, dim=dim), dim)


def _correlation(first: Tensor, second: Tensor, norms: Tensor, dim: int) -> Tensor:
    """Of centred slices. ``norms``: of the first."""
    products: Tensor = norms * torch.linalg.vector_norm(second, dim=dim)
    return (first * second).sum(dim=dim) / (products + 1e-8)


def dist_parts(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Inter: 1 - mean correlation of the rows of the softened probabilities; intra: the same of their columns.

    With one sample intra is 1, and with two classes every row correlates at 1 or -1: neither then has a gradient. The
    gradient grows as 1 / norm of the student's rows and columns, which are therefore ``unflattened``.
    """
    student, teacher = (functional.softmax(logits / temperature, dim=1) for logits in (student_BK, teacher_BK))
    samples, classes = student.shape
    # Nearly uniform probabilities differ by the differences of the logits over T K.
    usual = 1 / (temperature * classes)
    # A column may be small in a student that is not flat: its class is absent from the batch.
    is_flat = torch.linalg.vector_norm(student - 1 / classes) < FLAT * usual * math.sqrt(samples * classes)
    means = []
    for dim, length, flat in ((1, math.sqrt(classes), True), (0, math.sqrt(samples), is_flat)):
        mine, its = (side - side.mean(dim=dim, keepdim=True) for side in (student, teacher))
        norms = unflattened(torch.linalg.vector_norm(mine, dim=dim), usual * length, flat)
        means.append(_correlation(mine, its, norms, dim).mean())
    return 1 - means[0], 1 - means[1]


def class_correlation(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """||P_t' P_t - P_s' P_s||_F^2 / K of the softened probabilities: K x K relations, summed over the batch; no T^2."""
    student, teacher = (functional.softmax(logits / temperature, dim=1) for logits in (student_BK, teacher_BK))
    return (teacher.T @ teacher - student.T @ student).square().sum() / student.shape[1]


def batch_correlation(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """||P_t P_t' - P_s P_s'||_F^2 / B of the softened probabilities: B x B relations; no T^2."""
    student, teacher = (functional.softmax(logits / temperature, dim=1) for logits in (student_BK, teacher_BK))
    return (teacher @ teacher.T - student @ student.T).square().sum() / student.shape[0]


def hard_label(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Cross-entropy with the teacher's decision as the label (Touvron et al., ICML 2021); no temperature."""
    return functional.cross_entropy(student_BK, teacher_BK.argmax(dim=1))


@final
class CrossEntropy(Term):
    """Cross-entropy (with label smoothing: Szegedy et al., CVPR 2016): the labels themselves, as far as there are any.

    The mean is over the labelled samples of one micro-batch on one rank, so with few labels samples weigh unequally.
    """

    def __init__(self, options: CrossEntropyOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.smoothing = options.smoothing

    def forward(self, student: Output, teacher: Output | None, batch: Batch, temperature: float) -> Tensor:
        return cross_entropy(student.logits, batch.targets, self.smoothing)


@final
class KL(LogitTerm):
    """Knowledge distillation (Hinton, Vinyals, Dean, 2015): KL divergence to the teacher's softened distribution."""

    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        return kl_divergence(student_BK, teacher_BK, temperature)


@final
class ReverseKL(LogitTerm):
    """Reverse KL divergence, KL(student || teacher): the student may ignore what it cannot fit (mode-seeking)."""

    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        return reverse_kl(student_BK, teacher_BK, temperature)


@final
class SymmetricKL(LogitTerm):
    """Both KL divergences: the share rho of KL(teacher || student), the rest of KL(student || teacher)."""

    def __init__(self, options: SymmetricKLOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.rho = options.rho

    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        return symmetric_kl(student_BK, teacher_BK, temperature, self.rho)


@final
class JensenShannon(LogitTerm):
    """Jensen-Shannon divergence (as in SSLD: Cui et al., 2021): symmetric, and bounded by T^2 log 2."""

    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        return jensen_shannon(student_BK, teacher_BK, temperature)


@final
class HardLabel(TeacherTerm):
    """Hard-label distillation (Touvron et al., ICML 2021): cross-entropy with the teacher's decision.

    In a student with a distillation token, the token's logits learn it.
    """

    student_taps = Taps(token=True)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return hard_label(student.taught_logits, teacher.logits)


@final
class LogitMSE(LogitTerm):
    """Logit regression (Ba & Caruana, NeurIPS 2014): squared distance of the logits, mean over batch and classes.

    Without softmax there is no temperature. Half of it is what kl tends to as T grows, for rows of equal mean.
    """

    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        return functional.mse_loss(student_BK, teacher_BK)


@final
class DIST(LogitTerm):
    """Relation matching (Huang et al., NeurIPS 2022): correlation of the probabilities by sample and by class.

    T^2 is in the authors' code for classification but not in their paper; ``squared=false`` leaves it out. With more
    classes than samples in a batch, the intra part cannot fall far below the share of classes that hardly occur.
    """

    def __init__(self, options: DISTOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.beta = options.beta
        self.gamma = options.gamma
        self.squared = options.squared
        if setting.student.classes == 2 and options.beta:
            if not options.gamma:
                raise UserError(
                    f"distill.terms.dist.gamma=0: {_TWO_CLASSES}, so nothing is left to learn; use distill=kd"
                )
            self.doubts = (f"distill.terms.dist.beta={options.beta:g}: {_TWO_CLASSES}; only the rest is learned",)

    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        inter, intra = dist_parts(student_BK, teacher_BK, temperature)
        scale = temperature**2 if self.squared else 1.0
        return scale * (self.beta * inter + self.gamma * intra)


@final
class MultiKL(LogitTerm):
    """MLKD, single samples (Jin, Wang, Lin, CVPR 2023): the KL divergence summed over several temperatures."""

    def __init__(self, options: MultiTemperatureOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.temperatures = options.temperatures

    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        return torch.stack([kl_divergence(student_BK, teacher_BK, number) for number in self.temperatures]).sum()


@final
class ClassCorrelation(LogitTerm):
    """MLKD, classes (Jin, Wang, Lin, CVPR 2023): how alike the classes of a batch are, at several temperatures.

    Unmasked: the published confidence mask multiplies a finished mean. The value grows as the square of the batch.
    """

    def __init__(self, options: MultiTemperatureOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.temperatures = options.temperatures

    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        return torch.stack([class_correlation(student_BK, teacher_BK, number) for number in self.temperatures]).sum()


@final
class BatchCorrelation(LogitTerm):
    """MLKD, samples (Jin, Wang, Lin, CVPR 2023): how alike the samples of a batch are, at several temperatures."""

    def __init__(self, options: MultiTemperatureOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.temperatures = options.temperatures

    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        return torch.stack([batch_correlation(student_BK, teacher_BK, number) for number in self.temperatures]).sum()


LOGIT_TERMS: dict[str, type[Term]] = {
    "ce": CrossEntropy,
    "kl": KL,
    "reverse_kl": ReverseKL,
    "symmetric_kl": SymmetricKL,
    "js": JensenShannon,
    "hard": HardLabel,
    "logit_mse": LogitMSE,
    "dist": DIST,
    "multi_kl": MultiKL,
    "class_correlation": ClassCorrelation,
    "batch_correlation": BatchCorrelation,
}

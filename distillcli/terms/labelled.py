"""Terms on logits that treat the class of the label apart from the others."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from distillcli.config.terms import DKDOptions, NKDOptions, TfKDOptions
from distillcli.terms.base import LogitTerm, Setting, Term
from distillcli.terms.logit import kl_divergence
from distillcli.types import Batch, Output


def label_of(targets: Tensor) -> Tensor:
    """B class numbers: the targets themselves, or the largest share of B x K distributions."""
    return targets if targets.ndim == 1 else targets.argmax(dim=1)


def at_label(values_BK: Tensor, labels_B: Tensor) -> Tensor:
    """The entry of each row at its label. Raises on a label that is not a class, e.g. -1."""
    return values_BK.gather(1, labels_B[:, None])[:, 0]


def without_label(values_BK: Tensor, labels_B: Tensor) -> Tensor:
    """B x (K - 1): every row without the entry at its label."""
    column = torch.arange(values_BK.shape[1] - 1, device=values_BK.device)[None, :]
    return values_BK.gather(1, column + (column >= labels_B[:, None]).long())


def target_kl(student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """TCKD: T^2 KL(teacher || student) of the two events label and not label, mean over the batch.

    The log-odds of the label are z_y - logsumexp of the other logits, so log p and log(1 - p) are log-sigmoids, finite
    for a student however confident.
    """
    student, teacher = (
        at_label(logits, labels_B) - without_label(logits, labels_B).logsumexp(dim=1)
        for logits in (student_BK / temperature, teacher_BK / temperature)
    )
    hit = teacher.sigmoid() * (functional.logsigmoid(teacher) - functional.logsigmoid(student))
    miss = (-teacher).sigmoid() * (functional.logsigmoid(-teacher) - functional.logsigmoid(-student))
    return temperature**2 * (hit + miss).mean()


def other_kl(student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """NCKD: T^2 KL(teacher || student) over the K - 1 classes other than the label, mean over the batch.

    0 for two classes.
    """
    return kl_divergence(without_label(student_BK, labels_B), without_label(teacher_BK, labels_B), temperature)


def nkd(student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor, temperature: float, gamma: float) -> Tensor:
    """-p_t(y) log p_s(y) at T = 1, and gamma T^2 times the cross-entropy over the other classes, mean over the batch.

    Both are cross-entropies: the value at student = teacher is an entropy, not 0.
    """
    student, teacher = (at_label(functional.log_softmax(z, dim=1), labels_B) for z in (student_BK, teacher_BK))
    others_s, others_t = (without_label(logits, labels_B) / temperature for logits in (student_BK, teacher_BK))
    hit = -(teacher.exp() * student).mean()
    others = -(others_t.softmax(dim=1) * functional.log_softmax(others_s, dim=1)).sum(dim=1).mean()
    return hit + gamma * temperature**2 * others


def sample_weights(student_BK: Tensor, teacher_BK: Tensor, targets: Tensor) -> Tensor:
    """1 - exp(-l_s / (l_t + 1e-7)), l the cross-entropies with the targets at T = 1; B, in [0, 1], without gradient.

    The better the student already does on a sample, compared with the teacher, the less the sample counts.
    """
    with torch.no_grad():
        student, teacher = (functional.cross_entropy(z, targets, reduction="none") for z in (student_BK, teacher_BK))
        return -torch.expm1(-(student / (teacher + 1e-7)).clamp(min=0))


def weighted_soft_labels(student_BK: Tensor, teacher_BK: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T^2 times the cross-entropy with the teacher's softened distribution, each sample with its weight, batch mean.

    d/dz = T w (p_student - p_teacher) / B; the value at student = teacher is w times the teacher's entropy.
    """
    soft = functional.softmax(teacher_BK / temperature, dim=1)
    cross = -(soft * functional.log_softmax(student_BK / temperature, dim=1)).sum(dim=1)
    return temperature**2 * (sample_weights(student_BK, teacher_BK, targets) * cross).mean()


def hand_made_logits(like_BK: Tensor, labels_B: Tensor, confidence: float) -> Tensor:
    """Logarithms of a distribution with ``confidence`` at the label and the rest spread evenly over the others."""
    rest = math.log((1 - confidence) / (like_BK.shape[1] - 1))
    return torch.full_like(like_BK, rest).scatter(1, labels_B[:, None], math.log(confidence))


def probabilities_as_logits(student_BK: Tensor, made_BK: Tensor, temperature: float) -> Tensor:
    """KL(softmax(p / T) || student at T = 1), p = softmax(made): the published code, which takes p for logits.

    Mean over the batch. The code averages over the classes too and multiplies by 100, the number of its classes.
    """
    target = functional.log_softmax(made_BK.softmax(dim=1) / temperature, dim=1)
    return functional.kl_div(student_BK.log_softmax(dim=1), target, log_target=True, reduction="batchmean")


@final
class DKD(LogitTerm):
    """Decoupled KD (Zhao et al., CVPR 2022): label against the rest, and the rest among itself, weighted apart.

    KL is TCKD + (1 - p_t(y)) NCKD of each sample; here NCKD counts fully for samples the teacher is sure of.
    """

    def __init__(self, options: DKDOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.alpha = options.alpha
        self.beta = options.beta

    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        given = student_BK, teacher_BK, label_of(batch.targets), temperature
        return self.alpha * target_kl(*given) + self.beta * other_kl(*given)


@final
class NKD(LogitTerm):
    """Normalised KD (Yang et al., ICCV 2023): cross-entropies at the label, and among the other classes."""

    def __init__(self, options: NKDOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.gamma = options.gamma

    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        return nkd(student_BK, teacher_BK, label_of(batch.targets), temperature, self.gamma)


@final
class WSLD(LogitTerm):
    """Weighted soft labels (Zhou et al., ICLR 2021): samples the student knows already count less."""

    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        return weighted_soft_labels(student_BK, teacher_BK, batch.targets, temperature)


@final
class TfKD(Term):
    """Teacher-free KD (Yuan et al., CVPR 2020): KL divergence to a hand-made teacher, sure of the label and fair else.

    ``form``: ``code``, as published numbers were made (``probabilities_as_logits``), or ``paper``, in which both sides
    are softened and the value includes T^2, as in any other term; at T = 1 that is label smoothing less a constant.
    """

    def __init__(self, options: TfKDOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.confidence = options.confidence
        self.compare = kl_divergence if options.form == "paper" else probabilities_as_logits

    def forward(self, student: Output, teacher: Output | None, batch: Batch, temperature: float) -> Tensor:
        made = hand_made_logits(student.logits.detach(), label_of(batch.targets), self.confidence)
        return self.compare(student.logits, made, temperature)


LABELLED_TERMS: dict[str, type[Term]] = {"dkd": DKD, "nkd": NKD, "wsld": WSLD, "tfkd": TfKD}

"""Terms on logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from torch.nn import functional

from distillcli.errors import UserError
from distillcli.terms.base import LogitOptions, Term, TermOptions
from distillcli.types import Batch, Output, Spec


def cross_entropy(logits_BK: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the batch of -sum_k q_k log p_k; ``targets``: class numbers B, or distributions q of shape B x K."""
    return functional.cross_entropy(logits_BK, targets, label_smoothing=smoothing)


def kl_divergence(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softened distributions, mean over the batch.

    T^2 keeps the size of the gradient as T grows: d/dz = T (p_student - p_teacher) / B (Hinton et al., 2015).
    """
    student, teacher = (functional.log_softmax(logits / temperature, dim=1) for logits in (student_BK, teacher_BK))
    return temperature**2 * functional.kl_div(student, teacher, log_target=True, reduction="batchmean")


def hard_label(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Cross-entropy with the teacher's decision as the label (Touvron et al., ICML 2021); no temperature."""
    return functional.cross_entropy(student_BK, teacher_BK.argmax(dim=1))


@final
class CrossEntropy(Term):
    """Cross-entropy (with label smoothing: Szegedy et al., CVPR 2016): the labels themselves."""

    compares = "labels"

    @dataclass(frozen=True)
    class Options(TermOptions):
        smoothing: float = 0.0

    def __init__(self, options: Options, temperature: float, student: Spec, teacher: Spec | None) -> None:
        super().__init__(options, temperature, student, teacher)
        if options.smoothing > 1:
            raise UserError(f"distill.terms.ce.smoothing={options.smoothing}: a share of the label, at most 1")
        self.smoothing = options.smoothing

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return cross_entropy(student.logits, batch.targets, self.smoothing)


@final
class KL(Term):
    """Knowledge distillation (Hinton, Vinyals, Dean, 2015): KL divergence to the teacher's softened distribution."""

    compares = "teacher"

    @dataclass(frozen=True)
    class Options(LogitOptions):
        pass

    def __init__(self, options: Options, temperature: float, student: Spec, teacher: Spec | None) -> None:
        super().__init__(options, temperature, student, teacher)
        self.temperature = temperature if options.temperature is None else options.temperature

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        assert teacher is not None
        return kl_divergence(student.logits, teacher.logits, self.temperature)


@final
class HardLabel(Term):
    """Hard-label distillation (Touvron et al., ICML 2021): cross-entropy with the teacher's decision."""

    compares = "teacher"

    @dataclass(frozen=True)
    class Options(TermOptions):
        pass

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        assert teacher is not None
        return hard_label(student.logits, teacher.logits)


LOGIT_TERMS: dict[str, type[Term]] = {"ce": CrossEntropy, "kl": KL, "hard": HardLabel}

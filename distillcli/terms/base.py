"""What a loss term is.

A term is a pure function of tensors wrapped in a final class that picks the function's arguments from the outputs of
student and teacher. Its ``Options`` are the keys under ``distill.terms.NAME``. Nothing is inherited but the contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from distillcli.types import LOGITS_ONLY, Batch, Output, Spec, Taps


@dataclass(frozen=True)
class TermOptions:
    """Options of every term. ``ramp``: epochs over which the weight grows linearly from 0, 0 for none."""

    weight: float = 1.0
    ramp: float = 0.0


@dataclass(frozen=True)
class LogitOptions(TermOptions):
    """Options of every term that softens logits. ``temperature``: None takes ``distill.temperature``."""

    temperature: float | None = None


class Term(nn.Module, ABC):
    """One summand of the objective, built once from its options and the specs of both models.

    ``compares``: whether it compares the student with the labels, weighted by 1 - alpha, or with the teacher, weighted
    by alpha. ``whole_batch``: its value depends on which samples share a batch, so micro-batches would change it.
    Parameters it registers are trained with the student and left behind at export.
    """

    Options: ClassVar[type[TermOptions]]
    compares: ClassVar[Literal["labels", "teacher"]]
    whole_batch: ClassVar[bool] = False

    student_taps: Taps = LOGITS_ONLY
    teacher_taps: Taps = LOGITS_ONLY

    def __init__(self, options: TermOptions, temperature: float, student: Spec, teacher: Spec | None) -> None:
        """``temperature``: ``distill.temperature``. ``teacher`` is None only for terms that compare with labels."""
        super().__init__()

    @abstractmethod
    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The scalar value in float32; outputs arrive in float32, outside of autocast, the teacher's without graph."""

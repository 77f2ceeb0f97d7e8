"""What a loss term is.

A term is a pure function of tensors wrapped in a final class that picks the function's arguments from the outputs of
student and teacher. Its options, and what has to be known of it before it is built, are in ``config/terms.py``.
Terms inherit the contract alone and, where they compare logits, what happens to logits before any comparison.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillcli.config.terms import StandardizeOptions, TermOptions
from distillcli.errors import UserError
from distillcli.types import LOGITS_ONLY, Batch, Output, Spec, Taps


@dataclass(frozen=True)
class Setting:
    """What an objective is built for. ``teacher``: None where no term compares with one.

    ``labels``: the class of every training image, N, int64. ``epochs``: the length of the fit.
    """

    student: Spec
    teacher: Spec | None
    labels: NDArray[np.int64]
    epochs: int

    @property
    def models(self) -> tuple[Spec, Spec]:
        """Student and teacher, for terms that compare them."""
        assert self.teacher is not None
        return self.student, self.teacher


class Term(nn.Module, ABC):
    """One summand of the objective, built once from its options and its setting.

    Its parameters are trained with the student and left out of the export. ``doubts``: what speaks against it in its
    setting, one line each.
    """

    doubts: tuple[str, ...] = ()
    student_taps: Taps = LOGITS_ONLY
    teacher_taps: Taps = LOGITS_ONLY

    def __init__(self, options: TermOptions, setting: Setting) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, student: Output, teacher: Output | None, batch: Batch, temperature: float) -> Tensor:
        """The value, a float32 scalar. Outputs arrive in float32, outside autocast, the teacher's without a graph.

        ``teacher``: None only for terms that compare with labels. ``temperature``: the term's own or the common one, at
        this step.
        """


class TeacherTerm(Term, ABC):
    """A term that compares embeddings, stages or other parts of both outputs, without a temperature."""

    @final  # type: ignore[misc]  # nn.Module declares forward as an attribute
    def forward(self, student: Output, teacher: Output | None, batch: Batch, temperature: float) -> Tensor:
        assert teacher is not None
        return self.compare(student, teacher, batch)

    @abstractmethod
    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """The value, a scalar."""


class PreparedTerm(TeacherTerm, ABC):
    """A term with parts that learn from the teacher alone before the student's first step, and are then frozen.

    Checkpoints contain these parts like all others of a term, so a resumed run does not prepare again.
    """

    prepare_epochs: int

    @abstractmethod
    def prepare(self, answers: Iterable[Output]) -> None:
        """``answers``: the teacher's outputs for every batch of ``prepare_epochs`` epochs."""


# The standard deviation of the logits of one sample below which they are flat: fresh classifiers begin at 0.02 and
# above, or, where they are drawn from next to nothing (MLP-Mixer, gMLP, ResMLP, EVA), at 0 to 0.0005.
FLAT = 0.01


def unflattened(lengths: Tensor, usual: float, flat: Tensor | bool = True) -> Tensor:
    """What to divide by instead of ``lengths``, which are spreads of a student's outputs.

    ``usual``: the length where logits have the standard deviation 1. Lengths from ``FLAT`` times that on are returned
    as they are. Below, 1 / length, which is the size of the gradient, falls from there to 1 / ``usual`` at length 0:
    the first step of a student that begins with equal logits would else be millions of times too long. ``flat``: false
    where lengths are small for another reason.
    """
    share = lengths / (FLAT * usual)
    return torch.where((share < 1) & flat, 1 / (share / (FLAT * usual) + (1 - share) / usual), lengths)


def standardized(logits_BK: Tensor) -> Tensor:
    """Logit standardisation (Sun et al., CVPR 2024): (z - mean z) / (1e-7 + std z) of every row, std over K - 1.

    Only the shape of a row is left: the student need not match the mean and spread of the teacher's logits. The
    gradient grows as 1 / std; rows that are ``FLAT`` are therefore divided by more.
    """
    centred = logits_BK - logits_BK.mean(dim=1, keepdim=True)
    return centred / unflattened(1e-7 + centred.std(dim=1, keepdim=True, correction=1), usual=1.0)


class LogitTerm(Term, ABC):
    """A term on the logits of student and teacher: ``compare`` gets both, standardized where the options say so.

    In a student with a distillation token, the token's logits are the ones compared.
    """

    student_taps = Taps(token=True)

    def __init__(self, options: StandardizeOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        if options.standardize and setting.student.classes < 3:
            raise UserError(
                f"distill.terms.*.standardize=true: with {setting.student.classes} classes a standardized row says "
                "only which class is largest and has no gradient; set it to false"
            )
        self.standardize = options.standardize

    @final  # type: ignore[misc]  # nn.Module declares forward as an attribute
    def forward(self, student: Output, teacher: Output | None, batch: Batch, temperature: float) -> Tensor:
        assert teacher is not None
        if self.standardize:
            return self.compare(standardized(student.taught_logits), standardized(teacher.logits), batch, temperature)
        return self.compare(student.taught_logits, teacher.logits, batch, temperature)

    @abstractmethod
    def compare(self, student_BK: Tensor, teacher_BK: Tensor, batch: Batch, temperature: float) -> Tensor:
        """The value, a scalar. ``temperature``: the term's own or the common one, at this step."""

"""Terms on feature maps, addressed by stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import functional

from distillcli.errors import UserError
from distillcli.terms.base import Term, TermOptions
from distillcli.types import Batch, Output, Spec, Taps


def same_size(first_BCHW: Tensor, second_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool whichever map is larger, in each direction, to the size of the other."""
    height = min(first_BCHW.shape[2], second_BCHW.shape[2])
    width = min(first_BCHW.shape[3], second_BCHW.shape[3])
    pooled = [functional.adaptive_avg_pool2d(maps, (height, width)) for maps in (first_BCHW, second_BCHW)]
    return pooled[0], pooled[1]


def stage_shape(spec: Spec, stage: int, key: str) -> tuple[int, int, int]:
    """Channels, height, width of a stage. Raises UserError naming ``key`` if the model has no such stage."""
    count = len(spec.stage_shapes)
    if not -count <= stage < count:
        raise UserError(f"{key}={stage}: {spec.name} has stages 0 to {count - 1} (or -1 to -{count})")
    return spec.stage_shapes[stage]


@final
class Hint(Term):
    """FitNets hint (Romero et al., ICLR 2015): squared distance of a student stage, projected, to a teacher stage.

    The projector is a 1 x 1 convolution and batch norm, without the ReLU of the original, whose targets were never
    negative; both stages of the original, hint and distillation, are one.
    """

    compares = "teacher"

    @dataclass(frozen=True)
    class Options(TermOptions):
        stage: int = -2
        teacher_stage: int | None = None  # None: the same number

    def __init__(self, options: Options, temperature: float, student: Spec, teacher: Spec | None) -> None:
        super().__init__(options, temperature, student, teacher)
        assert teacher is not None
        self.stage = options.stage
        self.teacher_stage = options.stage if options.teacher_stage is None else options.teacher_stage
        self.student_taps = Taps(stages=(self.stage,))
        self.teacher_taps = Taps(stages=(self.teacher_stage,))
        channels = stage_shape(student, self.stage, "distill.terms.hint.stage")[0]
        wanted = stage_shape(teacher, self.teacher_stage, "distill.terms.hint.teacher_stage")[0]
        self.projector = nn.Sequential(nn.Conv2d(channels, wanted, 1, bias=False), nn.BatchNorm2d(wanted))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        assert teacher is not None
        guess, target = same_size(student.stages[self.stage], teacher.stages[self.teacher_stage])
        return functional.mse_loss(self.projector(guess), target)


FEATURE_TERMS: dict[str, type[Term]] = {"hint": Hint}

"""What terms on feature maps share: which stages are compared, and how maps of two models are brought together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillcli.config.terms import StageOptions
from distillcli.errors import UserError
from distillcli.types import Spec, Taps

_SHORTEST = 1e-12  # a vector below this length has no direction and is left as it is
_MOST_STAGES = 4  # a convolutional network has a stem and four stages


def same_size(first_BCHW: Tensor, second_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool whichever map is larger, in each direction, to the size of the other."""
    height = min(first_BCHW.shape[2], second_BCHW.shape[2])
    width = min(first_BCHW.shape[3], second_BCHW.shape[3])
    pooled = [functional.adaptive_avg_pool2d(maps, (height, width)) for maps in (first_BCHW, second_BCHW)]
    return pooled[0], pooled[1]


def unit(vectors: Tensor, dim: int) -> Tensor:
    """Vectors along ``dim`` over their length. A zero vector stays zero, with a gradient of ordinary size."""
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / torch.where(length > _SHORTEST, length, torch.ones_like(length))


def stage_shape(spec: Spec, stage: int, key: str) -> tuple[int, int, int]:
    """Channels, height, width of a stage. Raises UserError naming ``key`` if the model has no such stage."""
    count = len(spec.stage_shapes)
    if not -count <= stage < count:
        raise UserError(f"{key}={stage}: {spec.name} has stages 0 to {count - 1} (or -1 to -{count})")
    return spec.stage_shapes[stage]


@dataclass(frozen=True)
class StagePair:
    """A stage of the student and the stage of the teacher it is compared with: numbers, and channels, height, width."""

    student: int
    teacher: int
    student_shape: tuple[int, int, int]
    teacher_shape: tuple[int, int, int]

    @property
    def positions(self) -> int:
        """Of the maps that are compared: the larger one is pooled to the size of the other."""
        return math.prod(min(sides) for sides in zip(self.student_shape[1:], self.teacher_shape[1:], strict=True))


def stage_pairs(options: StageOptions, name: str, student: Spec, teacher: Spec) -> list[StagePair]:
    """The pairs of term ``name``, from the student's input to its output. Raises UserError if they do not exist."""
    key = f"distill.terms.{name}"
    common = min(_MOST_STAGES, len(student.stage_shapes), len(teacher.stage_shapes))
    stages = list(range(-common, 0)) if options.stages is None else options.stages
    teacher_stages = stages if options.teacher_stages is None else options.teacher_stages
    if not stages:
        raise UserError(f"{key}.stages=[]: give one stage or more, or null for the last {common}")
    if len(stages) != len(teacher_stages):
        raise UserError(
            f"{key}.teacher_stages={teacher_stages}: {len(teacher_stages)} stages for the {len(stages)} of the student,"
            f" {stages}; give as many"
        )
    teacher_key = f"{key}.{'stages' if options.teacher_stages is None else 'teacher_stages'}"
    pairs = [
        StagePair(mine, its, stage_shape(student, mine, f"{key}.stages"), stage_shape(teacher, its, teacher_key))
        for mine, its in zip(stages, teacher_stages, strict=True)
    ]
    return sorted(pairs, key=lambda pair: pair.student % len(student.stage_shapes))


def doubts_of_points(pairs: list[StagePair], name: str) -> tuple[str, ...]:
    """What to say of stages that term ``name``, which compares patterns of positions, sees as one position.

    Raises UserError if it sees none of several.
    """
    points = [pair.student for pair in pairs if pair.positions == 1]
    if not points:
        return ()
    said = f"distill.terms.{name}.stages: {name} compares where in a map things are, and stages {points} are 1 x 1"
    if len(points) == len(pairs):
        raise UserError(f"{said}, so there is nothing to learn; choose earlier stages, or a larger dataset.image_size")
    others = [pair.student for pair in pairs if pair.student not in points]
    return (
        f"{said}, so nothing is learned from them; choose distill.terms.{name}.stages={others}, or a larger "
        "dataset.image_size",
    )


def taps_of(pairs: list[StagePair], embedding: bool = False) -> tuple[Taps, Taps]:
    """What the pairs need of student and teacher."""
    student, teacher = tuple(pair.student for pair in pairs), tuple(pair.teacher for pair in pairs)
    return Taps(student, embedding), Taps(teacher, embedding)


class AdapterNorm(nn.BatchNorm2d):
    """Batch norm that uses its running statistics where a channel has a single value, which has no variance."""

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        if self.training and maps_BCHW.numel() == maps_BCHW.shape[1]:
            return functional.batch_norm(
                maps_BCHW, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(maps_BCHW)


def projector(channels: int, wanted: int, size: int = 1) -> nn.Sequential:
    """A convolution to the wanted channels and batch norm, without ReLU: targets may be negative."""
    return nn.Sequential(nn.Conv2d(channels, wanted, size, padding=size // 2, bias=False), AdapterNorm(wanted))

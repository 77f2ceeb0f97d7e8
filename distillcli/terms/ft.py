"""Factor transfer: the student imitates a teacher's stage as an autoencoder has compressed it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillcli.config.terms import FactorTransferOptions
from distillcli.errors import UserError
from distillcli.terms.base import PreparedTerm, Setting
from distillcli.terms.feature import attention
from distillcli.terms.stages import AdapterNorm, StagePair, same_size, stage_shape, unit
from distillcli.types import Batch, Output, Taps

_SLOPE = 0.1
_PARAPHRASER_RATE = 1e-3  # of Adam, whose step does not depend on the scale of the teacher's maps


def factor_distance(student_BCHW: Tensor, teacher_BCHW: Tensor, form: str = "factor") -> Tensor:
    """Mean over elements of the absolute difference of two unit vectors.

    ``factor``: the whole factor. ``attention``: of each position, the mean over channels of the squared factor.
    """
    maps = same_size(student_BCHW, teacher_BCHW)
    if form == "attention":
        student, teacher = (attention(factor, power=2.0) for factor in maps)
    else:
        student, teacher = (unit(factor.flatten(1), dim=1) for factor in maps)
    return functional.l1_loss(student, teacher)


def translator(channels: int, wanted: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((channels, channels), (channels, wanted), (wanted, wanted)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), AdapterNorm(after), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """An autoencoder of maps, B x C x H x W -> factor B x kC x H x W -> maps; without norm layers."""

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__()
        shapes = ((channels, channels), (channels, wanted), (wanted, wanted))
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential()
        for before, after in shapes:
            self.encoder.extend([nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(_SLOPE)])
        for after, before in reversed(shapes):
            self.decoder.extend([nn.ConvTranspose2d(before, after, 3, padding=1), nn.LeakyReLU(_SLOPE)])

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        maps: Tensor = self.decoder(self.encoder(maps_BCHW))
        return maps


@final
class FactorTransfer(PreparedTerm):
    """Factor transfer (Kim, Park, Kwak, NeurIPS 2018): the teacher's last stage, paraphrased in fewer channels.

    The paraphraser learns to reconstruct the teacher's maps before the student's first step and is then frozen; the
    translator, which produces the student's factor, is trained with the student. ``form``: ``factor`` compares whole
    factors, as the paper and its code do, which weighs them by 500; ``attention`` compares their attention maps, as the
    benchmarks on CIFAR-100 do, which weigh these by 200.
    """

    def __init__(self, options: FactorTransferOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        self.stage = options.stage
        self.teacher_stage = options.stage if options.teacher_stage is None else options.teacher_stage
        shape = stage_shape(student, self.stage, "distill.terms.ft.stage")
        its_shape = stage_shape(teacher, self.teacher_stage, "distill.terms.ft.teacher_stage")
        if options.form == "attention" and StagePair(self.stage, self.teacher_stage, shape, its_shape).positions == 1:
            raise UserError(
                f"distill.terms.ft.stage={self.stage}: the attention form compares where in a map things are, and this "
                "one is 1 x 1; choose an earlier stage, a larger dataset.image_size, or distill.terms.ft.form=factor"
            )
        channels, wanted = shape[0], its_shape[0]
        self.student_taps, self.teacher_taps = Taps(stages=(self.stage,)), Taps(stages=(self.teacher_stage,))
        width = max(1, round(options.rate * wanted))
        self.translator = translator(channels, width)
        self.paraphraser = Paraphraser(wanted, width).requires_grad_(False)
        self.prepare_epochs = options.prepare_epochs
        self.form = options.form

    def prepare(self, answers: Iterable[Output]) -> None:
        self.paraphraser.requires_grad_(True)
        optimizer = torch.optim.Adam(self.paraphraser.parameters(), lr=_PARAPHRASER_RATE)
        for answer in answers:
            maps = answer.stages[self.teacher_stage].float()
            functional.mse_loss(self.paraphraser(maps), maps).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        self.paraphraser.requires_grad_(False)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        factor = self.paraphraser.encoder(teacher.stages[self.teacher_stage])
        return factor_distance(self.translator(student.stages[self.stage]), factor, self.form)

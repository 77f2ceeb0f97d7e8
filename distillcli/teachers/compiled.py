"""A live teacher that a GPU replays as CUDA graphs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import torch

from distillcli.models.ensemble import Classifier
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.types import Batch, Output


@dataclass(frozen=True)
class CompiledTeacher:
    """A teacher for the batches of a fit. ``live``: as it was, for images of any number; ``fast``: with compiled model.

    Norms stay folded into convolutions: what follows one, its bias and activation, is then a single kernel.
    """

    live: FrozenTeacher
    fast: FrozenTeacher

    @staticmethod
    def of(live: FrozenTeacher, grows: bool) -> CompiledTeacher:
        """``grows``: whether views change their size in the course of the fit; each would else be compiled anew."""
        model = live.backbone if live.inference_copy is None else live.inference_copy
        compiled = torch.compile(model, mode="reduce-overhead", dynamic=None if grows else False)
        return CompiledTeacher(live, dataclasses.replace(live, inference_copy=cast(Classifier, compiled)))

    @property
    def repaired(self) -> int:
        return self.live.repaired

    def __call__(self, batch: Batch) -> Output:
        return self.fast(batch).clone()  # the memory of a graph belongs to the next graph, which is the student's

"""One optimizer step: what trains, and what ``distill bench`` times."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distillcli.config.schema import TrainerConfig
from distillcli.runtime import autocast, resolve_precision
from distillcli.teachers.frozen import Teacher
from distillcli.types import Batch

# The parts of a step, in order; ``mark`` is told when each of them ends.
PARTS = ("data", "teacher", "forward", "backward", "optimizer")


def unmarked(_part: str) -> None:
    """The mark of a step that nobody times."""


@dataclass(frozen=True)
class Update:
    """How gradients become weights. ``clip_grad``: the largest norm of the gradient, or infinity."""

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    precision: str
    clip_grad: float

    @staticmethod
    def of(optimizer: torch.optim.Optimizer, trainer: TrainerConfig, device: torch.device) -> Update:
        precision = resolve_precision(trainer.precision, device)
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        return Update(optimizer, scaler, device, precision, trainer.clip_grad or float("inf"))

    def autocast(self) -> AbstractContextManager[object]:
        return autocast(self.device, self.precision)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def apply(self, model: nn.Module) -> Tensor:
        """Take the step; returns the norm of the gradient before it was clipped."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


@dataclass(frozen=True)
class StepResult:
    """Loss, unweighted value of each term, and norm of the gradient of one step.

    All of it stays on the device: reading it here would make the device wait.
    """

    loss: Tensor
    values: dict[str, Tensor]
    norm: Tensor


def train_step(
    parts: list[Batch],
    teacher: Teacher | None,
    model: nn.Module,
    update: Update,
    epoch: float,
    mark: Callable[[str], None] = unmarked,
) -> StepResult:
    """One optimizer step on a batch given as micro-batches. ``epoch``: how many have passed, fractions included.

    ``mark`` is called with the name of each part of the step when that part has been queued.
    """
    total, values = torch.zeros((), device=update.device), dict[str, Tensor]()
    for number, batch in enumerate(parts, 1):
        target = None if teacher is None else teacher(batch)
        mark("teacher")
        with _no_sync_unless(model, number == len(parts)):
            with update.autocast():
                loss, terms = model(batch, target, epoch)
            mark("forward")
            update.backward(loss / len(parts))
            mark("backward")
        total = total + loss.detach() / len(parts)
        for name, value in terms.items():
            values[name] = values.get(name, torch.zeros_like(total)) + value / len(parts)
    norm = update.apply(model)
    mark("optimizer")
    return StepResult(total, values, norm)


def _no_sync_unless(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Ranks exchange the gradient of a whole batch, not of its parts."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()

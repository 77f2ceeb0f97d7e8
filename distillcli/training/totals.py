"""The losses of an epoch, summed on the device."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from distillcli.config.schema import TrainConfig
from distillcli.errors import NumericError
from distillcli.runtime import Runtime, any_rank, sum_over_ranks
from distillcli.training.step import StepResult


class Totals:
    """Sums of an epoch, kept on the device, and the seconds it took, over all the sessions that trained it.

    ``skips_overflow``: steps of a non-finite gradient are not taken.
    """

    def __init__(self, device: torch.device, skips_overflow: bool) -> None:
        self.device = device
        self.skips_overflow = skips_overflow
        self.clear()

    def clear(self) -> None:
        """Begin an epoch."""
        self.count = 0
        self.sums: dict[str, Tensor] = {}
        self.first_bad = torch.full((), float("inf"), device=self.device)
        self.seconds_before = 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """This session trains from here on; what comes before is no part of the epoch."""
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def content(self, runtime: Runtime) -> dict[str, Any]:
        """What a checkpoint keeps of them, the sums over all ranks; every rank must ask."""
        sums = {name: sum_over_ranks(total.clone(), runtime) for name, total in self.sums.items()}
        return {"count": self.count, "sums": sums, "seconds": self.seconds if self.count else 0.0}

    def restore(self, content: dict[str, Any], runtime: Runtime) -> None:
        """Go on from ``content``; the main rank carries on what all of them had summed."""
        self.count, self.seconds_before = content["count"], content["seconds"]
        sums = {name: total.to(self.device) for name, total in content["sums"].items()}
        self.sums = sums if runtime.is_main else {name: torch.zeros_like(total) for name, total in sums.items()}

    def add(self, step: int, result: StepResult) -> None:
        self.count += 1
        loss, norm = result.loss, result.norm
        rows = {"loss": loss, **{f"loss/{name}": value for name, value in result.values.items()}, "grad_norm": norm}
        for name, value in rows.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        # A gradient that is not finite has already spoilt the weights, even where the loss before was sound.
        sound = torch.isfinite(loss) if self.skips_overflow else torch.isfinite(loss) & torch.isfinite(norm)
        bad = torch.where(sound, float("inf"), float(step))
        self.first_bad = torch.minimum(self.first_bad, bad)

    def check(self, config: TrainConfig, role: str, epoch: int, runtime: Runtime) -> None:
        """Raise NumericError if a loss or gradient was not finite; called before anything is saved.

        ``role``: the fit of a teacher has other keys than that of a student.
        """
        first = self.first_bad.item()
        where = f"at step {first:.0f}" if first != float("inf") else "in another process"
        if any_rank(first != float("inf"), runtime):
            rate, precision = (
                ("teacher.fit.lr", "teacher.precision") if role == "teacher" else ("optimizer.lr", "trainer.precision")
            )
            raise NumericError(
                f"{role}: the loss or its gradient was not finite {where} (epoch {epoch}, "
                f"{rate}={config.optimizer.lr}, {config.trainer.precision}); the last checkpoint is from before; lower "
                f"{rate}, set trainer.clip_grad=1 or {precision}=fp32"
            )

    def means(self, runtime: Runtime) -> dict[str, float]:
        count = max(1, self.count) * runtime.world
        return {name: (sum_over_ranks(total, runtime) / count).item() for name, total in self.sums.items()}

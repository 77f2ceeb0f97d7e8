"""The losses of an epoch, summed on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from distillcli.config.schema import TrainConfig
from distillcli.errors import NumericError
from distillcli.runtime import Runtime, any_rank, sum_over_ranks
from distillcli.training.step import StepResult


class Totals:
    """Sums of an epoch, kept on the device. ``skips_overflow``: steps of a non-finite gradient are not taken."""

    def __init__(self, device: torch.device, skips_overflow: bool) -> None:
        self.count = 0
        self.skips_overflow = skips_overflow
        self.sums: dict[str, Tensor] = {}
        self.first_bad = torch.full((), float("inf"), device=device)

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

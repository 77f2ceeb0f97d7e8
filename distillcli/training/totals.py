"""The losses of an epoch, summed on the device."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from distillcli.runtime import Runtime, sum_over_ranks
from distillcli.training.step import StepResult


class Totals:
    """Sums of an epoch, kept on the device, and the seconds it took, over all the sessions that trained it.

    ``skips_overflow``: steps of a non-finite gradient are not taken. ``first_bad``: the number of the first step that
    spoils the weights, infinity while there is none. ``skipped``: how many steps were not taken; their gradients have
    no share in the mean.
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
        self.skipped = torch.zeros((), device=self.device)
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
        seconds = self.seconds if self.count else 0.0
        return {"count": self.count, "sums": sums, "skipped": self.skipped.item(), "seconds": seconds}

    def restore(self, content: dict[str, Any], runtime: Runtime) -> None:
        """Go on from ``content``; the main rank carries on what all of them had summed."""
        self.count, self.seconds_before = content["count"], content["seconds"]
        self.skipped = torch.full((), content["skipped"], device=self.device)
        sums = {name: total.to(self.device) for name, total in content["sums"].items()}
        self.sums = sums if runtime.is_main else {name: torch.zeros_like(total) for name, total in sums.items()}

    def add(self, step: int, result: StepResult) -> None:
        self.count += 1
        loss, norm = result.loss, result.norm
        if self.skips_overflow:
            overflow = ~torch.isfinite(norm)
            self.skipped = self.skipped + overflow
            norm = torch.where(overflow, 0.0, norm)
        rows = {"loss": loss, **{f"loss/{name}": value for name, value in result.values.items()}, "grad_norm": norm}
        for name, value in rows.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        # A gradient that is not finite has already spoilt the weights, even where the loss before was sound.
        bad = torch.where(torch.isfinite(loss) & torch.isfinite(norm), float("inf"), float(step))
        self.first_bad = torch.minimum(self.first_bad, bad)

    def means(self, runtime: Runtime) -> dict[str, float]:
        """Of every step; of the gradient's norm over the steps that were taken. With fp16 also ``skipped_steps``."""
        count = max(1, self.count) * runtime.world
        means = {name: (sum_over_ranks(total, runtime) / count).item() for name, total in self.sums.items()}
        if not self.skips_overflow:
            return means
        skipped = self.skipped.item()
        means["grad_norm"] *= self.count / max(1.0, self.count - skipped)
        return means | {"skipped_steps": skipped}

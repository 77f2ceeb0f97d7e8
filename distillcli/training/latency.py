"""How long models take for one image, timed so that the numbers can be compared with each other.

A machine is faster in one moment than in the next. So all models are timed in turn, one pass each in every round; what
counts is the fastest tenth, which others on the machine disturb least; and where the passes differ too much, there is
no number.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from distillcli.models.ensemble import Classifier
from distillcli.runs.result import Measured
from distillcli.runtime import Runtime
from distillcli.types import Spec

WARM_UP = 3  # rounds that do not count
FEWEST, MOST = 10, 50  # rounds that do
SECONDS = 0.8  # after which no more rounds than the fewest are begun
WIDEST = 0.5  # of the fastest tenth; a wider spread says more of the machine than of the model

Architecture = tuple[Spec, int]


@dataclass(frozen=True)
class Latency:
    """Of one forward pass of one image, in milliseconds.

    ``low``: the 10 % quantile. ``spread``: from there to the median. ``setting``: how it was measured. ``doubt``: why
    there is no number, if ``low`` is None.
    """

    low: float | None
    spread: float
    setting: str
    doubt: str | None = None

    def of(self, model: Measured) -> Measured:
        return dataclasses.replace(
            model,
            latency_ms=self.low,
            latency_spread_ms=self.spread,
            latency_setting=self.setting,
            latency_doubt=self.doubt,
        )


def architecture(model: Classifier) -> Architecture:
    """Models that are equal in this take equally long."""
    return model.spec, model.image_size


@torch.no_grad()
def time_together(models: Iterable[Classifier], runtime: Runtime) -> dict[Architecture, Latency]:
    """Fp32 passes of one image of each model's own size, round by round, each architecture once in a round.

    On this rank alone. Raises Interrupted.
    """
    device, alone = runtime.device, dataclasses.replace(runtime, rank=0, world=1)
    distinct: dict[Architecture, Classifier] = {}
    for model in models:
        distinct.setdefault(architecture(model), model.eval())
    images = {key: torch.zeros(1, key[0].channels, key[1], key[1], device=device) for key in distinct}
    times: dict[Architecture, list[float]] = {key: [] for key in distinct}
    begun = perf_counter()
    for number in range(WARM_UP + MOST):
        if number >= WARM_UP + FEWEST and perf_counter() - begun > SECONDS:
            break
        for key, model in distinct.items():
            alone.obey_stop()  # large models on a CPU take a minute for all their passes
            milliseconds = _one_pass(model, images[key])
            if number >= WARM_UP:
                times[key].append(milliseconds)
    where = f"{device.type}, threads: {torch.get_num_threads()}"
    return {key: _latency(passes, f"batch of 1, fp32, {where}") for key, passes in times.items()}


def _one_pass(model: Classifier, images: Tensor) -> float:
    _wait(images.device)
    started = perf_counter()
    model.forward(images)  # not through a call that torch.compile has replaced: what is exported is not compiled
    _wait(images.device)
    return 1000 * (perf_counter() - started)


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _latency(milliseconds: list[float], setting: str) -> Latency:
    low, median = statistics.quantiles(milliseconds, n=10, method="inclusive")[0], statistics.median(milliseconds)
    if median - low > WIDEST * low:
        return Latency(None, median - low, setting, f"its median pass took {median / low:.1f} times as long")
    return Latency(low, median - low, setting)

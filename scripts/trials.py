"""Steps of a config as ``distill train`` takes them, without a run folder: what the scripts that measure share."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from distillcli.config.compose import compose
from distillcli.config.schema import TrainConfig
from distillcli.distillation.bench import fresh_fit, wait_for
from distillcli.distillation.plan import make_plan
from distillcli.models.memory_layout import settle_layout
from distillcli.runtime import Runtime, seed_everything, start
from distillcli.sources.open import open_source
from distillcli.teachers.cached import with_cache
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.training.engine import Loop, compiled, ready, trained_module
from distillcli.training.fit import Fit
from distillcli.training.step import StepResult, train_step
from distillcli.types import Batch
from distillcli.views.loader import Data, open_data


@dataclass
class Trial:
    """A fit of fresh weights, made ready; all weights depend on the seed alone."""

    fit: Fit
    loop: Loop
    model: nn.Module
    runtime: Runtime
    taken: int = 0
    waiting: Iterator[list[Batch]] = field(init=False)

    def __post_init__(self) -> None:
        showing = self.loop.showing
        self.waiting = itertools.chain.from_iterable(showing.epoch(epoch) for epoch in itertools.count(1))

    def step(self) -> StepResult:
        """The next step, with all that the engine does around it."""
        loop, parts = self.loop, next(self.waiting)
        seed_everything(self.fit.config.seed, "step", self.taken, self.runtime.rank)
        loop.schedule.step_update(self.taken)
        result = train_step(parts, loop.teacher, self.model, loop.update, self.taken / loop.showing.steps_per_epoch)
        self.taken += 1
        if loop.state.ema is not None:
            loop.state.ema.update(self.fit.student, step=self.taken)
        loop.state.totals.add(self.taken, result)
        return result

    def seconds_per_step(self, count: int) -> float:
        """Of ``count`` steps that the host queues as it does in training, after a few that do not count."""
        for _ in range(5):
            self.step()
        wait_for(self.runtime.device)
        started = time.perf_counter()
        for _ in range(count):
            self.step()
        wait_for(self.runtime.device)
        return (time.perf_counter() - started) / count

    def weights(self) -> dict[str, Any]:
        return {name: value.cpu() for name, value in self.fit.student.net.state_dict().items()}


def open_trial(config: TrainConfig, data: Data, runtime: Runtime, cached: bool = False) -> Trial:
    """``cached``: the teacher's rows of ``teacher.cache.views`` passes are written before the first step."""
    plan = make_plan(config, data.source)
    plan = plan.settled(settle_layout(config, plan.inputs, runtime))
    fit = fresh_fit(plan, data, runtime)
    if cached:
        assert isinstance(fit.teacher, FrozenTeacher)
        fit = dataclasses.replace(fit, teacher=with_cache(fit.config, data, fit.teacher, runtime)[0])
    loop = ready(fit, runtime)
    if cached:
        assert loop.teacher is not None
        for epoch in range(1, config.teacher.cache.views + 1):
            for batch in itertools.chain.from_iterable(loop.showing.epoch(epoch)):
                loop.teacher(batch)
    loop = compiled(loop, fit, runtime)
    return Trial(fit, loop, trained_module(loop, runtime).train(), runtime)


@contextmanager
def trial(*overrides: str, cached: bool = False) -> Iterator[Trial]:
    """The trial of ``distill train`` with these overrides, on data of its own."""
    config = compose("train", list(overrides))
    assert isinstance(config, TrainConfig)
    source = open_source(config.dataset)
    with start(config.trainer) as runtime:
        yield open_trial(config, open_data(source, config.dataset, config.trainer.workers, runtime), runtime, cached)


def equal_bits(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())

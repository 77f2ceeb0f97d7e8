"""Compiled models: what a step asks and calls. Nothing is compiled here: it takes a minute and says little of a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import CPU, open_tiny, tiny
from torch import Tensor, nn

from distillcli.distillation.bench import fresh_fit
from distillcli.distillation.plan import make_plan
from distillcli.teachers.compiled import CompiledTeacher
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.training.engine import Loop, compiled, ready, trained_module
from distillcli.training.fit import Fit
from distillcli.training.step import train_step
from distillcli.types import Output, Taps

GPU = dataclasses.replace(CPU, device=torch.device("cuda"))  # where models are said to be; they stay where they are


class Replayed(nn.Module):
    """Answers like a CUDA graph: always in the same memory, which holds nonsense as soon as another graph runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.answered: list[Output] = []

    def forward(self, images: Tensor, taps: Taps) -> Output:
        answer: Output = self.model(images, taps).clone()
        self.answered.append(answer)
        return answer

    def overwrite(self) -> None:
        for answer in self.answered:
            for part in (answer.logits, *answer.stages.values()):
                part.fill_(torch.nan)


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: Replayed(model))
    monkeypatch.setattr(nn.Module, "compile", lambda _model, **_: None)


def opened(*overrides: str) -> tuple[Loop, Fit]:
    config = tiny("trainer.compile=true", *overrides)
    data = open_tiny(config)
    fit = fresh_fit(make_plan(config, data.source), data, CPU)
    return ready(fit, CPU), fit


ENSEMBLE = "teacher.members=[{name: test_resnet}, {name: test_efficientnet, weight: 2}]"


@pytest.mark.parametrize("how", ["distill=kd", "distill=hint", ENSEMBLE])
def test_answers_of_graphs_outlive_them(how: str) -> None:
    loop, fit = opened(how)
    (batch,) = next(iter(loop.showing.epoch(1)))
    asked = compiled(loop, fit, GPU).teacher
    assert isinstance(asked, CompiledTeacher)
    assert isinstance(loop.teacher, FrozenTeacher)
    assert asked.live is loop.teacher  # validation goes on asking the one that takes any images
    found, expected = asked(batch), loop.teacher(batch)
    assert isinstance(asked.fast.inference_copy, Replayed)
    asked.fast.inference_copy.overwrite()
    assert torch.equal(found.logits, expected.logits)
    assert found.stages.keys() == expected.stages.keys()
    assert (how == "distill=hint") == bool(found.stages)
    for stage, maps in expected.stages.items():
        assert torch.equal(found.stages[stage], maps)
        assert found.stages[stage].stride() == maps.stride()


def test_a_step_of_compiled_models_is_that_of_the_others() -> None:
    losses = []
    for runtime in (CPU, GPU):
        loop, fit = opened()
        (batch,) = next(iter(loop.showing.epoch(1)))
        loop = compiled(loop, fit, runtime)
        assert isinstance(loop.teacher, FrozenTeacher) == (runtime is CPU)
        model = trained_module(loop, runtime).train()
        losses.append(train_step([batch], loop.teacher, model, loop.update, 0.0).loss.item())
    assert losses[0] == losses[1]


def test_what_is_kept_in_a_cache_does_not_depend_on_compiling() -> None:
    loop, fit = opened()
    asked = loop.teacher
    assert isinstance(asked, FrozenTeacher)

    class Stored:
        """In the place of a cached teacher."""

        live, repaired = asked, 0
        __call__ = asked.__call__

    stored = dataclasses.replace(loop, teacher=Stored())
    assert compiled(stored, fit, GPU).teacher is stored.teacher

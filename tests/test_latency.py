"""Latency: all models in turn, the fastest tenth, and no number where the passes differ too much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import spec
from tiny import CPU
from torch import Tensor, nn

from distillcli.distillation.teaching import Teaching
from distillcli.distillation.timing import with_latency
from distillcli.errors import Interrupted
from distillcli.models.ensemble import Ensemble
from distillcli.report.sentences import latency_sentence
from distillcli.runs.result import Measured, Result
from distillcli.signals import Stop
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.training import latency
from distillcli.training.latency import FEWEST, MOST, WARM_UP, Latency, architecture, time_together
from distillcli.types import Output, Taps

ROUNDS = WARM_UP + MOST


class Clock:
    """Stands still but for what the models take."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.seconds


class StandIn(nn.Module):
    """Takes as many milliseconds as ``cost`` says of its pass, counted from 0."""

    def __init__(self, name: str, clock: Clock, cost: Callable[[int], float], size: int = 8) -> None:
        super().__init__()
        self.spec = replace(spec(4), name=name)
        self.image_size, self.clock, self.cost = size, clock, cost
        self.passes = 0

    def forward(self, images: Tensor, taps: Taps | None = None) -> Output:
        assert images.shape == (1, 3, self.image_size, self.image_size)
        assert not self.training
        self.clock.calls.append(self.spec.name)
        self.clock.seconds += self.cost(self.passes) / 1000
        self.passes += 1
        return Output(torch.zeros(1, self.spec.classes), None, {})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(latency, "perf_counter", made)
    return made


def timed(*models: Any) -> list[Latency]:
    found = time_together(models, CPU)
    return [found[architecture(model)] for model in models]


@pytest.mark.fault("F6.5")
def test_models_are_timed_in_turn_and_an_architecture_once(clock: Clock) -> None:
    """A machine that slows down half way slows all of them down."""
    late = WARM_UP + MOST // 2
    one, two = (
        StandIn(name, clock, lambda n, cost=cost: cost * (1.2 if n > late else 1))
        for name, cost in (("a", 2), ("b", 4))
    )
    first, second, same = timed(one, two, StandIn("a", clock, lambda _: 1e9))
    assert clock.calls == ["a", "b"] * ROUNDS
    assert first == same
    assert (first.low, second.low) == pytest.approx((2, 4))
    assert second.spread == pytest.approx(2 * first.spread)


@pytest.mark.fault("F6.5")
def test_the_fastest_tenth_counts_beside_its_spread(clock: Clock) -> None:
    (found,) = timed(StandIn("a", clock, lambda n: 1000.0 if n < WARM_UP else 10.0 if n % 5 == 0 else 12.0))
    assert found.low == pytest.approx(10.0)
    assert found.spread == pytest.approx(2.0)
    assert found.setting == f"batch of 1, fp32, cpu, threads: {torch.get_num_threads()}"


@pytest.mark.fault("F6.5")
def test_there_is_no_number_where_the_passes_differ_too_much(clock: Clock) -> None:
    steady = StandIn("a", clock, lambda _: 5.0)
    (found, sure) = timed(StandIn("b", clock, lambda n: 5.0 if n % 5 == 0 else 20.0), steady)
    assert (found.low, found.spread) == (None, pytest.approx(15.0))
    assert found.doubt == "its median pass took 4.0 times as long"
    labelled = [("teacher", found.of(Measured())), ("student", sure.of(Measured()))]
    setting = f"batch of 1, fp32, cpu, threads: {torch.get_num_threads()}"
    begin, end = f"Latency: 10 % quantile of single passes ({setting}); ", f"none for teacher, as {found.doubt}."
    assert latency_sentence(labelled) == f"{begin}the median is at most 0.0 % longer; {end}"
    assert latency_sentence(labelled[:1]) == f"{begin}{end}"
    assert latency_sentence([("student", Measured(latency_ms=3.0))]) == "", "of an earlier version"


@pytest.mark.parametrize(("milliseconds", "rounds"), [(0.1, ROUNDS), (1000.0, WARM_UP + FEWEST)])
def test_small_models_cost_little_and_large_ones_enough_rounds(clock: Clock, milliseconds: float, rounds: int) -> None:
    model = StandIn("a", clock, lambda _: milliseconds)
    timed(model)
    assert model.passes == rounds
    assert clock.seconds < 1 or rounds == WARM_UP + FEWEST


def test_a_stop_is_obeyed_between_two_passes(clock: Clock) -> None:
    stop = Stop()

    def ask(number: int) -> float:
        stop.exit_code = 143 if number == 1 else 0
        return 1.0

    model = StandIn("a", clock, ask)
    with pytest.raises(Interrupted) as stopped:
        time_together([model], replace(CPU, stop=stop))  # type: ignore[list-item]
    assert (model.passes, stopped.value.exit_code) == (2, 143)


@pytest.mark.fault("F6.5")
def test_every_model_of_a_run_has_its_number(clock: Clock) -> None:
    """An ensemble is one model; the control shares the number of the student."""
    costs = {"t": 3, "a": 4, "s": 5, "p": 6}
    made: dict[str, Any] = {name: StandIn(name, clock, lambda _, cost=cost: cost) for name, cost in costs.items()}
    ensemble = Ensemble([made["t"], StandIn("u", clock, lambda _: 7)], [1, 1], [1, 1], "logits")  # type: ignore[list-item]
    teaching = Teaching(teacher=FrozenTeacher(ensemble, "bf16", Taps()), assistants=(made["a"],))
    one = Measured()
    result = Result(student=one, teacher=one, chain=(one,), peers=(one,), baseline=one)
    full = with_latency(result, teaching, [made["s"], made["p"]], made["s"], CPU)
    models = (full.teacher, *full.chain, full.student, *full.peers, full.baseline)
    assert [model and model.latency_ms for model in models] == pytest.approx([10, 4, 5, 6, 5])
    assert made["s"].passes == made["p"].passes
    alone = with_latency(Result(student=one), Teaching(), [made["s"]], made["s"], CPU)
    assert (alone.teacher, alone.baseline) == (None, None)
    assert alone.student is not None
    assert alone.student.latency_ms == pytest.approx(5)

"""Learning rates as a function of the step, and which weights decay."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from distillcli.config.compose import compose
from distillcli.config.model_names import SCHEDULES
from distillcli.config.schema import DistillConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from distillcli.errors import UserError
from distillcli.models.backbone import build
from distillcli.terms.objective import Objective
from distillcli.training.learners import Distillation
from distillcli.training.optim import build_optimizer, build_schedule
from distillcli.types import Inputs
from tests.tiny import setting

EPOCHS, STEPS, BASE = 10, 7, 0.4


def rates(first: int = 0, **options: Any) -> list[float]:
    """The rate of every step from ``first`` on, of a schedule built for that."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=BASE)
    schedule = build_schedule(ScheduleConfig(**options), optimizer, EPOCHS, STEPS)
    seen = []
    for step in range(first, EPOCHS * STEPS):
        schedule.step_update(step)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("least", [0.0, 0.01])
def test_cosine_is_its_formula_with_a_linear_warm_up(warmup: float, least: float) -> None:
    first = warmup * STEPS
    expected = [
        1e-5 + (BASE - 1e-5) * step / first
        if step < first
        else least + (BASE - least) * (1 + math.cos(math.pi * (step - first) / (EPOCHS * STEPS - first))) / 2
        for step in range(EPOCHS * STEPS)
    ]
    assert rates(name="cosine", warmup_epochs=warmup, min_lr=least) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["cosine", "poly", "tanh"])
def test_a_smooth_schedule_rises_to_the_base_rate_at_the_end_of_the_warm_up_then_falls(name: str) -> None:
    seen, peak = rates(name=name, warmup_epochs=2.0), 2 * STEPS
    assert seen[0] == 1e-5
    assert seen[peak] == pytest.approx(BASE, rel=1e-4)  # tanh begins at 0.99997 of it
    assert all(one < two for one, two in pairwise(seen[: peak + 1]))
    assert all(one > two for one, two in pairwise(seen[peak:]))
    assert max(seen) == seen[peak]


@pytest.mark.parametrize("name", ["cosine", "tanh", "wsd"])
def test_the_last_step_is_near_the_least_rate(name: str) -> None:
    last = rates(name=name, warmup_epochs=2.0, min_lr=0.01, decay_epochs=5.0)[-1]
    assert 0.01 < last < 0.01 + 0.03 * BASE


def test_multistep_drops_at_the_first_step_after_each_milestone() -> None:
    expected = [BASE * 0.1 ** ((step >= 6 * STEPS) + (step >= 8 * STEPS)) for step in range(EPOCHS * STEPS)]
    assert rates(name="multistep", milestones=[6, 8]) == pytest.approx(expected, rel=1e-12)


def test_step_drops_every_so_many_epochs() -> None:
    expected = [BASE * 0.5 ** (step // (3 * STEPS)) for step in range(EPOCHS * STEPS)]
    assert rates(name="step", decay_epochs=3.0, decay_rate=0.5) == pytest.approx(expected, rel=1e-12)


def test_wsd_is_constant_until_its_decay() -> None:
    seen = rates(name="wsd", warmup_epochs=2.0, decay_epochs=3.0)
    assert seen[2 * STEPS : 7 * STEPS] == [BASE] * (5 * STEPS)
    assert all(one > two for one, two in pairwise(seen[7 * STEPS :]))


def test_constant_is_the_base_rate() -> None:
    assert rates(name="constant") == [BASE] * (EPOCHS * STEPS)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.5, 2.0])
def test_every_schedule_stays_positive_and_within_the_base_rate(name: str, warmup: float) -> None:
    seen = rates(name=name, warmup_epochs=warmup, milestones=[6, 8], decay_epochs=5.0)
    assert len(seen) == EPOCHS * STEPS
    assert min(seen) > 0
    assert max(seen) <= BASE


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("step", [3, 14, 50])
def test_a_fresh_schedule_in_the_middle_goes_on_with_the_same_rates(name: str, step: int) -> None:
    options = {"name": name, "warmup_epochs": 1.0, "milestones": [6, 8], "decay_epochs": 5.0}
    assert rates(first=step, **options) == rates(**options)[step:]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "cosine", "warmup_epochs": 10.0}, "schedule.warmup_epochs=10.0"),
        ({"name": "constant", "warmup_epochs": 11.0}, "schedule.warmup_epochs=11.0"),
        ({"name": "wsd"}, "schedule.decay_epochs=30.0"),
        ({"name": "wsd", "warmup_epochs": 3.0, "decay_epochs": 8.0}, "schedule.decay_epochs=8.0"),
        ({"name": "multistep"}, "schedule.milestones"),
    ],
)
def test_a_schedule_that_does_not_fit_the_epochs_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        rates(**options)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_norms_and_biases_have_no_weight_decay_and_everything_is_trained_once(name: str) -> None:
    student = build(ModelConfig(name="test_resnet"), Inputs(5, 32), "student")
    terms = DistillConfig(name="test", alpha=None, terms={"ce": {}, "hint": {"stage": -1}})
    model = Distillation(student, Objective(terms, setting(student.spec, student.spec)))
    optimizer = build_optimizer(OptimizerConfig(name=name, lr=0.1, weight_decay=0.05), [student.net], model.objective)
    decays = {id(value): group["weight_decay"] for group in optimizer.param_groups for value in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters())) == len(decays)
    assert any(value.dim() > 1 for value in model.objective.parameters())
    for key, value in model.named_parameters():
        assert decays[id(value)] == (0.0 if value.dim() <= 1 else 0.05), key
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}


@pytest.mark.fault("F8.12")
def test_the_benchmarks_momentum_is_plain_and_decays_everything() -> None:
    """Norms, biases and parts of terms too; one step is w - lr (g + wd w)."""
    config = compose("train", ["optimizer=momentum", "distill=none"])
    assert isinstance(config, TrainConfig)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.momentum) == (0.05, 5e-4, 0.9)
    student = build(ModelConfig(name="test_resnet"), Inputs(5, 32), "student")
    terms = DistillConfig(name="test", alpha=None, terms={"ce": {}, "hint": {"stage": -1}})
    model = Distillation(student, Objective(terms, setting(student.spec, student.spec)))
    optimizer = build_optimizer(config.optimizer, [student.net], model.objective)
    assert {(group["weight_decay"], group["nesterov"], group["momentum"]) for group in optimizer.param_groups} == {
        (5e-4, False, 0.9)
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    before = [value.detach().clone() for value in model.parameters()]
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old - 0.05 * (1 + 5e-4 * old), rtol=1e-6, atol=1e-7)


def test_a_wrong_argument_of_an_optimizer_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        build_optimizer(OptimizerConfig(name="sgd", args={"no_such_argument": 1}), [nn.Linear(2, 2)], nn.Identity())
    message = str(caught.value)
    assert message.startswith("optimizer.name=sgd: ")
    assert "no_such_argument" in message
    assert "optimizer.args" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw", "lookahead_adamw"])
def test_one_kernel_for_all_weights_is_the_plain_optimizer_within_rounding(name: str) -> None:
    ends = []
    for fused in ({}, {"fused": False}):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        optimizer = build_optimizer(
            OptimizerConfig(name=name, lr=0.05, weight_decay=0.1, args=fused), [model], nn.Identity()
        )
        assert all(group["fused"] is not bool(fused) for group in optimizer.param_groups)
        for _ in range(20):
            model(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append([parameter.detach() for parameter in model.parameters()])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)


def test_an_optimizer_without_such_a_kernel_is_built_as_before() -> None:
    optimizer = build_optimizer(OptimizerConfig(name="lamb", lr=0.05), [nn.Linear(2, 2)], nn.Identity())
    assert all("fused" not in group for group in optimizer.param_groups)


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_what_a_model_exempts_from_decay_is_exempt(layer_decay: float | None) -> None:
    net = build(ModelConfig(name="test_vit"), Inputs(5, 32), "student").net
    config = OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.05, layer_decay=layer_decay)
    optimizer = build_optimizer(config, [net], nn.Identity())
    decays = {id(value): group["weight_decay"] for group in optimizer.param_groups for value in group["params"]}
    assert net.pos_embed.dim() > 1
    assert net.no_weight_decay() >= {"pos_embed", "cls_token"}
    assert decays[id(net.pos_embed)] == decays[id(net.cls_token)] == 0
    assert decays[id(net.head.weight)] == 0.05


@pytest.mark.parametrize("name", ["adamw", "lookahead_adamw"])
def test_rates_fall_by_the_factor_from_the_classifier_to_the_stem_and_the_objective_has_the_full_one(name: str) -> None:
    student = build(ModelConfig(name="test_vit"), Inputs(5, 32), "student")
    terms = DistillConfig(name="test", alpha=None, terms={"ce": {}, "hint": {"stage": -1}})
    objective = Objective(terms, setting(student.spec, student.spec))
    config = OptimizerConfig(name=name, lr=BASE, weight_decay=0.05, layer_decay=0.5)
    optimizer = build_optimizer(config, [student.net], objective)
    schedule = build_schedule(ScheduleConfig(name="cosine"), optimizer, EPOCHS, STEPS)
    for step in (0, 3 * STEPS):
        schedule.step_update(step)
        full = BASE * (1 + math.cos(math.pi * step / (EPOCHS * STEPS))) / 2
        rate = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
        for value in objective.parameters():
            assert rate[id(value)] == pytest.approx(full)
        depth = len(student.net.blocks)
        expected = {"head.weight": 0, "patch_embed.proj.weight": depth + 1}
        expected |= {f"blocks.{block}.mlp.fc1.weight": depth - block for block in range(depth)}
        for key, below in expected.items():
            assert rate[id(student.net.get_parameter(key))] == pytest.approx(full * 0.5**below), key

"""Ensembles of teachers: the mean they promise, and the way from config to closing numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distillcli.config.schema import ModelConfig
from distillcli.distillation.teaching import find_teacher
from distillcli.errors import UserError
from distillcli.models.backbone import Backbone, build
from distillcli.models.ensemble import Ensemble
from distillcli.runtime import seed_everything
from distillcli.teachers.frozen import describe_teacher
from distillcli.terms.objective import Objective
from distillcli.types import LOGITS_ONLY, Inputs
from tests.tiny import Watch, open_tiny, setting, tiny

MEMBERS = "teacher.members=[{name: test_resnet},{name: test_resnet, seed: 5},{name: test_vit, weight: 2.0}]"


def backbones() -> list[Backbone]:
    found = []
    for seed, name in enumerate(("test_resnet", "test_resnet", "test_vit")):
        seed_everything("member", seed)
        found.append(build(ModelConfig(name), Inputs(5, 32), "teacher").eval())
    return found


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def probabilities(backbone: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    logits = backbone(images).logits.detach().double().numpy()
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_answer_is_the_weighted_mean_of_the_probabilities(images: torch.Tensor) -> None:
    members = backbones()
    weights = [1.0, 3.0, 0.5]
    expected = sum(w * probabilities(m, images) for w, m in zip(weights, members, strict=True)) / sum(weights)
    answer = probabilities(Ensemble(members, weights, [1.0] * 3, "probabilities"), images)
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-7)


def test_the_answer_is_the_weighted_mean_of_the_logits(images: torch.Tensor) -> None:
    members = backbones()
    expected = sum(w * m(images).logits for w, m in zip([0.25, 0.25, 0.5], members, strict=True))
    torch.testing.assert_close(Ensemble(members, [1.0, 1.0, 2.0], [1.0] * 3, "logits")(images).logits, expected)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_an_ensemble_of_equals_is_its_member(average: str, images: torch.Tensor) -> None:
    member = backbones()[0]
    together = Ensemble([member, member, member], [1.0, 2.0, 3.0], [1.0] * 3, average)
    np.testing.assert_allclose(probabilities(together, images), probabilities(member, images), rtol=1e-5, atol=1e-7)


def test_members_are_fitted_once_each_with_their_own_seed(tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}", "teacher=ensemble", MEMBERS, "teacher.fit.epochs=1")
    data = open_tiny(config)
    watch = Watch()
    teacher, runs = find_teacher(config, data, LOGITS_ONLY, watch.session)
    assert watch.labels == ["teacher"] * 3
    assert len(set(runs)) == 3
    assert isinstance(teacher.backbone, Ensemble)
    assert not any(parameter.requires_grad for parameter in teacher.backbone.parameters())
    assert not any(module.training for module in teacher.backbone.modules())
    torch.testing.assert_close(teacher.backbone.weights, torch.tensor([0.25, 0.25, 0.5]))
    again = Watch()
    assert find_teacher(config, data, LOGITS_ONLY, again.session)[1] == runs
    assert again.labels == []


def test_the_cost_is_that_of_all_members() -> None:
    config = tiny("teacher=ensemble", MEMBERS)
    spec = describe_teacher(config, Inputs(4, 32))
    single = describe_teacher(tiny(), Inputs(4, 32))
    assert spec.params > 2 * single.params
    assert spec.macs > 2 * single.macs


@pytest.mark.parametrize("distill", ["hint", "rkd"])
def test_terms_on_features_are_refused(distill: str) -> None:
    config = tiny("teacher=ensemble", MEMBERS, f"distill={distill}")
    with pytest.raises(UserError, match="ensemble"):
        Objective(
            config.distill, setting(describe_teacher(tiny(), Inputs(4, 32)), describe_teacher(config, Inputs(4, 32)))
        )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teacher.average=median", "teacher.average=median"),
        ("teacher.members=[{name: test_resnett}]", "teacher.members[0].name=test_resnett"),
        ("teacher.members=[{name: test_resnet, weight: 0}]", "teacher.members[0].weight=0"),
        ("teacher.members=[{name: test_resnet, wieght: 1}]", "wieght"),
    ],
)
def test_mistakes_are_named(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny("teacher=ensemble", override)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)

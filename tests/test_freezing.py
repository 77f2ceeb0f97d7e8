"""Frozen layers: what does not move, what does, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from distillcli.config.schema import ModelConfig
from distillcli.errors import UserError
from distillcli.formats.timm_folder import write as export
from distillcli.models.backbone import Backbone, build
from distillcli.models.freezing import freeze
from distillcli.models.weights import read_weights
from distillcli.training.optim import build_optimizer
from distillcli.types import Inputs
from tests.test_models import families
from tests.tiny import last, tiny, train

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")


def trained(backbone: Backbone) -> set[str]:
    return {name for name, value in backbone.net.named_parameters() if value.requires_grad}


def fresh(name: str = "test_resnet", size: int = 32) -> Backbone:
    return build(ModelConfig(name), Inputs(4, size), "student")


@pytest.fixture
def start(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    export(fresh(), tmp_path / "start", tuple(f"pattern {number}" for number in range(4)), 1.0)
    return tmp_path / "start"


@pytest.mark.parametrize(
    ("which", "moves"),
    [("1", ("layer", "fc.")), ("3", ("layer3.", "layer4.", "fc.")), ("backbone", ("fc.",))],
)
@pytest.mark.parametrize("ema", ["null", "0.9"])
def test_only_what_is_not_frozen_moves(which: str, moves: tuple[str, ...], ema: str, start: Path) -> None:
    """With a teacher, weight decay, two epochs and their evaluations in between: weights and running statistics."""
    own = ("student.name=test_resnet", f"student.checkpoint={start}", f"student.freeze={which}")
    train(tiny(*own, f"trainer.ema={ema}"), start.parent / "run")
    content = last(start.parent / "run")
    before = read_weights(str(start)).state
    for weights in (content["student"], content["ema"] or content["student"]):
        for name, value in weights.items():
            moved = not torch.equal(value, before[name])
            assert moved == name.startswith(moves), name


@families
def test_frozen_layers_keep_their_statistics_and_get_no_gradient(name: str, size: int) -> None:
    backbone = fresh(name, size)
    freeze(backbone, "backbone", "student")
    assert trained(backbone)
    assert all(key.startswith(backbone.classifier) for key in trained(backbone))
    before = {key: value.clone() for key, value in backbone.net.state_dict().items()}
    backbone.eval()
    backbone.train()
    backbone(torch.rand(4, 3, size, size)).logits.square().sum().backward()
    for key, value in backbone.net.state_dict().items():
        assert torch.equal(value, before[key]), key
    gradients = {key for key, value in backbone.net.named_parameters() if value.grad is not None}
    assert gradients == trained(backbone)


@families
def test_groups_are_frozen_from_the_stem_on(name: str, size: int) -> None:
    seen, backbone = [], fresh(name, size)
    for which in ("1", "2", "3"):
        freeze(backbone, which, "student")
        seen.append(trained(backbone))
    assert seen[0] > seen[1] > seen[2] > set()
    assert len(seen[0]) < len(list(backbone.net.named_parameters()))


def test_the_optimizer_has_only_what_is_trained() -> None:
    backbone, config = fresh(), tiny().optimizer
    freeze(backbone, "2", "student")
    for layer_decay in (None, 0.5):
        config.layer_decay = layer_decay
        groups = build_optimizer(config, [backbone.net], nn.Identity()).param_groups
        inside = {id(value) for group in groups for value in group["params"]}
        assert inside == {id(value) for value in backbone.net.parameters() if value.requires_grad}


def test_more_groups_than_there_are_is_one_line() -> None:
    with pytest.raises(UserError, match=r"student\.freeze=6: test_resnet has 6 groups.* at most 5") as caught:
        freeze(fresh(), "6", "student")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"student\.freeze=1: timm does not group the layers of rdnet_tiny"):
        freeze(fresh("rdnet_tiny", 64), "1", "student")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["student.freeze=2"], "student.freeze=2: the frozen layers would stay random"),
        (["teacher.freeze=backbone"], "teacher.freeze=backbone: the frozen layers would stay random"),
        (["student.freeze=0", "student.pretrained=true"], "student.freeze=0: use none, backbone, or a number"),
        (["optimizer.layer_decay=1.5"], "optimizer.layer_decay=1.5: must be above 0"),
        (["teacher.fit.layer_decay=0"], "teacher.fit.layer_decay=0"),
    ],
)
def test_mistakes_are_refused_before_torch_loads(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny(*overrides)
    assert said in str(caught.value)

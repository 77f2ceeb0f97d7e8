"""Stages before the activation that ends them: found in models of many families, and changing nothing else."""

from __future__ import annotations

import pytest
import torch

from distillcli.config.schema import ModelConfig
from distillcli.models.backbone import Backbone, build
from distillcli.models.inference import for_inference
from distillcli.runtime import autocast
from distillcli.types import Inputs, Taps
from tests.test_inference import CPU, images, trained

# The stages that end in an activation; all others end in a convolution, a batch norm or a sum of them.
FAMILIES = {
    "resnet18": {0, 1, 2, 3, 4},
    "resnet50": {0, 1, 2, 3, 4},
    "resnet50d": {0, 1, 2, 3, 4},
    "seresnext26d_32x4d": {0, 1, 2, 3, 4},
    "regnetx_002": {0, 1, 2, 3, 4},
    "regnety_002": {0, 1, 2, 3, 4},
    "dla34": {0, 1, 2, 3, 4, 5},
    "mobilenetv2_050": set(),
    "mobilenetv3_small_100": {0, 4},
    "mobilenetv4_conv_small": {0, 1, 2, 4},
    "efficientnet_b0": set(),
    "resnetv2_18": set(),
}
families = pytest.mark.parametrize("name", FAMILIES)
TOKENS = ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "levit_128s"]


def all_stages(backbone: Backbone) -> tuple[int, ...]:
    return tuple(range(len(backbone.spec.stage_shapes)))


@families
@torch.no_grad()
def test_the_activation_of_it_is_the_stage_and_all_else_is_as_before(name: str) -> None:
    backbone = trained(name)
    stages = all_stages(backbone)
    assert set(backbone.endings) == FAMILIES[name]
    assert None not in backbone.spec.endings
    plain = backbone(images(), Taps(stages, embedding=True))
    both = backbone(images(), Taps(stages, embedding=True, preactivations=stages))
    assert torch.equal(both.logits, plain.logits)
    assert torch.equal(both.embedding, plain.embedding)
    for stage in stages:
        assert torch.equal(both.stages[stage], plain.stages[stage])
        before = both.preactivations[stage]
        after = backbone.endings[stage](before.clone()) if stage in backbone.endings else before
        assert torch.equal(after, plain.stages[stage])
        assert before.min() < 0
    alone = backbone(images(), Taps(preactivations=stages))
    assert all(torch.equal(alone.preactivations[stage], both.preactivations[stage]) for stage in stages)
    assert not alone.stages
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


@families
@torch.no_grad()
def test_the_fast_copy_of_a_teacher_gives_the_same(name: str) -> None:
    backbone = trained(name)
    taps = Taps(preactivations=all_stages(backbone))
    expected = backbone(images(), taps).preactivations
    folded = for_inference(backbone, "fp32")(images(), taps).preactivations
    with autocast(CPU, "bf16"):
        rounded = for_inference(backbone, "bf16")(images(), taps).preactivations
    for stage, maps in expected.items():
        assert (folded[stage] - maps).abs().max() < 1e-4 * maps.abs().max()
        assert (rounded[stage] - maps).abs().mean() < 0.05 * maps.abs().mean()


@torch.no_grad()
def test_before_the_activation_of_a_resnet_is_the_sum_of_branch_and_shortcut() -> None:
    backbone = trained("resnet18")
    first, last = backbone.net.layer4
    seen = backbone(images(), Taps((-2,), preactivations=(-1,)))
    shortcut = first(seen.stages[-2])
    branch = last.bn2(last.conv2(torch.relu(last.bn1(last.conv1(shortcut)))))
    torch.testing.assert_close(seen.preactivations[-1], branch + shortcut)


@pytest.mark.parametrize("name", TOKENS)
def test_what_layer_norms_or_tokens_end_in_is_not_known(name: str) -> None:
    spec = build(ModelConfig(name), Inputs(7, 224), "teacher").spec
    assert None in spec.endings[-2:]

"""The fast copy of a frozen model answers as the model does, whatever family it is of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distillcli.config.schema import ModelConfig
from distillcli.models.backbone import Backbone, build, place
from distillcli.models.inference import NORMS, cast_weights, fold_norms, for_inference
from distillcli.models.weights import weights_fingerprint
from distillcli.runtime import autocast, seed_everything
from distillcli.types import Inputs, Taps

CPU = torch.device("cpu")
SIZE = 64
# Share of the batch norms that go away at least; in pre-activation networks some follow a sum or a concatenation.
FAMILIES = {
    "resnet18": 1.0,
    "mobilenetv3_small_100": 1.0,
    "efficientnet_b0": 1.0,
    "tf_efficientnet_b0": 1.0,  # pads unevenly
    "regnetx_002": 1.0,
    "levit_128s": 1.0,
    "resnetv2_18": 0.4,
    "convnext_atto": 0.0,
    "vit_tiny_patch16_224": 0.0,
    "nf_resnet26": 0.0,  # standardises its weights
}
families = pytest.mark.parametrize("name", FAMILIES)


def trained(name: str, channels_last: bool = True) -> Backbone:
    """A model whose norms have seen data: their statistics and scales are those of nothing special."""
    seed_everything(0, name)
    backbone = place(build(ModelConfig(name), Inputs(7, SIZE), "teacher"), CPU, channels_last)
    for module in backbone.modules():
        if isinstance(module, NORMS):
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return backbone.eval()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def norms(backbone: Backbone) -> int:
    return sum(type(module) in NORMS for module in backbone.modules())


@families
@torch.no_grad()
def test_a_folded_model_answers_as_before_in_everything_that_can_be_tapped(name: str) -> None:
    backbone = trained(name)
    before = weights_fingerprint(backbone.state_dict())
    folded = fold_norms(backbone)
    assert weights_fingerprint(backbone.state_dict()) == before
    assert norms(backbone) - norms(folded) >= FAMILIES[name] * norms(backbone)
    assert (folded is backbone) == (norms(folded) == norms(backbone))
    taps = Taps(tuple(range(len(backbone.spec.stage_shapes))), embedding=True)
    expected, found = backbone(images(), taps), folded(images(), taps)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.embedding, expected.embedding, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.stages, expected.stages, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_convolution_that_serves_two_norms_leaves_the_model_alone() -> None:
    """Folding would give the one convolution the statistics of both norms; comparing the answers finds out."""
    backbone = trained("resnet18")
    block = backbone.net.layer1[0]
    block.conv2 = block.conv1
    assert fold_norms(backbone) is backbone


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224", "nf_resnet26"])
@torch.no_grad()
def test_weights_kept_in_bf16_give_the_bits_of_autocast(name: str) -> None:
    backbone = trained(name)
    cast = cast_weights(backbone, torch.bfloat16)
    assert any(parameter.dtype == torch.bfloat16 for parameter in cast.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in backbone.parameters())
    with autocast(CPU, "bf16"):
        assert torch.equal(cast(images()).logits, backbone(images()).logits)


@torch.no_grad()
def test_an_fp32_model_without_batch_norm_is_not_copied() -> None:
    backbone = trained("vit_tiny_patch16_224")
    assert for_inference(backbone, "fp32") is backbone
    assert for_inference(backbone, "bf16") is not backbone


@torch.no_grad()
def test_the_fast_copy_keeps_the_memory_layout() -> None:
    for channels_last in (True, False):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        fast = for_inference(trained("resnet18", channels_last), "bf16")
        weights = [value for value in fast.parameters() if value.dim() == 4]
        assert all(value.is_contiguous(memory_format=layout) for value in weights)

"""Backbone and Spec over many families of timm: one normalisation, the same answers tapped or not, known sizes."""

from __future__ import annotations

import functools
import resource
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from distillcli.config.schema import ModelConfig
from distillcli.errors import UserError
from distillcli.models.backbone import Backbone, build, describe, place
from distillcli.runtime import seed_everything
from distillcli.types import Inputs, Taps

# Convolutions, depthwise, attention, windows, hybrids; heads of one layer, of several, of two classifiers.
FAMILIES = [
    ("test_resnet", 32),
    ("test_vit", 32),
    ("test_efficientnet", 32),
    ("test_mambaout", 32),
    ("test_nfnet", 32),
    ("resnet18", 32),
    ("mobilenetv3_small_050", 32),
    ("mobilenetv4_conv_small", 32),
    ("convnext_atto", 32),
    ("regnetx_002", 32),
    ("ghostnet_050", 32),
    ("levit_128s", 64),
    ("vit_tiny_patch16_224", 32),
    ("deit_tiny_distilled_patch16_224", 32),
    ("swin_tiny_patch4_window7_224", 64),
    ("dla34", 32),
]
families = pytest.mark.parametrize(("name", "size"), FAMILIES, ids=[name for name, _ in FAMILIES])


@functools.cache
def built(name: str, size: int) -> Backbone:
    seed_everything(0, name)
    return build(ModelConfig(name=name), Inputs(7, size), "student").eval()


def images(size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@families
@torch.no_grad()
def test_logits_are_those_of_the_plain_model_on_normalised_images(name: str, size: int) -> None:
    backbone = built(name, size)
    settings = timm.get_pretrained_cfg(name)
    assert settings is not None
    fixed = {"img_size": size} if any(part in name for part in ("vit", "deit", "swin")) else {}
    plain = timm.create_model(name, num_classes=7, **fixed).eval()
    plain.load_state_dict(backbone.net.state_dict())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (settings.mean, settings.std))
    logits = backbone(images(size)).logits
    assert logits.shape == (2, 7)
    assert (logits[0] - logits[1]).abs().max() > 1e-5
    torch.testing.assert_close(logits, plain((images(size) - mean) / std), rtol=1e-6, atol=1e-6)


@families
@torch.no_grad()
def test_tapping_changes_no_logits_and_gives_the_shapes_of_the_spec(name: str, size: int) -> None:
    backbone = built(name, size)
    count = len(backbone.spec.stage_shapes)
    plain = backbone(images(size))
    assert plain.embedding is None
    assert plain.stages == {}
    tapped = backbone(images(size), Taps(tuple(range(count)), embedding=True))
    torch.testing.assert_close(tapped.logits, plain.logits, rtol=1e-6, atol=1e-6)
    assert tapped.embedding is not None
    assert tapped.embedding.shape == (2, backbone.spec.embedding_width)
    assert {stage: tuple(maps.shape) for stage, maps in tapped.stages.items()} == {
        stage: (2, *shape) for stage, shape in enumerate(backbone.spec.stage_shapes)
    }
    for maps in tapped.stages.values():
        assert torch.isfinite(maps).all()


@families
@torch.no_grad()
def test_a_single_stage_is_the_same_map_under_its_negative_number(name: str, size: int) -> None:
    backbone = built(name, size)
    count = len(backbone.spec.stage_shapes)
    every = backbone(images(size), Taps(tuple(range(count)))).stages
    for stage in (0, count - 1):
        (only,) = backbone(images(size), Taps((stage - count,))).stages.values()
        assert torch.equal(only, every[stage])
    mixed = backbone(images(size), Taps((-1, 0))).stages
    assert list(mixed) == [-1, 0]
    assert torch.equal(mixed[-1], every[count - 1])
    assert torch.equal(mixed[0], every[0])


@families
def test_parameters_and_macs_are_those_of_the_model(name: str, size: int) -> None:
    backbone = built(name, size)
    assert backbone.spec.params == sum(parameter.numel() for parameter in backbone.net.parameters())
    macs = 0

    def count(module: Any, inputs: tuple[Tensor, ...], answer: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            macs += answer.numel() * module.weight[0].numel()
        else:
            macs += answer.numel() * module.in_features

    layers = [module for module in backbone.net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        backbone(images(size, count=1))
    for handle in handles:
        handle.remove()
    # Convolutions and linear layers, plus the products of attention, which belong to no layer.
    attention = any(part in name for part in ("vit", "deit", "swin"))
    if attention:
        assert macs < backbone.spec.macs < 1.25 * macs
    else:
        assert backbone.spec.macs == macs


def test_macs_of_resnet18_by_hand() -> None:
    """At 32 pixels: the stem at 16, then stages of 64, 128, 256, 512 channels at 8, 4, 2 and 1 pixels."""
    macs = 16**2 * 64 * 3 * 7**2 + 4 * 8**2 * 64 * 64 * 9
    for channels, side in ((128, 4), (256, 2), (512, 1)):
        half = channels // 2
        macs += side**2 * channels * (half * 9 + 3 * channels * 9 + half)  # first, three more, shortcut
    assert built("resnet18", 32).spec.macs == macs + 512 * 7


def test_the_published_size_of_resnet50_is_found_without_memory_for_it() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spec = describe(ModelConfig(name="resnet50"), Inputs(1000, 224), "teacher")
    assert (spec.params, spec.embedding_width) == (25_557_032, 2048)
    assert spec.macs == pytest.approx(4.09e9, rel=0.01)
    assert spec.stage_shapes == ((64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))
    huge = describe(ModelConfig(name="vit_giant_patch14_dinov2"), Inputs(1000, 518), "teacher")
    assert huge.params > 1.1e9
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < huge.params  # a quarter of what its weights take


def test_describing_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    describe(ModelConfig(name="test_vit"), Inputs(7, 32), "student")
    assert torch.equal(torch.rand(3), expected)


def test_arguments_reach_the_model() -> None:
    wide = build(ModelConfig(name="test_vit", args={"embed_dim": 96, "num_heads": 3}), Inputs(7, 32), "student")
    assert wide.spec.embedding_width == 96


@pytest.mark.parametrize(
    ("name", "args", "size", "said"),
    [
        ("resnet18", {"no_such_argument": 1}, 32, "no_such_argument"),
        ("resnet18", {"output_stride": 7}, 32, "images of 32 pixels"),
        ("resnet18", {"in_chans": 1}, 32, "channel"),  # images have three
        ("vit_tiny_patch16_224", {}, 8, "images of 8 pixels"),
        ("vgg11", {}, 8, "images of 8 pixels"),
        ("levit_128s", {}, 40, "images of 40 pixels"),
        ("no_such_model", {}, 32, "no_such_model"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_line_naming_the_keys(
    name: str, args: dict[str, Any], size: int, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        build(ModelConfig(name=name, args=args), Inputs(7, size), "student")
    message = str(caught.value)
    assert message.startswith(f"student.name={name}: ")
    assert said in message
    assert "student.args" in message
    assert "\n" not in message


@torch.no_grad()
def test_placing_in_channels_last_changes_the_layout_but_no_number_beyond_rounding() -> None:
    backbone = build(ModelConfig(name="test_resnet"), Inputs(7, 32), "student").eval()
    expected = backbone(images(32)).logits
    place(backbone, torch.device("cpu"), channels_last=True)
    weights = [value for value in backbone.net.parameters() if value.dim() == 4 and value.shape[1] > 1]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)
    torch.testing.assert_close(backbone(images(32)).logits, expected, rtol=1e-5, atol=1e-6)


def test_mean_and_std_are_no_part_of_the_weights() -> None:
    backbone = built("test_resnet", 32)
    assert all(name.startswith("net.") for name in backbone.state_dict())
    assert backbone.mean.shape == backbone.std.shape == (1, 3, 1, 1)


def test_the_same_seed_gives_the_same_weights() -> None:
    def fresh(seed: int) -> Tensor:
        seed_everything(seed, "init", "test_resnet")
        weight: Tensor = build(ModelConfig(name="test_resnet"), Inputs(7, 32), "student").net.state_dict()[
            "conv1.0.weight"
        ]
        return weight

    assert torch.equal(fresh(0), fresh(0))
    assert not torch.equal(fresh(0), fresh(1))

"""1 x 1 convolutions computed as linear layers: the same parameters, numbers and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from distillcli.config.schema import ModelConfig
from distillcli.models.backbone import Backbone, build, place
from distillcli.models.pointwise import PointwiseConv2d, use_linear
from distillcli.runtime import seed_everything
from distillcli.types import Inputs

CPU = torch.device("cpu")


def maps(size: int = 5, layout: torch.memory_format = torch.channels_last) -> Tensor:
    values = torch.randn(4, 6, size, size, generator=torch.Generator().manual_seed(0))
    return values.contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_convolution(layout: torch.memory_format, size: int, bias: bool) -> None:
    convolution = nn.Conv2d(6, 9, 1, bias=bias).to(memory_format=layout)
    linear = copy.deepcopy(convolution)
    use_linear(linear)
    answers, gradients = [], []
    for module in (convolution, linear):
        images = maps(size, layout).requires_grad_()
        answer = module(images)
        (answer**2).sum().backward()
        answers.append(answer.detach())
        gradients.append([images.grad, *(parameter.grad for parameter in module.parameters())])
    assert type(linear) is PointwiseConv2d
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_channels_last_goes_in_and_comes_out_without_a_copy() -> None:
    images = maps().requires_grad_()
    answer = PointwiseConv2d(6, 9, 1)(images)
    answer.backward(torch.ones_like(answer))
    assert images.grad is not None
    for tensor in (answer, images.grad):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


class Other(nn.Conv2d):
    """A convolution with an idea of its own."""


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 1, groups=2),
        Other(4, 4, 1),
        nn.Conv1d(4, 4, 1),
    ],
)
def test_every_other_convolution_stays_what_it_is(other: nn.Module) -> None:
    before = type(other)
    use_linear(other)
    assert type(other) is before


def student() -> Backbone:
    seed_everything(0, "student")
    return build(ModelConfig("mobilenetv3_small_050"), Inputs(7, 32), "student")


def test_a_placed_model_has_the_same_state_dict_and_the_same_answers() -> None:
    plain, placed = student().eval(), place(student(), CPU, channels_last=True).eval()
    assert sum(isinstance(module, PointwiseConv2d) for module in placed.modules()) > 20
    before, after = plain.state_dict(), placed.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(placed(images).logits, plain(images).logits, rtol=1e-5, atol=1e-6)


def test_in_the_contiguous_layout_nothing_changes() -> None:
    placed = place(student(), CPU, channels_last=False)
    assert not any(isinstance(module, PointwiseConv2d) for module in placed.modules())

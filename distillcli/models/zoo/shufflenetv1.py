"""ShuffleNet with three groups for 32 pixels (Zhang et al., CVPR 2018; CRD: Tian et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

from distillcli.models.zoo.staged import LayeredNet, Step, build_staged, conv, linear, settings

STEM, WIDTHS, COUNTS, GROUPS = 24, (240, 480, 960), (4, 8, 4), 3
default_cfgs = settings("linear", "cifar_shufflenetv1")


class Unit(nn.Module):
    """``outputs``: of the unit; one that halves the maps joins its pooled input to those it computes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        computed = outputs - inputs if stride == 2 else outputs
        middle = computed // 4
        groups = 1 if inputs == STEM else GROUPS
        self.conv1 = conv(inputs, middle, 1, groups=groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.act1 = nn.ReLU(inplace=True)
        self.shuffle = nn.ChannelShuffle(groups)
        self.conv2 = conv(middle, middle, 3, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = conv(middle, computed, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(computed)
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None
        self.act3 = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        mixed = self.shuffle(self.act1(self.bn1(self.conv1(maps))))
        computed = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(mixed)))))
        result: Tensor = self.act3(
            computed + maps if self.pool is None else torch.cat([computed, self.pool(maps)], dim=1)
        )
        return result


class CifarShuffleNetV1(LayeredNet):
    def __init__(self, num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__((STEM, *WIDTHS), (1, 2, 4, 8), WIDTHS[-1], num_classes, in_chans)
        self.conv1 = conv(in_chans, STEM, 1)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(COUNTS[0], STEM, WIDTHS[0])
        self.layer2 = _stage(COUNTS[1], WIDTHS[0], WIDTHS[1])
        self.layer3 = _stage(COUNTS[2], WIDTHS[1], WIDTHS[2])
        self.linear = linear(WIDTHS[-1], num_classes)

    def steps(self) -> Sequence[Step]:
        return (self.stem, self.layer1, self.layer2, self.layer3)

    def last_features(self, last_BCHW: Tensor) -> Tensor:
        return last_BCHW

    def classify(self, pooled_BC: Tensor) -> Tensor:
        logits: Tensor = self.linear(pooled_BC)
        return logits

    def drop_head(self) -> None:
        self.linear = nn.Identity()


def _stage(count: int, inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Unit(inputs, outputs, 2), *(Unit(outputs, outputs, 1) for _ in range(count - 1)))


@register_model
def cifar_shufflenetv1(pretrained: bool = False, **arguments: Any) -> CifarShuffleNetV1:
    net: CifarShuffleNetV1 = build_staged(CifarShuffleNetV1, "cifar_shufflenetv1", pretrained, arguments)
    return net

"""ShuffleNetV2 for 32 pixels (Ma et al., ECCV 2018; CRD: Tian et al., ICLR 2020). Its stages end in a shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

from distillcli.models.zoo.staged import LayeredNet, Step, build_staged, conv, linear, settings

STEM, WIDTHS, COUNTS, FEATURES = 24, (116, 232, 464), (3, 7, 3), 1024
default_cfgs = settings("linear", "cifar_shufflenetv2")


class HalvingUnit(nn.Module):
    """Two branches of half the width each, both of which halve the maps."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = conv(inputs, inputs, 3, 2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv(inputs, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = conv(inputs, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.act3 = nn.ReLU(inplace=True)
        self.conv4 = conv(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)
        self.act5 = nn.ReLU(inplace=True)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, maps: Tensor) -> Tensor:
        left = self.act2(self.bn2(self.conv2(self.bn1(self.conv1(maps)))))
        narrow = self.bn4(self.conv4(self.act3(self.bn3(self.conv3(maps)))))
        right = self.act5(self.bn5(self.conv5(narrow)))
        result: Tensor = self.shuffle(torch.cat([left, right], dim=1))
        return result


class Unit(nn.Module):
    """Computes one half of the channels anew and passes the other half on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.act3 = nn.ReLU(inplace=True)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, maps: Tensor) -> Tensor:
        kept, rest = maps.chunk(2, dim=1)
        narrow = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(rest)))))
        computed = self.act3(self.bn3(self.conv3(narrow)))
        result: Tensor = self.shuffle(torch.cat([kept, computed], dim=1))
        return result


class CifarShuffleNetV2(LayeredNet):
    def __init__(self, num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__((STEM, *WIDTHS), (1, 2, 4, 8), FEATURES, num_classes, in_chans)
        self.conv1 = conv(in_chans, STEM, 1)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(COUNTS[0], STEM, WIDTHS[0])
        self.layer2 = _stage(COUNTS[1], WIDTHS[0], WIDTHS[1])
        self.layer3 = _stage(COUNTS[2], WIDTHS[1], WIDTHS[2])
        self.conv2: nn.Module = conv(WIDTHS[-1], FEATURES, 1)
        self.bn2: nn.Module = nn.BatchNorm2d(FEATURES)
        self.act2: nn.Module = nn.ReLU(inplace=True)
        self.linear = linear(FEATURES, num_classes)

    def steps(self) -> Sequence[Step]:
        return (self.stem, self.layer1, self.layer2, self.layer3)

    def last_features(self, last_BCHW: Tensor) -> Tensor:
        features: Tensor = self.act2(self.bn2(self.conv2(last_BCHW)))
        return features

    def classify(self, pooled_BC: Tensor) -> Tensor:
        logits: Tensor = self.linear(pooled_BC)
        return logits

    def drop_head(self) -> None:
        self.conv2 = self.bn2 = self.act2 = self.linear = nn.Identity()


def _stage(count: int, inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(HalvingUnit(inputs, outputs), *(Unit(outputs) for _ in range(count)))


@register_model
def cifar_shufflenetv2(pretrained: bool = False, **arguments: Any) -> CifarShuffleNetV2:
    net: CifarShuffleNetV2 = build_staged(CifarShuffleNetV2, "cifar_shufflenetv2", pretrained, arguments)
    return net

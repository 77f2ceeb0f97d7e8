"""Wide residual nets (Zagoruyko and Komodakis, BMVC 2016), without dropout. Their stages are sums before any norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from distillcli.models.zoo.staged import StagedNet, Step, build_staged, conv, linear, settings, start_as_vgg

default_cfgs = settings("fc", "cifar_wrn_16_1", "cifar_wrn_16_2", "cifar_wrn_40_1", "cifar_wrn_40_2")


class Block(nn.Module):
    """Norm and activation come first; where the width changes, the shortcut begins after them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        active = self.act1(self.bn1(maps))
        kept = maps if self.convShortcut is None else self.convShortcut(active)
        result: Tensor = kept + self.conv2(self.act2(self.bn2(self.conv1(active))))
        return result


class Stage(nn.Module):
    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(count - 1))
        )

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.layer(maps)
        return result


class CifarWideResNet(StagedNet):
    """``depth``: 6 n + 4 layers, n blocks in a stage. ``widen``: factor on the widths 16, 32 and 64."""

    def __init__(self, depth: int, widen: int, num_classes: int = 100, in_chans: int = 3) -> None:
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        super().__init__(widths, (1, 1, 2, 4), widths[-1], num_classes, in_chans)
        count = (depth - 4) // 6
        self.conv1 = conv(in_chans, widths[0], 3)
        self.block1 = Stage(count, widths[0], widths[1], 1)
        self.block2 = Stage(count, widths[1], widths[2], 2)
        self.block3 = Stage(count, widths[2], widths[3], 2)
        self.bn1: nn.Module = nn.BatchNorm2d(widths[3])
        self.act1: nn.Module = nn.ReLU(inplace=True)
        self.fc = linear(widths[3], num_classes)
        start_as_vgg(self)
        if num_classes:
            nn.init.zeros_(self.fc.bias)  # type: ignore[arg-type]

    def steps(self) -> Sequence[Step]:
        return (self.conv1, self.block1, self.block2, self.block3)

    def last_features(self, last_BCHW: Tensor) -> Tensor:
        features: Tensor = self.act1(self.bn1(last_BCHW))
        return features

    def classify(self, pooled_BC: Tensor) -> Tensor:
        logits: Tensor = self.fc(pooled_BC)
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^conv1", "blocks": r"^block(\d+)" if coarse else r"^block(\d+)\.layer\.(\d+)"}

    def drop_head(self) -> None:
        self.bn1 = self.act1 = self.fc = nn.Identity()


@register_model
def cifar_wrn_16_1(pretrained: bool = False, **arguments: Any) -> CifarWideResNet:
    return _wrn("cifar_wrn_16_1", pretrained, 16, 1, arguments)


@register_model
def cifar_wrn_16_2(pretrained: bool = False, **arguments: Any) -> CifarWideResNet:
    return _wrn("cifar_wrn_16_2", pretrained, 16, 2, arguments)


@register_model
def cifar_wrn_40_1(pretrained: bool = False, **arguments: Any) -> CifarWideResNet:
    return _wrn("cifar_wrn_40_1", pretrained, 40, 1, arguments)


@register_model
def cifar_wrn_40_2(pretrained: bool = False, **arguments: Any) -> CifarWideResNet:
    return _wrn("cifar_wrn_40_2", pretrained, 40, 2, arguments)


def _wrn(name: str, pretrained: bool, depth: int, widen: int, arguments: dict[str, Any]) -> CifarWideResNet:
    shape = {"depth": depth, "widen": widen}
    net: CifarWideResNet = build_staged(CifarWideResNet, name, pretrained, {**shape, **arguments})
    return net

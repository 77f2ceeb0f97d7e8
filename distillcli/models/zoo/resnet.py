"""CIFAR's residual nets of three stages (He et al., CVPR 2016), and wide ones (CRD: Tian et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from distillcli.models.zoo.staged import LayeredNet, Step, build_staged, conv, linear, settings, start_as_kaiming

NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)
default_cfgs = settings(
    "fc", *(f"cifar_resnet{kind}" for kind in ("8", "14", "20", "32", "44", "56", "110", "8x4", "32x4"))
)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU(inplace=True)
        changes = stride != 1 or inputs != outputs
        self.downsample = (
            nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if changes else nn.Identity()
        )

    def forward(self, maps: Tensor) -> Tensor:
        answer = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(maps)))))
        result: Tensor = self.act2(answer + self.downsample(maps))
        return result


class CifarResNet(LayeredNet):
    """``depth``: 6 n + 2 layers, n blocks in a stage. ``widths``: of the stem and the three stages."""

    def __init__(self, depth: int, widths: Sequence[int], num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__(widths, (1, 1, 2, 4), widths[-1], num_classes, in_chans)
        count = (depth - 2) // 6
        self.conv1 = conv(in_chans, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(count, widths[0], widths[1], 1)
        self.layer2 = _stage(count, widths[1], widths[2], 2)
        self.layer3 = _stage(count, widths[2], widths[3], 2)
        self.fc = linear(widths[-1], num_classes)
        start_as_kaiming(self)

    def steps(self) -> Sequence[Step]:
        return (self.stem, self.layer1, self.layer2, self.layer3)

    def last_features(self, last_BCHW: Tensor) -> Tensor:
        return last_BCHW

    def classify(self, pooled_BC: Tensor) -> Tensor:
        logits: Tensor = self.fc(pooled_BC)
        return logits

    def drop_head(self) -> None:
        self.fc = nn.Identity()


def _stage(count: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(count - 1)))


@register_model
def cifar_resnet8(pretrained: bool = False, **arguments: Any) -> CifarResNet:
    return _resnet("cifar_resnet8", pretrained, 8, NARROW, arguments)


@register_model
def cifar_resnet14(pretrained: bool = False, **arguments: Any) -> CifarResNet:
    return _resnet("cifar_resnet14", pretrained, 14, NARROW, arguments)


@register_model
def cifar_resnet20(pretrained: bool = False, **arguments: Any) -> CifarResNet:
    return _resnet("cifar_resnet20", pretrained, 20, NARROW, arguments)


@register_model
def cifar_resnet32(pretrained: bool = False, **arguments: Any) -> CifarResNet:
    return _resnet("cifar_resnet32", pretrained, 32, NARROW, arguments)


@register_model
def cifar_resnet44(pretrained: bool = False, **arguments: Any) -> CifarResNet:
    return _resnet("cifar_resnet44", pretrained, 44, NARROW, arguments)


@register_model
def cifar_resnet56(pretrained: bool = False, **arguments: Any) -> CifarResNet:
    return _resnet("cifar_resnet56", pretrained, 56, NARROW, arguments)


@register_model
def cifar_resnet110(pretrained: bool = False, **arguments: Any) -> CifarResNet:
    return _resnet("cifar_resnet110", pretrained, 110, NARROW, arguments)


@register_model
def cifar_resnet8x4(pretrained: bool = False, **arguments: Any) -> CifarResNet:
    return _resnet("cifar_resnet8x4", pretrained, 8, WIDE, arguments)


@register_model
def cifar_resnet32x4(pretrained: bool = False, **arguments: Any) -> CifarResNet:
    return _resnet("cifar_resnet32x4", pretrained, 32, WIDE, arguments)


def _resnet(name: str, pretrained: bool, depth: int, widths: Sequence[int], arguments: dict[str, Any]) -> CifarResNet:
    net: CifarResNet = build_staged(CifarResNet, name, pretrained, {"depth": depth, "widths": widths, **arguments})
    return net

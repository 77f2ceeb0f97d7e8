"""ResNet-50 with a stem for images of 32 pixels, without max-pooling (CRD: Tian et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from distillcli.models.zoo.staged import LayeredNet, Step, build_staged, conv, linear, settings, start_as_kaiming

default_cfgs = settings("linear", "cifar_resnet50")


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * middle
        self.conv1 = conv(inputs, middle, 1)
        self.bn1 = nn.BatchNorm2d(middle)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv(middle, middle, 3, stride)
        self.bn2 = nn.BatchNorm2d(middle)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = conv(middle, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.act3 = nn.ReLU(inplace=True)
        changes = stride != 1 or inputs != outputs
        self.shortcut = (
            nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if changes else nn.Identity()
        )

    def forward(self, maps: Tensor) -> Tensor:
        narrow = self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(maps))))))
        result: Tensor = self.act3(self.bn3(self.conv3(narrow)) + self.shortcut(maps))
        return result


class CifarResNet50(LayeredNet):
    def __init__(self, num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__((64, 256, 512, 1024, 2048), (1, 1, 2, 4, 8), 2048, num_classes, in_chans)
        self.conv1 = conv(in_chans, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(3, 64, 64, 1)
        self.layer2 = _stage(4, 256, 128, 2)
        self.layer3 = _stage(6, 512, 256, 2)
        self.layer4 = _stage(3, 1024, 512, 2)
        self.linear = linear(2048, num_classes)
        start_as_kaiming(self)

    def steps(self) -> Sequence[Step]:
        return (self.stem, self.layer1, self.layer2, self.layer3, self.layer4)

    def last_features(self, last_BCHW: Tensor) -> Tensor:
        return last_BCHW

    def classify(self, pooled_BC: Tensor) -> Tensor:
        logits: Tensor = self.linear(pooled_BC)
        return logits

    def drop_head(self) -> None:
        self.linear = nn.Identity()


def _stage(count: int, inputs: int, middle: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        Bottleneck(inputs, middle, stride), *(Bottleneck(4 * middle, middle, 1) for _ in range(count - 1))
    )


@register_model
def cifar_resnet50(pretrained: bool = False, **arguments: Any) -> CifarResNet50:
    net: CifarResNet50 = build_staged(CifarResNet50, "cifar_resnet50", pretrained, arguments)
    return net

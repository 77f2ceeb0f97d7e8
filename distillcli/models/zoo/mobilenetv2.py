"""MobileNetV2 of half the width for 32 pixels (Sandler et al., CVPR 2018; CRD: Tian et al., ICLR 2020).

The head keeps its 1,280 channels, ReLU is not cut at 6, and only the stem and three groups halve the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from distillcli.models.zoo.staged import StagedNet, Step, build_staged, conv, linear, settings, start_as_vgg

# Expansion, channels before halving, blocks, stride of the first one.
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FEATURES = 1280
default_cfgs = settings("classifier.0", "cifar_mobilenetv2_half")


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            conv(inputs, middle, 1),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            conv(middle, middle, 3, stride, groups=middle),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            conv(middle, outputs, 1),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, maps: Tensor) -> Tensor:
        answer: Tensor = self.conv(maps)
        return maps + answer if self.adds else answer


class CifarMobileNetV2(StagedNet):
    """The stages end after the second, third, fifth and seventh group, in linear maps."""

    def __init__(self, num_classes: int = 100, in_chans: int = 3) -> None:
        widths = [channels // 2 for _, channels, _, _ in GROUPS]
        super().__init__(
            (16, widths[1], widths[2], widths[4], widths[6]), (2, 2, 4, 8, 16), FEATURES, num_classes, in_chans
        )
        self.conv1 = _conv_norm(in_chans, 16, 3, 2)
        self.blocks = nn.ModuleList()
        inputs = 16
        for (expansion, _, count, stride), outputs in zip(GROUPS, widths, strict=True):
            first = InvertedResidual(inputs, outputs, stride, expansion)
            others = (InvertedResidual(outputs, outputs, 1, expansion) for _ in range(count - 1))
            self.blocks.append(nn.Sequential(first, *others))
            inputs = outputs
        self.conv2: nn.Module = _conv_norm(inputs, FEATURES, 1, 1)
        self.classifier = nn.Sequential(linear(FEATURES, num_classes))
        start_as_vgg(self)
        if num_classes:
            nn.init.normal_(self.classifier[0].weight, 0, 0.01)  # type: ignore[arg-type]
            nn.init.zeros_(self.classifier[0].bias)  # type: ignore[arg-type]

    def steps(self) -> Sequence[Step]:
        group = self.blocks
        return (
            self.conv1,
            lambda maps: group[1](group[0](maps)),
            group[2],
            lambda maps: group[4](group[3](maps)),
            lambda maps: group[6](group[5](maps)),
        )

    def last_features(self, last_BCHW: Tensor) -> Tensor:
        features: Tensor = self.conv2(last_BCHW)
        return features

    def classify(self, pooled_BC: Tensor) -> Tensor:
        logits: Tensor = self.classifier(pooled_BC)
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^conv1", "blocks": r"^blocks\.(\d+)" if coarse else r"^blocks\.(\d+)\.(\d+)"}

    def drop_head(self) -> None:
        self.conv2, self.classifier = nn.Identity(), nn.Sequential()


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


@register_model
def cifar_mobilenetv2_half(pretrained: bool = False, **arguments: Any) -> CifarMobileNetV2:
    net: CifarMobileNetV2 = build_staged(CifarMobileNetV2, "cifar_mobilenetv2_half", pretrained, arguments)
    return net

"""VGG with batch norm and one linear layer (Simonyan and Zisserman, ICLR 2015; CRD: Tian et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from distillcli.models.zoo.staged import StagedNet, Step, build_staged, linear, settings, start_as_vgg

WIDTHS = (64, 128, 256, 512, 512)
default_cfgs = settings("classifier", *(f"cifar_vgg{depth}" for depth in (8, 11, 13, 16, 19)))


class CifarVGG(StagedNet):
    """``counts``: convolutions in each of the five stages; maps are halved after the first three."""

    def __init__(self, counts: Sequence[int], num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__(WIDTHS, (1, 2, 4, 8, 8), WIDTHS[-1], num_classes, in_chans)
        self.block0 = _convolutions(counts[0], in_chans, WIDTHS[0])
        self.block1 = _convolutions(counts[1], WIDTHS[0], WIDTHS[1])
        self.block2 = _convolutions(counts[2], WIDTHS[1], WIDTHS[2])
        self.block3 = _convolutions(counts[3], WIDTHS[2], WIDTHS[3])
        self.block4 = _convolutions(counts[4], WIDTHS[3], WIDTHS[4])
        # The last activation of a block is outside of it: a term may want the map before.
        self.acts = nn.ModuleList(nn.ReLU(inplace=True) for _ in WIDTHS)
        self.pool = nn.MaxPool2d(2)
        self.classifier = linear(WIDTHS[-1], num_classes)
        start_as_vgg(self)
        if num_classes:
            nn.init.normal_(self.classifier.weight, 0, 0.01)  # type: ignore[arg-type]
            nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def steps(self) -> Sequence[Step]:
        pool, (act0, act1, act2, act3, act4) = self.pool, self.acts
        return (
            lambda images: act0(self.block0(images)),
            lambda maps: act1(self.block1(pool(maps))),
            lambda maps: act2(self.block2(pool(maps))),
            lambda maps: act3(self.block3(pool(maps))),
            lambda maps: act4(self.block4(maps)),
        )

    def last_features(self, last_BCHW: Tensor) -> Tensor:
        return last_BCHW

    def classify(self, pooled_BC: Tensor) -> Tensor:
        logits: Tensor = self.classifier(pooled_BC)
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^block0", "blocks": r"^block(\d+)" if coarse else r"^block(\d+)\.(\d+)"}

    def drop_head(self) -> None:
        self.classifier = nn.Identity()


def _convolutions(count: int, inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(count):
        if number:
            layers.append(nn.ReLU(inplace=True))
        layers += [nn.Conv2d(outputs if number else inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers)


@register_model
def cifar_vgg8(pretrained: bool = False, **arguments: Any) -> CifarVGG:
    return _vgg("cifar_vgg8", pretrained, (1, 1, 1, 1, 1), arguments)


@register_model
def cifar_vgg11(pretrained: bool = False, **arguments: Any) -> CifarVGG:
    return _vgg("cifar_vgg11", pretrained, (1, 1, 2, 2, 2), arguments)


@register_model
def cifar_vgg13(pretrained: bool = False, **arguments: Any) -> CifarVGG:
    return _vgg("cifar_vgg13", pretrained, (2, 2, 2, 2, 2), arguments)


@register_model
def cifar_vgg16(pretrained: bool = False, **arguments: Any) -> CifarVGG:
    return _vgg("cifar_vgg16", pretrained, (2, 2, 3, 3, 3), arguments)


@register_model
def cifar_vgg19(pretrained: bool = False, **arguments: Any) -> CifarVGG:
    return _vgg("cifar_vgg19", pretrained, (2, 2, 4, 4, 4), arguments)


def _vgg(name: str, pretrained: bool, counts: Sequence[int], arguments: dict[str, Any]) -> CifarVGG:
    net: CifarVGG = build_staged(CifarVGG, name, pretrained, {"counts": counts, **arguments})
    return net

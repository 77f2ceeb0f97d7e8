"""What all nets of the zoo share: stages by number, global average pooling, one linear classifier, timm's methods."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._features import feature_take_indices
from torch import Tensor, nn

# Of the training images of CIFAR-100, as both projects normalise them.
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)

Step = Callable[[Tensor], Tensor]


class StagedNet(nn.Module, ABC):
    """A net in numbered stages: 0 is the stem. ``widths``, ``strides``: channels of each stage, pixels for one of it.

    ``features``: channels that the classifier takes. A net of 0 classes answers with these.
    """

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], features: int, num_classes: int, in_chans: int
    ) -> None:
        super().__init__()
        self.feature_info = [
            {"num_chs": width, "reduction": stride, "module": f"stage{number}"}
            for number, (width, stride) in enumerate(zip(widths, strides, strict=True))
        ]
        self.num_features = self.head_hidden_size = features
        self.num_classes, self.in_chans = num_classes, in_chans

    @abstractmethod
    def steps(self) -> Sequence[Step]:
        """The stem and the stages, each from the map before it."""

    @abstractmethod
    def last_features(self, last_BCHW: Tensor) -> Tensor:
        """What is pooled, from the map of the last stage."""

    @abstractmethod
    def classify(self, pooled_BC: Tensor) -> Tensor:
        """Logits, or what is given, where there are no classes."""

    @abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """timm's patterns of the names of weights: the stem's, and those of the stages or their blocks, numbered."""

    @abstractmethod
    def drop_head(self) -> None:
        """Leave out all layers after the last stage."""

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        maps = images
        for step in self.steps():
            maps = step(maps)
        return self.last_features(maps)

    def forward_intermediates(
        self, images: Tensor, indices: int | list[int] | None = None, intermediates_only: bool = False
    ) -> tuple[Tensor, list[Tensor]] | list[Tensor]:
        """The stages asked for, in their order, after what ``forward_head`` takes unless ``intermediates_only``."""
        wanted, _ = feature_take_indices(len(self.feature_info), indices)
        maps, taken = images, []
        for number, step in enumerate(self.steps()):
            maps = step(maps)
            if number in wanted:
                taken.append(maps)
        return taken if intermediates_only else (self.last_features(maps), taken)

    def forward_head(self, features_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = features_BCHW.mean(dim=(2, 3))
        return pooled if pre_logits else self.classify(pooled)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Leave out what follows the last stage; all stages are kept."""
        if prune_head:
            self.drop_head()
        wanted, _ = feature_take_indices(len(self.feature_info), indices)
        return list(wanted)


class LayeredNet(StagedNet):
    """A net whose stem is one convolution with its norm and ReLU, and whose stages are ``layer1``, ``layer2``, ..."""

    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    act1: nn.ReLU

    def stem(self, images: Tensor) -> Tensor:
        maps: Tensor = self.act1(self.bn1(self.conv1(images)))
        return maps

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of its maps at stride 1, without bias."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def linear(inputs: int, classes: int) -> nn.Module:
    return nn.Linear(inputs, classes) if classes else nn.Identity()


def start_as_kaiming(net: nn.Module) -> None:
    """Convolutions from a normal distribution by their fan-out, as for ReLU (He et al., ICCV 2015)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def start_as_vgg(net: nn.Module) -> None:
    """Convolutions from a normal distribution of deviation sqrt(2 / (kernel area * channels out)), biases of 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            area = math.prod(module.kernel_size)
            nn.init.normal_(module.weight, 0, math.sqrt(2 / (area * module.out_channels)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def settings(classifier: str, *names: str) -> Any:
    """What timm knows of models that have no published weights."""
    return generate_default_cfgs(
        {
            name: {
                "num_classes": 100,
                "input_size": (3, 32, 32),
                "crop_pct": 1.0,
                "interpolation": "bilinear",
                "mean": MEAN,
                "std": STD,
                "classifier": classifier,
            }
            for name in names
        }
    )


def build_staged(net: type[StagedNet], name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    """What timm's factory makes of a net of the zoo, so that it takes every argument that timm's models take."""
    return build_model_with_cfg(net, name, pretrained, **arguments)

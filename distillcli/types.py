"""The vocabulary of tensors that passes between data, models, terms and the engine.

Shape legend, used as suffixes where shapes matter: B images in a batch, K classes, D width of an embedding, C channels,
H height, W width, N images in a split.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One batch of views, on the device.

    ``images``: B x C x H x W, float in [0, 1]; every model normalises for itself. ``targets``: class numbers, B, int64,
    or distributions over classes, B x K. ``index``: B, int64, on the CPU, the position of each image in its split.
    ``view``: which view of each image it is, B, int64, on the CPU, or one number for all.
    """

    images: Tensor
    targets: Tensor
    index: Tensor
    view: Tensor | int = 0


@dataclass(frozen=True)
class Taps:
    """What is wanted of a model beside its logits: which stages, and whether embedding, class maps and features.

    ``token``: whether the logits of a distillation token are wanted apart, of a model that has one and is trained.
    ``preactivations``: the stages that are wanted as they were before the activation that ends them.
    """

    stages: tuple[int, ...] = ()
    embedding: bool = False
    token: bool = False
    class_maps: bool = False
    features: bool = False
    preactivations: tuple[int, ...] = ()


LOGITS_ONLY = Taps()


@dataclass(frozen=True)
class Output:
    """What a model says about a batch.

    ``logits``: B x K. ``embedding``: B x D, the pooled features before the classifier, or None if it was not tapped.
    ``stages``: stage number, as it was tapped -> B x C x H x W feature map. ``token_logits``: B x K, of the
    distillation token, where they were tapped and ``logits`` are the class token's alone. ``class_maps``: B x K x H x
    W, the classifier applied to every position by itself. ``features``: what the head is given, B x C x H x W in
    models whose head pools a map. ``preactivations``: like ``stages``, before the activation that ends the stage.
    """

    logits: Tensor
    embedding: Tensor | None
    stages: dict[int, Tensor]
    token_logits: Tensor | None = None
    class_maps: Tensor | None = None
    features: Tensor | None = None
    preactivations: dict[int, Tensor] = field(default_factory=dict)

    @property
    def taught_logits(self) -> Tensor:
        """What a teacher's logits are compared with: B x K, the distillation token's where there is one."""
        return self.logits if self.token_logits is None else self.token_logits


@dataclass(frozen=True)
class Inputs:
    """What a model is built for: how many ``classes`` (0: it has no classifier), and the images it is shown.

    ``image_size``: side of the views in pixels. ``channels``: of the images.
    """

    classes: int
    image_size: int
    channels: int = 3


@dataclass(frozen=True)
class Spec:
    """What is known of a model before it sees data.

    ``stage_shapes``: channels, height and width of the feature map of every stage, counted from the input; negative
    stage numbers count from the end as in a Python list. ``macs``: multiply-accumulates of one forward pass per image.
    ``feature_shape``: of the map that the head pools, or None where the head is given something else.
    ``endings``: for every stage the path of the activation that ends it, "" if none does, None if that cannot be told.
    ``channels``: of the images it takes.
    """

    name: str
    classes: int
    embedding_width: int
    stage_shapes: tuple[tuple[int, int, int], ...]
    params: int
    macs: int
    feature_shape: tuple[int, int, int] | None = None
    endings: tuple[str | None, ...] = ()
    channels: int = 3

"""The vocabulary of tensors that passes between data, models, terms and the engine.

Shape legend, used as suffixes where shapes matter: B images in a batch, K classes, D width of an embedding, C channels,
H height, W width, N images in a split.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One batch of views, on the device.

    ``images``: B x C x H x W, float in [0, 1]; every model normalises for itself. ``labels``: B, int64.
    ``index``: B, int64, the position of each image in its split.
    """

    images: Tensor
    labels: Tensor
    index: Tensor


@dataclass(frozen=True)
class Output:
    """What a model says about a batch.

    ``logits``: B x K. ``embedding``: B x D, the pooled features before the classifier. ``stages``: stage number ->
    B x C x H x W feature map, holding exactly the stages that were asked for.
    """

    logits: Tensor
    embedding: Tensor
    stages: dict[int, Tensor]


@dataclass(frozen=True)
class Spec:
    """What can be known of a model without running it on data.

    ``stage_channels[i]`` and ``stage_sizes[i]`` (height, width) describe stage ``i``, counted from the input; negative
    numbers count from the end as in a Python list.
    """

    name: str
    classes: int
    embedding_width: int
    stage_channels: tuple[int, ...]
    stage_sizes: tuple[tuple[int, int], ...]

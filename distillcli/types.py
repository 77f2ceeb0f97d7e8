"""The vocabulary of tensors passed between data, models, terms and the engine.

Shape legend, used as suffixes where shapes matter: B images in a batch, K classes, D width of an embedding, C channels,
H height, W width, N images in a split.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """What a model is asked for besides its logits. Each field asks for the part of ``Output`` of the same name.

    ``stages``, ``preactivations``: stage numbers. ``token``: asks for ``token_logits``, which only models with a
    distillation token have, and only in training mode.
    """

    stages: tuple[int, ...] = ()
    embedding: bool = False
    token: bool = False
    class_maps: bool = False
    features: bool = False
    preactivations: tuple[int, ...] = ()

    def __or__(self, other: Taps) -> Taps:
        """Everything that either asks for."""
        return Taps(
            stages=tuple(sorted({*self.stages, *other.stages})),
            embedding=self.embedding or other.embedding,
            token=self.token or other.token,
            class_maps=self.class_maps or other.class_maps,
            features=self.features or other.features,
            preactivations=tuple(sorted({*self.preactivations, *other.preactivations})),
        )


LOGITS_ONLY = Taps()


@dataclass(frozen=True)
class Output:
    """A model's output for a batch. What was not tapped is None or missing.

    ``logits``: B x K. ``embedding``: B x D, the pooled features before the classifier. ``stages``: stage number, as it
    was tapped -> B x C x H x W feature map. ``token_logits``: B x K, of the distillation token; ``logits`` are then
    the class token's alone. ``class_maps``: B x K x H x W, the classifier applied to each position by itself.
    ``features``: the input of the head, B x C x H x W in models whose head pools a map. ``preactivations``: like
    ``stages``, before the activation that ends the stage.
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
        """The logits to compare with a teacher's: B x K, the distillation token's where there is one."""
        return self.logits if self.token_logits is None else self.token_logits

    def float(self) -> Output:
        """The same in float32: softmax, norms and squares overflow or vanish in half precision."""
        return self._each(Tensor.float)

    def clone(self) -> Output:
        """The same in memory of its own."""
        return self._each(Tensor.clone)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Output:
        def optional(part: Tensor | None) -> Tensor | None:
            return None if part is None else change(part)

        return Output(
            logits=change(self.logits),
            embedding=optional(self.embedding),
            stages={stage: change(maps) for stage, maps in self.stages.items()},
            token_logits=optional(self.token_logits),
            class_maps=optional(self.class_maps),
            features=optional(self.features),
            preactivations={stage: change(maps) for stage, maps in self.preactivations.items()},
        )


def tapped(part: Tensor | None) -> Tensor:
    """An optional part of an ``Output`` that the caller has tapped, so that it cannot be None."""
    assert part is not None, "this part of the output was not tapped"
    return part


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
    ``channels``: of the images it takes. ``mean``, ``std``: of each channel, by which it normalises images in [0, 1];
    empty for several models, each with its own.
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
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

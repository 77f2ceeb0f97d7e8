"""Mixup and CutMix as part of the view: which image it is mixed with, and how, depends on (seed, view, index).

The partner can be any image of the split (any class equally often with ``dataset.balanced``), in the same view and not
mixed itself. It is not a neighbour in the batch: a cached teacher output for a mixed view would then be of no use to
runs with other batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor
from torch.nn import functional

from distillcli.config.schema import AugmentConfig
from distillcli.sources.draws import uniform
from distillcli.views.epochs import pick
from distillcli.views.upload import send

Floats = NDArray[np.float64]

_HIT, _WHICH, _PARTNER, _SHARE, _CENTRE_X, _CENTRE_Y = range(6)
_DRAWS = 6


@dataclass(frozen=True)
class Mix:
    """How B views are mixed.

    ``partners``: B, positions in the split. ``boxes``: B x 4, where the partner is visible, as left, top, right, bottom
    in pixels of the view. ``opacity``: B, of the partner within its box; 0 if nothing is mixed.
    """

    partners: NDArray[np.int64]
    boxes: NDArray[np.int64]
    opacity: Floats

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Which rows need their partner: B."""
        return self.opacity > 0


def draw_mix(
    recipe: AugmentConfig,
    seed: int,
    view: NDArray[np.int64],
    index: NDArray[np.int64],
    cumulative_weights: Floats,
    size: int,
) -> Mix:
    """How these views are mixed. ``size``: height and width of a view in pixels.

    ``cumulative_weights``: N, the running sum of the weights by which the images of the split are drawn as partners.

    The partner's share is drawn from Beta(alpha, alpha). Mixup (Zhang et al., ICLR 2018) blends the images with that
    weight. CutMix (Yun et al., ICCV 2019) pastes a box with that share of the area, centred anywhere and clipped at the
    border. If both are on, each is used half of the time.
    """
    draws = uniform(seed, "mix", view, index, _DRAWS)
    cut = draws[:, _WHICH] < (0.5 if recipe.mixup and recipe.cutmix else float(recipe.cutmix > 0))
    hit = (draws[:, _HIT] < recipe.mix_probability) & bool(recipe.mixup or recipe.cutmix)
    blend_share, cut_share = (_beta(alpha, draws[:, _SHARE]) for alpha in (recipe.mixup, recipe.cutmix))

    side = np.round(np.sqrt(cut_share) * size)
    corner = np.floor(draws[:, [_CENTRE_X, _CENTRE_Y]] * size - side[:, None] / 2 + 0.5)
    boxes = np.concatenate([corner, corner + side[:, None]], axis=1).clip(0, size)
    return Mix(
        partners=pick(cumulative_weights, draws[:, _PARTNER]),
        boxes=np.where(cut[:, None], boxes, [0, 0, size, size]).astype(np.int64),
        opacity=np.where(hit, np.where(cut, 1.0, blend_share), 0.0),
    )


def _beta(alpha: float, share: Floats) -> Floats:
    """Quantiles of Beta(alpha, alpha); zeros for alpha 0."""
    return betaincinv(alpha, alpha, share) if alpha else np.zeros_like(share)


def mix_images(images: Tensor, partners: Tensor, mix: Mix) -> Tensor:
    """B x C x H x W. ``partners``: the views of the partners of the mixed rows, in the order of the rows."""
    mixed = send(np.flatnonzero(mix.mixed), images.device)
    boxes = send(mix.boxes[mix.mixed], images.device)
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    pixel = torch.arange(images.shape[-1], device=images.device)
    columns, rows = (pixel >= left) & (pixel < right), (pixel >= top) & (pixel < bottom)
    inside = (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)
    opacity = send(mix.opacity[mix.mixed].astype(np.float32), images.device)
    images = images.clone()
    images[mixed] = images[mixed].lerp(partners, inside * opacity[:, None, None, None])
    return images


def mix_labels(labels: Tensor, partner_labels: Tensor, mix: Mix, size: int, classes: int) -> Tensor:
    """Distributions over classes, B x K: each image has the share of the view that it fills.

    A label of -1 is no label: its share is missing from the row, which then sums to less than one.
    """
    left, top, right, bottom = mix.boxes.T
    share = mix.opacity * (right - left) * (bottom - top) / size**2
    own, other = (functional.one_hot(numbers + 1, classes + 1)[:, 1:].float() for numbers in (labels, partner_labels))
    return own.lerp(other, send(share.astype(np.float32), labels.device)[:, None])

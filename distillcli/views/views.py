"""A view: the augmented image that sample ``index`` shows in ``view``, a pure function of (seed, view, index).

The parameters of a whole batch of views are drawn at once, and each image is sampled once through one affine map: crop,
flip, shift, rotation, shear and zoom cost a single interpolation, on the device. Colour changes follow, vectorised too.
torchvision's transforms draw one set of parameters per call from a global generator, so they are not used here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as image_ops

from distillcli.config.schema import AugmentConfig
from distillcli.sources.draws import uniform
from distillcli.views.colours import apply_operations, jitter_colours
from distillcli.views.policies import draw_policy
from distillcli.views.upload import send

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]

# Every random choice has its own column of draws, so that turning one part on never changes another.
_AREA, _RATIO, _LEFT, _TOP, _FLIP, _SHIFT_X, _SHIFT_Y, _ANGLE, _SHEAR, _ZOOM = range(10)
_BRIGHTNESS, _CONTRAST, _SATURATION, _ERASE, _ERASE_AREA, _ERASE_RATIO, _ERASE_LEFT, _ERASE_TOP = range(10, 18)
_HUE, _PAD_X, _PAD_Y = 18, 19, 20
_DRAWS = 21
_ERASE_AREAS, _ERASE_RATIOS = (0.02, 0.33), (0.3, 3.3)  # Zhong et al., AAAI 2020


@dataclass(frozen=True)
class Views:
    """The parameters of B views.

    ``boxes``: B x 4, the crop as left, top, width, height, as fractions of the image. ``maps``: B x 2 x 3, from output
    coordinates to coordinates within the crop, both in [-1, 1]. ``colours``: B x 4, factors for brightness, contrast
    and saturation, and turns of the hue. ``operations``, ``strengths``: B x n, the steps of a policy. ``erased``:
    B x 4, a blanked rectangle of the output, of size zero for none.
    """

    boxes: Floats
    maps: Floats
    colours: Floats
    operations: NDArray[np.str_]
    strengths: Floats
    erased: Floats


def centre_boxes(aspects: Floats, crop_fraction: float) -> Floats:
    """The largest centred squares, times ``crop_fraction``. ``aspects``: B, width / height of each image."""
    width = crop_fraction * np.minimum(1.0, 1.0 / aspects)
    height = crop_fraction * np.minimum(1.0, aspects)
    return np.stack([(1 - width) / 2, (1 - height) / 2, width, height], axis=1)


def crop_boxes(
    recipe: AugmentConfig, seed: int, view: Positions, index: Positions, aspects: Floats, crop_fraction: float
) -> Floats:
    """The crops of these views: random as in Inception, or the centred square if the recipe has no crop."""
    if recipe.crop_area == [1.0, 1.0]:
        return centre_boxes(aspects, crop_fraction)
    draws = uniform(seed, "view", view, index, _DRAWS)
    area = _between(recipe.crop_area, draws[:, _AREA])
    ratio = np.exp(_between([math.log(bound) for bound in recipe.crop_ratio], draws[:, _RATIO]))
    width, height = np.sqrt(area * ratio / aspects), np.sqrt(area / ratio * aspects)
    excess = np.maximum(1.0, np.maximum(width, height))  # a crop that does not fit shrinks and keeps its ratio
    width, height = width / excess, height / excess
    return np.stack([draws[:, _LEFT] * (1 - width), draws[:, _TOP] * (1 - height), width, height], axis=1)


def draw_views(
    recipe: AugmentConfig,
    seed: int,
    view: Positions,
    index: Positions,
    aspects: Floats,
    crop_fraction: float,
    size: int,
) -> Views:
    """In each row, view ``view`` of image ``index``. ``aspects``: width / height; ``size``: of the output in pixels."""
    draws = uniform(seed, "view", view, index, _DRAWS)
    signed = 2 * draws - 1

    flip = np.where(draws[:, _FLIP] < recipe.flip, -1.0, 1.0)
    angle = np.deg2rad(recipe.rotate) * signed[:, _ANGLE]
    shear = np.tan(np.deg2rad(recipe.shear) * signed[:, _SHEAR])
    zoom = np.exp(_between([math.log(bound) for bound in recipe.zoom], draws[:, _ZOOM]))
    # Whole pixels: a shift alone then moves the image without blurring it. The output spans 2 units.
    shift = np.round(recipe.translate * size * signed[:, [_SHIFT_X, _SHIFT_Y]])
    most = math.floor(recipe.pad * size)
    shift = (shift + np.floor((2 * most + 1) * draws[:, [_PAD_X, _PAD_Y]]) - most) * 2 / size

    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    linear = np.empty((len(index), 2, 2))
    linear[:, 0, 0], linear[:, 0, 1] = cos * flip, cos * shear - sin
    linear[:, 1, 0], linear[:, 1, 1] = sin * flip, sin * shear + cos
    offset = -np.einsum("bij,bj->bi", linear, shift)

    policy = draw_policy(recipe, seed, view, index, size)

    widths = np.array([recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue])
    colours = [1.0, 1.0, 1.0, 0.0] + widths * signed[:, [_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE]]

    area = _between(list(_ERASE_AREAS), draws[:, _ERASE_AREA])
    ratio = np.exp(_between([math.log(bound) for bound in _ERASE_RATIOS], draws[:, _ERASE_RATIO]))
    width, height = np.minimum(1, np.sqrt(area * ratio)), np.minimum(1, np.sqrt(area / ratio))
    hit = draws[:, _ERASE] < recipe.erase
    left, top = draws[:, _ERASE_LEFT] * (1 - width), draws[:, _ERASE_TOP] * (1 - height)
    erased = np.stack([left, top, width * hit, height * hit], axis=1)

    return Views(
        boxes=crop_boxes(recipe, seed, view, index, aspects, crop_fraction),
        maps=np.concatenate([linear, offset[:, :, None]], axis=2) @ policy.affine,
        colours=colours,
        operations=policy.names,
        strengths=policy.strengths,
        erased=erased,
    )


def plain_views(aspects: Floats, crop_fraction: float) -> Views:
    """The views for evaluation: the centred square and nothing else."""
    count = len(aspects)
    return Views(
        boxes=centre_boxes(aspects, crop_fraction),
        maps=np.tile(np.eye(2, 3), (count, 1, 1)),
        colours=np.tile([1.0, 1.0, 1.0, 0.0], (count, 1)),
        operations=np.empty((count, 0), np.str_),
        strengths=np.empty((count, 0)),
        erased=np.zeros((count, 4)),
    )


def _between(bounds: list[float], fraction: Floats) -> Floats:
    low, high = bounds
    return low + (high - low) * fraction


# --- pixels --------------------------------------------------------------------------------------------------------


def crop_and_resize(pixels_HWC: Tensor, box: Floats, size: int) -> Tensor:
    """One decoded image, cropped to ``box`` and resized with antialiasing: size x size x C, uint8."""
    height, width = pixels_HWC.shape[:2]
    left, top, right, bottom = (
        round(share * side)
        for share, side in zip((box[0], box[1], box[0] + box[2], box[1] + box[3]), (width, height) * 2, strict=True)
    )
    crop: Tensor = image_ops.resized_crop(
        pixels_HWC.permute(2, 0, 1), top, left, max(1, bottom - top), max(1, right - left), [size, size], antialias=True
    )
    return crop.permute(1, 2, 0).contiguous()


def render_views(pixels_BHWC: Tensor, views: Views, size: int) -> Tensor:
    """The views of uint8 images: B x C x size x size, float in [0, 1], black outside the image."""
    images = pixels_BHWC.permute(0, 3, 1, 2).float().div_(255)
    device = images.device
    left, top, width, height = (views.boxes[:, column] for column in range(4))
    scale = np.stack([width, height], axis=1)
    centre = np.stack([2 * left + width - 1, 2 * top + height - 1], axis=1)
    maps = views.maps * scale[:, :, None]
    maps[:, :, 2] += centre
    if images.shape[2:] != (size, size) or not np.array_equal(maps, np.broadcast_to(np.eye(2, 3), maps.shape)):
        grid = functional.affine_grid(
            send(maps.astype(np.float32), device), [*images.shape[:2], size, size], align_corners=False
        )
        images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        # "border" keeps the edges of an enlarged image bright; outside the image it is black all the same.
        images = images * (grid.abs() <= 1).all(dim=3).unsqueeze(1)
    if not np.all(views.colours == [1.0, 1.0, 1.0, 0.0]):
        images = jitter_colours(images, views.colours)
    if views.operations.size:
        images = apply_operations(images, views.operations, views.strengths)
    if np.any(views.erased[:, 2] > 0):
        images = _erase(images, send(views.erased.astype(np.float32), device))
    return images


def _erase(images: Tensor, boxes_B4: Tensor) -> Tensor:
    """Random erasing with the mean colour of the image."""
    size = images.shape[-1]
    pixel = (torch.arange(size, device=images.device) + 0.5) / size
    left, top, width, height = boxes_B4[:, :, None].unbind(1)
    columns = (pixel >= left) & (pixel < left + width)
    rows = (pixel >= top) & (pixel < top + height)
    inside = (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)
    return torch.where(inside, images.mean(dim=(2, 3), keepdim=True), images)

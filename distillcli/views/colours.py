"""Colour changes of images, B x C x H x W in [0, 1], with one strength per image.

torchvision's functions take one strength for the whole batch. Where it is a factor, their extreme is blended with each
image instead. As in torchvision, a single channel has no saturation and no hue. With more channels than RGB only
brightness and contrast can change, the contrast relative to the mean of all channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as image_ops

from distillcli.views.upload import send

# Images and strengths, B x 1 x 1 x 1, to images.
Operation = Callable[[Tensor, Tensor], Tensor]


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    return (images * factors).clamp(0, 1)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    return _grey(images).mean(dim=(2, 3), keepdim=True).lerp(images, factors).clamp(0, 1)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images
    return _grey(images).lerp(images, factors).clamp(0, 1)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    blurred: Tensor = image_ops.adjust_sharpness(images, 0.0)
    return blurred.lerp(images, factors).clamp(0, 1)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """``turns``: of the colour circle, in [-0.5, 0.5]; keeps value and saturation (Smith, SIGGRAPH 1978)."""
    if images.shape[1] != 3:
        return images
    value, strongest = images.max(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    following, last = (images.gather(1, (strongest + step) % 3) for step in (1, 2))
    sixth = 2 * strongest + (following - last) / chroma.where(chroma > 0, 1)
    # Each channel falls from the value to value - chroma and rises again, in sixths of the circle.
    offsets = per_image(np.array([5.0, 3.0, 1.0]), images).view(1, 3, 1, 1)
    position = (offsets + sixth + 6 * turns) % 6
    return value - chroma * torch.minimum(position, 4 - position).clamp(0, 1)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    levels = 2**bits
    return torch.minimum((images * levels).floor(), levels - 1) / levels


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    return torch.where(images >= thresholds, 1 - images, images)


def autocontrast(images: Tensor, _strengths: Tensor) -> Tensor:
    changed: Tensor = image_ops.autocontrast(images)
    return changed


def equalize(images: Tensor, _strengths: Tensor) -> Tensor:
    changed: Tensor = image_ops.equalize(images)
    return changed


def invert(images: Tensor, _strengths: Tensor) -> Tensor:
    return 1 - images


def _grey(images: Tensor) -> Tensor:
    grey: Tensor = image_ops.rgb_to_grayscale(images) if images.shape[1] == 3 else images.mean(dim=1, keepdim=True)
    return grey


PHOTOMETRIC: dict[str, Operation] = {
    "brightness": brightness,
    "color": saturation,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
}


def jitter_colours(images: Tensor, colours: NDArray[np.float64]) -> Tensor:
    """Colour jitter. ``colours``: B x 4, factors for brightness, contrast and saturation, and turns of the hue."""
    for column, operation in enumerate((brightness, contrast, saturation)):
        images = operation(images, per_image(colours[:, column], images))
    return hue(images, per_image(colours[:, 3], images)) if np.any(colours[:, 3]) else images


def apply_operations(images: Tensor, operations: NDArray[np.str_], strengths: NDArray[np.float64]) -> Tensor:
    """The steps of a policy, one per column. ``operations``, ``strengths``: B x n; unknown names change nothing."""
    images = images.clone()
    for names, numbers in zip(operations.T, strengths.T, strict=True):
        for name in set(names) & PHOTOMETRIC.keys():
            rows = np.flatnonzero(names == name)
            chosen = send(rows, images.device)
            images[chosen] = PHOTOMETRIC[name](images[chosen], per_image(numbers[rows], images))
    return images


def per_image(numbers: NDArray[np.float64], images: Tensor) -> Tensor:
    return send(numbers.astype(np.float32), images.device).view(-1, 1, 1, 1)

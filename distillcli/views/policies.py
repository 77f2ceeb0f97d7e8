"""Learned and random augmentation policies: which operations are applied to a view, and how strongly.

RandAugment (Cubuk et al., NeurIPS 2020), TrivialAugment Wide (Mueller and Hutter, ICCV 2021) and the CIFAR-10 policy of
AutoAugment (Cubuk et al., CVPR 2019), with the ranges of torchvision. Shears, shifts and rotations become part of the
view's one affine map, so that it is interpolated once; colour operations follow, in their own order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillcli.config.schema import AugmentConfig
from distillcli.sources.draws import uniform

Floats = NDArray[np.float64]

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_FACTORS = ("brightness", "color", "contrast", "sharpness")
# RandAugment and TrivialAugment choose from these with equal probability.
CHOICES = np.array(["identity", *GEOMETRIC, *_FACTORS, "posterize", "solarize", "autocontrast", "equalize"])

_LEVELS = 30  # of magnitude, from 0
_CHOICE, _HIT, _SIGN, _LEVEL = range(4)  # the draws of one step

# Each policy is two times operation, probability, level from 0 to 9.
_AUTOAUGMENT_CIFAR = np.array(
    [
        (("invert", 0.1, 0), ("contrast", 0.2, 6)),
        (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
        (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
        (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
        (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
        (("color", 0.4, 3), ("brightness", 0.6, 7)),
        (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
        (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
        (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
        (("color", 0.7, 7), ("translate_x", 0.5, 8)),
        (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
        (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
        (("brightness", 0.9, 6), ("color", 0.2, 8)),
        (("solarize", 0.5, 2), ("invert", 0.0, 0)),
        (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
        (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
        (("color", 0.9, 9), ("equalize", 0.6, 0)),
        (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
        (("brightness", 0.1, 3), ("color", 0.7, 0)),
        (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
        (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
        (("equalize", 0.8, 0), ("invert", 0.1, 0)),
        (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
    ]
)


@dataclass(frozen=True)
class Range:
    """The maximum strength of each kind. ``shift``: pixels; ``bits``: how many of 8 are dropped."""

    shear: float
    shift: float
    degrees: float
    factor: float
    bits: int


@dataclass(frozen=True)
class Steps:
    """What n steps do to B views.

    ``names``: B x n. ``strengths``: B x n, the tangent of a shear, pixels, degrees, a colour factor, the bits
    that remain, or a threshold. ``affine``: B x 3 x 3, all geometric steps together, from output to input coordinates
    in [-1, 1].
    """

    names: NDArray[np.str_]
    strengths: Floats
    affine: Floats


def draw_policy(
    recipe: AugmentConfig, seed: int, view: NDArray[np.int64], index: NDArray[np.int64], size: int
) -> Steps:
    """The steps of ``recipe.policy`` for these views, ``size`` pixels wide; no steps without a policy."""
    count = {"none": 0, "randaugment": recipe.policy_ops, "trivial": 1, "autoaugment_cifar": 2}[recipe.policy]
    draws = uniform(seed, "policy", view, index, 4 * count).reshape(len(index), count, 4)
    widest = Range(shear=0.3, shift=150 / 331 * size, degrees=30.0, factor=0.9, bits=4)
    names = CHOICES[(draws[:, :, _CHOICE] * len(CHOICES)).astype(int)]
    levels = np.full(names.shape, recipe.policy_magnitude / _LEVELS)
    if recipe.policy == "trivial":
        widest = Range(shear=0.99, shift=32.0, degrees=135.0, factor=0.99, bits=6)
        levels = np.floor(draws[:, :, _LEVEL] * (_LEVELS + 1)) / _LEVELS
    elif recipe.policy == "autoaugment_cifar":
        table = _AUTOAUGMENT_CIFAR[(draws[:, 0, _CHOICE] * len(_AUTOAUGMENT_CIFAR)).astype(int)]
        hit = draws[:, :, _HIT] < table[:, :, 1].astype(float)
        names, levels = np.where(hit, table[:, :, 0], "identity"), table[:, :, 2].astype(float) / 9
    signs = np.where(draws[:, :, _SIGN] < 0.5, -1.0, 1.0)
    strengths = strengths_of(names, levels, signs, widest)
    affine = np.tile(np.eye(3), (len(index), 1, 1))
    for step in range(count):
        affine = affine @ affine_maps(names[:, step], strengths[:, step], size)
    return Steps(names, strengths, affine)


def strengths_of(names: NDArray[np.str_], levels: Floats, signs: Floats, widest: Range) -> Floats:
    """``levels``: fractions of the maximum strength. Shifts are in whole pixels, bits are whole."""
    return np.select(
        [
            np.isin(names, ("shear_x", "shear_y")),
            np.isin(names, ("translate_x", "translate_y")),
            names == "rotate",
            np.isin(names, _FACTORS),
            names == "posterize",
            names == "solarize",
        ],
        [
            signs * levels * widest.shear,
            signs * np.floor(levels * widest.shift),
            signs * levels * widest.degrees,
            1 + signs * levels * widest.factor,
            8 - np.round(levels * widest.bits),
            1 - levels,
        ],
    )


def affine_maps(names: NDArray[np.str_], strengths: Floats, size: int) -> Floats:
    """B x 3 x 3. Shears keep the first row or column in place, as in AutoAugment; rotations are counter-clockwise."""
    maps = np.tile(np.eye(3), (len(names), 1, 1))
    for name, row, column in (("shear_x", 0, 1), ("shear_y", 1, 0)):
        chosen = names == name
        maps[chosen, row, column] = maps[chosen, row, 2] = strengths[chosen]
    for name, row in (("translate_x", 0), ("translate_y", 1)):
        maps[names == name, row, 2] = -2 / size * strengths[names == name]
    angle = np.deg2rad(np.where(names == "rotate", strengths, 0.0))
    turns = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    maps[names == "rotate", :2, :2] = turns[names == "rotate"]
    return maps

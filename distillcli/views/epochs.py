"""What an epoch shows: which images, in which order, how often and at what size: functions of seed and epoch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from distillcli.sources.draws import permutation, uniform

Positions = NDArray[np.int64]


def epoch_order(seed: int, epoch: int, labels: Positions, balanced: bool, repeats: int) -> Positions:
    """The positions of the images of an epoch in order: as many as there are ``labels``.

    ``repeats``: each image comes this many times in a row, so that fewer images come (Hoffer et al., CVPR 2020).
    """
    count = len(labels)
    once = balanced_order(seed, epoch, labels) if balanced else permutation(seed, epoch, count)
    return np.repeat(once, repeats)[:count]


def balanced_order(seed: int, epoch: int, labels: Positions) -> Positions:
    """Every class equally often, up to one image; an image comes N / (classes * images of its class) times on average.

    Systematic sampling: evenly spaced quantiles of the weighted images in random order. Each image comes as often as
    its weight, rounded up or down; drawing with replacement would miss some.
    """
    count = len(labels)
    draws = uniform(seed, "balance", epoch, np.arange(count), 2)
    laid_out = permutation(seed, epoch, count)
    # Class by class; otherwise the number of images of a class would depend on their random order.
    laid_out = laid_out[np.argsort(labels[laid_out], kind="stable")]
    cumulative_weights = np.cumsum(_weights(labels)[laid_out])
    chosen = laid_out[pick(cumulative_weights, (np.arange(count) + draws[0, 0]) / count)]
    shuffled: Positions = chosen[np.argsort(draws[:, 1], kind="stable")]
    return shuffled


def pick(cumulative_weights: NDArray[np.float64], quantiles: NDArray[np.float64]) -> Positions:
    """The positions at these ``quantiles``, in [0, 1), of N weighted items: uniform quantiles pick by weight."""
    levels = quantiles * cumulative_weights[-1]
    found: Positions = np.searchsorted(cumulative_weights, levels, side="right").clip(max=len(cumulative_weights) - 1)
    return found


def partner_cumulative_weights(labels: Positions, balanced: bool) -> NDArray[np.float64]:
    """N: the running sum of the weights by which images are drawn as partners in mixup and CutMix."""
    weights = _weights(labels) if balanced else np.ones(len(labels))
    cumulative_weights: NDArray[np.float64] = np.cumsum(weights)
    return cumulative_weights


def _weights(labels: Positions) -> NDArray[np.float64]:
    """How often each image comes in a balanced epoch, on average."""
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = len(labels) / (len(classes) * counts[inverse])
    return weights


def most_shown(labels: Positions, balanced: bool, repeats: int) -> int:
    """How many views of one image an epoch shows at most."""
    return repeats * (math.floor(_weights(labels).max()) + 1 if balanced else 1)


def earlier_occurrences(index: Positions) -> Positions:
    """For each entry, how many equal entries come before it."""
    by_value = np.argsort(index, kind="stable")
    ordered = index[by_value]
    found = np.empty_like(index)
    found[by_value] = np.arange(len(index)) - np.searchsorted(ordered, ordered)
    return found


def view_size(image_size: int, progressive: list[float] | None, epoch: int, epochs: int) -> int:
    """Height and width of a view in ``epoch``, in pixels: even numbers that grow linearly up to ``image_size``.

    ``progressive``: the fraction of ``image_size`` in the first epoch, and the fraction of ``epochs`` until full size.
    """
    if progressive is None:
        return image_size
    first, until = progressive
    progress = min(1.0, (epoch - 1) / max(1.0, until * epochs))
    return min(image_size, 2 * round(image_size * (first + (1 - first) * progress) / 2)) if progress < 1 else image_size

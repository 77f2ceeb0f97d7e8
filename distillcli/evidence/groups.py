"""Groups of models on the same images, each group trained in the same way with other seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from distillcli.evidence.paired import LEVEL, Hits, compare


@dataclass(frozen=True)
class SeedVariance:
    """Of the accuracy (a share of one) over seeds, estimated with so many degrees of freedom."""

    value: float
    freedom: int


@dataclass(frozen=True)
class GroupDifference:
    """The mean accuracy of one group less that of another, in points, with its 95 % interval and p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def seed_variance(groups: Sequence[Sequence[Hits]]) -> SeedVariance | None:
    """The variance over seeds within groups, pooled over all of them; None where no group has two members.

    Two seeds alone say little of it; that all ways of training vary alike is the price.
    """
    accuracies = [np.array([hits.mean() for hits in group]) for group in groups if len(group) > 1]
    freedom = sum(len(values) - 1 for values in accuracies)
    if not freedom:
        return None
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in accuracies)
    return SeedVariance(squares / freedom, freedom)


def compare_groups(first: Sequence[Hits], second: Sequence[Hits], seeds: SeedVariance | None) -> GroupDifference:
    """Compare which of N images the models of two groups get right.

    Without ``seeds`` the groups are single models, compared over images alone (``paired.compare``). Else the variance
    of the difference is that over images of the groups' means plus that over seeds, with degrees of freedom after
    Welch and Satterthwaite. What images and seeds have in common counts twice, so that the interval is rather too wide.
    """
    if seeds is None:
        found = compare(first[0], second[0])
        return GroupDifference(found.difference, found.low, found.high, found.p_value)
    each = _mean(first) - _mean(second)
    of_images = float(each.var(ddof=1)) / len(each)
    of_seeds = seeds.value * (1 / len(first) + 1 / len(second))
    mean, error = float(each.mean()), math.sqrt(of_images + of_seeds)
    if error == 0:
        return GroupDifference(100 * mean, 100 * mean, 100 * mean, 1.0 if mean == 0 else 0.0)
    freedom = (of_images + of_seeds) ** 2 / (of_images**2 / (len(each) - 1) + of_seeds**2 / seeds.freedom)
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    p_value = 2 * float(t.sf(abs(mean) / error, freedom))
    return GroupDifference(100 * mean, 100 * (mean - half), 100 * (mean + half), p_value)


def _mean(group: Sequence[Hits]) -> NDArray[np.float64]:
    """For each image, the share of models that get it right."""
    shares: NDArray[np.float64] = np.mean([hits.astype(float) for hits in group], axis=0)
    return shares


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, however they depend on each other (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, row in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[row]))
        adjusted[row] = largest
    return adjusted

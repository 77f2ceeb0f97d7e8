"""Two models on the same images: how much better one is, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, false_discovery_control, norm, t

LEVEL = 0.95
RESAMPLES = 10_000
# The sample size that shows a true effect of the size seen in four of five tries.
POWER = 0.8

Hits = NDArray[np.bool_]


@dataclass(frozen=True)
class Paired:
    """The accuracy of one model less that of another, in points, with its 95 % interval over images.

    ``p_value``: of the exact test of McNemar. ``gained``, ``lost``: images that only the first, only the second gets
    right.
    """

    difference: float
    low: float
    high: float
    p_value: float
    gained: int
    lost: int
    images: int

    @property
    def settled(self) -> bool:
        """Whether the difference is there: outside the interval and by the test."""
        return self.p_value < 1 - LEVEL and not self.low <= 0 <= self.high

    @property
    def images_to_settle(self) -> int | None:
        """How many images would show this difference at this rate of disagreement, in four of five tries.

        None for a difference of zero, which no number of images shows.
        """
        if self.gained == self.lost:
            return None
        rate, mean = (self.gained + self.lost) / self.images, (self.gained - self.lost) / self.images
        noticed, seen = float(norm.ppf((1 + LEVEL) / 2)), float(norm.ppf(POWER))
        wanted = noticed * math.sqrt(rate) + seen * math.sqrt(rate - mean**2)
        return math.ceil((wanted / mean) ** 2)


def compare(first: Hits, second: Hits) -> Paired:
    """Compare which images two models get right.

    The interval is that of Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data" (2012): unlike a bootstrap it also holds its level where the models disagree on
    few images, or on none. Raises ValueError for no image.
    """
    if len(first) == 0 or len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} images cannot be compared")
    gained, lost, images = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    up, down, size = (gained + 1) / (images + 2), (lost + 1) / (images + 2), images + 2
    half = float(norm.ppf((1 + LEVEL) / 2)) * math.sqrt((up + down - (up - down) ** 2) / size)
    discordant = gained + lost
    return Paired(
        difference=100 * (gained - lost) / images,
        low=100 * max(-1.0, up - down - half),
        high=100 * min(1.0, up - down + half),
        p_value=1.0 if discordant == 0 else float(binomtest(gained, discordant).pvalue),
        gained=gained,
        lost=lost,
        images=images,
    )


def compare_by_class(first: Hits, second: Hits, labels: NDArray[np.int64]) -> dict[int, tuple[Paired, float]]:
    """``compare`` within each class that occurs among N ``labels``, with its p-value adjusted for their number.

    Of the classes whose adjusted value is below 0.05 at most one in twenty is there by chance, on average (Benjamini
    and Hochberg 1995); the classes share no image, so that their tests are independent, as this asks.
    """
    found = {int(label): compare(first[labels == label], second[labels == label]) for label in np.unique(labels)}
    adjusted = false_discovery_control([one.p_value for one in found.values()]) if found else ()
    return {label: (one, float(value)) for (label, one), value in zip(found.items(), adjusted, strict=True)}


def share_interval(hits: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy over images, in percent (Wilson 1927)."""
    found = binomtest(hits, images).proportion_ci(LEVEL, method="wilson")
    return 100 * float(found.low), 100 * float(found.high)


def gap_interval(student: Hits, control: Hits, teacher: Hits) -> tuple[float, float] | None:
    """The 95 % interval of (student - control) / (teacher - control) over images, by a paired bootstrap.

    None where the gap itself is not beyond doubt: the ratio then has no meaning.
    """
    if not (gap := compare(teacher, control)).settled or gap.difference < 0:
        return None
    # Images count by which of the three models get them right: a resample is a draw of these eight counts.
    kinds = 4 * student.astype(int) + 2 * control.astype(int) + teacher.astype(int)
    shares = np.bincount(kinds, minlength=8) / len(kinds)
    counts = np.random.default_rng(0).multinomial(len(kinds), shares, size=RESAMPLES)
    right = {name: counts[:, np.arange(8) & bit > 0].sum(axis=1) for name, bit in (("s", 4), ("c", 2), ("t", 1))}
    widths = right["t"] - right["c"]
    ratios = (right["s"] - right["c"])[widths > 0] / widths[widths > 0]
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedSeeds:
    """The mean accuracy of one recipe less that of another, in points, with its 95 % interval over seeds and images.

    ``differences``: of each seed. An interval needs two seeds, and is endless with one.
    """

    difference: float
    low: float
    high: float
    differences: tuple[float, ...]

    @property
    def conclusion(self) -> str:
        return "helps" if self.low > 0 else "hurts" if self.high < 0 else "not settled"


def compare_seeds(first: Sequence[Hits], second: Sequence[Hits]) -> PairedSeeds:
    """Compare two recipes by the models that each gave with the same seeds, on the same images.

    Seeds and images are both samples, and all seeds share the images: averaging over seeds does not make the images
    more. The squares of both half widths are added, that over seeds by Student's t. Both hold what varies from model to
    model and image to image at once, so the interval is rather too wide than too narrow. Raises ValueError for no seed.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} seeds cannot be compared")
    better = np.stack(first).astype(float) - np.stack(second)  # seeds x images, of -1, 0 and 1
    seeds, images = better.shape
    difference, tail = float(better.mean()), (1 + LEVEL) / 2
    over_images = float(norm.ppf(tail)) * float(better.mean(axis=0).std(ddof=1)) / math.sqrt(images)
    over_seeds = math.inf
    if seeds > 1:
        over_seeds = float(t.ppf(tail, seeds - 1)) * float(better.mean(axis=1).std(ddof=1)) / math.sqrt(seeds)
    half = math.hypot(over_seeds, over_images)
    return PairedSeeds(
        difference=100 * difference,
        low=100 * (difference - half),
        high=100 * (difference + half),
        differences=tuple(100 * float(mean) for mean in better.mean(axis=1)),
    )

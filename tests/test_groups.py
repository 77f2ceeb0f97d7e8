"""Groups of models over seeds, many comparisons at once, classes: closed forms, references, and how often they err."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm, ttest_ind

from distillcli.evidence.groups import SeedVariance, compare_groups, holm, seed_variance
from distillcli.evidence.paired import Hits, compare, compare_by_class, share_interval


def random_hits(seed: int, models: int, images: int = 200, share: float = 0.7) -> list[Hits]:
    return list(np.random.default_rng(seed).random((models, images)) < share)


def test_without_seeds_two_models_are_compared_over_images() -> None:
    first, second = random_hits(0, 2)
    found, pair = compare_groups([first], [second], None), compare(first, second)
    assert (found.difference, found.low, found.high, found.p_value) == (
        *(pair.difference, pair.low, pair.high, pair.p_value),
    )
    assert seed_variance([[first], [second]]) is None


def test_the_variance_over_seeds_is_that_of_a_two_sample_test() -> None:
    first, second = random_hits(0, 3), random_hits(1, 5)
    found = seed_variance([first, second])
    means = [[hits.mean() for hits in group] for group in (first, second)]
    pooled = (2 * np.var(means[0], ddof=1) + 4 * np.var(means[1], ddof=1)) / 6
    assert found == SeedVariance(pytest.approx(pooled), 6)


def test_where_all_images_are_alike_only_the_seeds_count() -> None:
    """Each model gets all or nothing right, so that no image tells more than another: Student's t-test is left."""
    first = [np.full(50, right) for right in (True, True, True, False, True)]
    second = [np.full(50, right) for right in (False, True, False, False)]
    found = compare_groups(first, second, seed_variance([first, second]))
    means = [[float(hits.mean()) for hits in group] for group in (first, second)]
    assert found.p_value == pytest.approx(ttest_ind(*means).pvalue)
    assert found.difference == pytest.approx(100 * (np.mean(means[0]) - np.mean(means[1])))


def test_swapping_the_groups_mirrors_everything() -> None:
    first, second = random_hits(0, 3), random_hits(1, 2, share=0.6)
    seeds = seed_variance([first, second])
    there, back = compare_groups(first, second, seeds), compare_groups(second, first, seeds)
    assert (there.difference, there.low, there.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert there.p_value == pytest.approx(back.p_value)


def test_equal_groups_are_not_told_apart() -> None:
    same = random_hits(0, 1) * 2
    found = compare_groups(same, same, seed_variance([same, same]))
    assert (found.difference, found.p_value) == (0.0, 1.0)


@pytest.mark.parametrize("groups", [2, 9])
def test_the_interval_holds_the_truth_over_images_and_seeds(groups: int) -> None:
    """Ways of training that are equally good: seeds differ by as much as images do."""
    generator, held = np.random.default_rng(0), []
    for _ in range(400):
        difficulty = generator.normal(0.6, 1, 300)
        skills = generator.normal(0, 0.1, (groups, 2))
        chances = norm.cdf(difficulty[None, None] + skills[:, :, None])
        hits = [list(group) for group in generator.random(chances.shape) < chances]
        found = compare_groups(hits[0], hits[1], seed_variance(hits))
        held.append(found.low <= 0 <= found.high)
    assert np.mean(held) > 0.935


def test_holm_is_the_closure_of_bonferroni() -> None:
    """The largest Bonferroni value of all sets of hypotheses that hold this one."""
    values = [0.03, 0.001, 0.2, 0.011, 0.011]
    rows = range(len(values))
    sets = [chosen for size in rows for chosen in itertools.combinations(rows, size + 1)]
    wanted = [max(min(1, len(one) * min(values[k] for k in one)) for one in sets if row in one) for row in rows]
    assert holm(values) == pytest.approx(wanted)
    assert holm([]) == []


def test_classes_are_compared_each_on_its_own_images_and_adjusted() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 7, 500)
    first, second = generator.random((2, 500)) < np.where(labels == 3, 0.9, 0.6)
    second = second & ~((labels == 3) & (generator.random(500) < 0.6))
    found = compare_by_class(first, second, labels)
    assert sorted(found) == list(range(7))
    plain = {label: compare(first[labels == label], second[labels == label]) for label in range(7)}
    assert {label: one for label, (one, _) in found.items()} == plain
    order = sorted(plain, key=lambda label: plain[label].p_value)
    for place, label in enumerate(order):  # Benjamini and Hochberg, by its definition
        later = [plain[other].p_value * 7 / (rank + 1) for rank, other in enumerate(order) if rank >= place]
        assert found[label][1] == pytest.approx(min(1, *later))
    assert [label for label, (_, adjusted) in found.items() if adjusted < 0.05] == [3]


@pytest.mark.parametrize(("hits", "images"), [(0, 10), (10, 10), (7, 10), (930, 1000)])
def test_the_interval_of_an_accuracy_is_wilsons(hits: int, images: int) -> None:
    """The shares whose own standard error puts what was seen just at the edge."""
    z, share = norm.ppf(0.975), hits / images
    middle = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2)) / (1 + z**2 / images)
    assert share_interval(hits, images) == pytest.approx((100 * (middle - half), 100 * (middle + half)), abs=1e-9)

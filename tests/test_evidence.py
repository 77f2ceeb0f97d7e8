"""What is concluded from paired predictions: closed forms, symmetries, and how often it is right."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, norm, ttest_1samp

from distillcli.evidence.paired import Hits, Paired, compare, compare_seeds, gap_interval


def pair(both: int, gained: int, lost: int, neither: int) -> tuple[Hits, Hits]:
    first = np.repeat([True, True, False, False], [both, gained, lost, neither])
    second = np.repeat([True, False, True, False], [both, gained, lost, neither])
    return first, second


def test_a_difference_is_that_of_the_accuracies() -> None:
    first, second = pair(200, 30, 12, 58)
    found = compare(first, second)
    assert found.difference == pytest.approx(100 * (first.mean() - second.mean()))
    assert (found.gained, found.lost, found.images) == (30, 12, 300)
    assert found.low < found.difference < found.high


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (0, 5), (7, 7), (30, 12), (1, 9)])
def test_the_p_value_is_the_sum_of_the_binomial_tails(gained: int, lost: int) -> None:
    """Both tails of a fair coin tossed once for each image on which the models disagree."""
    tosses = gained + lost
    tail = sum(binom.pmf(k, tosses, 0.5) for k in range(min(gained, lost) + 1))
    assert compare(*pair(50, gained, lost, 10)).p_value == pytest.approx(min(1.0, 2 * tail))


def test_the_interval_is_walds_after_one_more_image_of_each_disagreement() -> None:
    found = compare(*pair(200, 30, 12, 58))
    up, down, size = 31 / 302, 13 / 302, 302
    half = norm.ppf(0.975) * math.sqrt((up + down - (up - down) ** 2) / size)
    assert (found.low, found.high) == (pytest.approx(100 * (up - down - half)), pytest.approx(100 * (up - down + half)))


def test_swapping_the_models_mirrors_everything() -> None:
    first, second = pair(100, 20, 5, 30)
    there, back = compare(first, second), compare(second, first)
    assert (there.difference, there.low, there.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert there.p_value == pytest.approx(back.p_value)


def test_models_that_never_disagree_are_not_said_to_be_equal_for_sure() -> None:
    found = compare(*pair(20, 0, 0, 12))
    assert (found.difference, found.p_value, found.settled, found.images_to_settle) == (0.0, 1.0, False, None)
    assert found.low < 0 < found.high
    few, many = (compare(*pair(count, 0, 0, 0)) for count in (10, 10_000))
    assert few.high > 10 * many.high


def test_nothing_can_be_compared_on_no_image_or_on_others() -> None:
    nothing = np.zeros(0, bool)
    with pytest.raises(ValueError, match="0 and 0 images"):
        compare(nothing, nothing)
    with pytest.raises(ValueError, match="1 and 2 images"):
        compare(np.ones(1, bool), np.ones(2, bool))


def test_as_many_images_as_are_said_to_settle_a_difference_mostly_do() -> None:
    seen = Paired(3.0, 0, 0, 1, gained=60, lost=30, images=1000)
    needed = seen.images_to_settle
    assert needed is not None
    generator = np.random.default_rng(0)
    settled = [
        compare(*pair(*map(int, generator.multinomial(needed, [0.8, 0.06, 0.03, 0.11])))).settled for _ in range(500)
    ]
    assert 0.7 < np.mean(settled) < 0.9  # 0.8 is meant


@pytest.mark.parametrize("images", [32, 300])
@pytest.mark.parametrize(("gain", "disagreement"), [(0.0, 0.02), (0.0, 0.2), (0.04, 0.1), (-0.1, 0.3)])
def test_the_interval_holds_the_truth_and_a_false_alarm_is_rare(images: int, gain: float, disagreement: float) -> None:
    generator = np.random.default_rng(0)
    shares = [0.6, (disagreement + gain) / 2, (disagreement - gain) / 2, 0.4 - disagreement]
    found = [compare(*pair(*map(int, generator.multinomial(images, shares)))) for _ in range(1000)]
    assert np.mean([pair.low <= 100 * gain <= pair.high for pair in found]) > 0.93
    if gain == 0:
        assert np.mean([pair.settled and pair.difference > 0 for pair in found]) < 0.035  # 0.025 is meant


def test_the_gap_has_an_interval_where_there_is_a_gap() -> None:
    generator = np.random.default_rng(0)
    teacher, control = generator.random(2000) < 0.95, generator.random(2000) < 0.7
    halfway = np.where(generator.random(2000) < 0.5, teacher, control)
    found = gap_interval(halfway, control, teacher)
    assert found is not None
    assert found[0] < 0.5 < found[1]
    assert found[1] - found[0] < 0.3
    assert gap_interval(teacher, control, teacher) == (1.0, 1.0)
    assert gap_interval(control, control, teacher) == (0.0, 0.0)
    assert found == gap_interval(halfway, control, teacher), "the resamples are always the same"


def test_without_a_gap_beyond_doubt_its_share_has_no_interval() -> None:
    few = [np.array(hits) for hits in itertools.islice(itertools.product([True, False], repeat=5), 3)]
    assert gap_interval(few[0], few[1], few[2]) is None
    worse, better = pair(50, 0, 40, 10)
    assert gap_interval(better, better, worse) is None


def test_over_seeds_alone_the_interval_is_students() -> None:
    """Every image alike: what one seed gains it gains everywhere, so that images add nothing."""
    share = [0, 1, 1, 0, 1]
    first = [np.full(400, bool(one)) for one in share]
    found = compare_seeds(first, [np.zeros(400, bool)] * 5)
    expected = ttest_1samp(share, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert found.differences == (0, 100, 100, 0, 100)
    assert found.conclusion == "not settled"


def test_over_images_alone_more_seeds_do_not_narrow_the_interval() -> None:
    first, second = pair(200, 30, 12, 58)
    two, nine = (compare_seeds([first] * count, [second] * count) for count in (2, 9))
    assert (two.low, two.high) == pytest.approx((nine.low, nine.high))
    plain = compare(first, second)
    assert two.difference == pytest.approx(plain.difference)
    assert (two.low, two.high) == pytest.approx((plain.low, plain.high), abs=0.2)
    assert two.conclusion == "helps"
    assert compare_seeds([second] * 2, [first] * 2).conclusion == "hurts"


def test_an_interval_over_seeds_and_images_holds_its_level() -> None:
    """Seeds shift all images a little, images have difficulties of their own; the true difference is known."""
    random, inside, tries, truth = np.random.RandomState(0), 0, 300, 0.02
    for _ in range(tries):
        hard = random.uniform(0.6, 0.95, 500)
        shift = random.normal(truth, 0.02, (5, 1))
        first = random.uniform(size=(5, 500)) < np.clip(hard + shift, 0, 1)
        second = random.uniform(size=(5, 500)) < hard
        found = compare_seeds([*first], [*second])
        inside += found.low <= 100 * truth <= found.high
    assert inside / tries > 0.93


def test_one_seed_settles_nothing_and_none_is_refused() -> None:
    first, second = pair(200, 90, 2, 58)
    assert compare_seeds([first], [second]).conclusion == "not settled"
    with pytest.raises(ValueError, match="0 and 0 seeds"):
        compare_seeds([], [])

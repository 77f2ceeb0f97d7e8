"""What an epoch shows: balanced, repeated, growing; and each view of an image under its own number."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from distillcli.config.schema import AugmentConfig
from distillcli.errors import UserError
from distillcli.sources.draws import permutation
from distillcli.views.epochs import earlier_occurrences, epoch_order, most_shown, view_size
from distillcli.views.showing import Showing
from tests.conftest import Distill
from tests.test_cache import batches, cached
from tests.test_loader import array_images, loader
from tests.tiny import STEPS, digest, last, tiny, train

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")

LONG_TAIL = np.repeat([0, 1, 2, 3], [600, 250, 120, 30])


def test_a_plain_epoch_is_a_permutation() -> None:
    assert np.array_equal(epoch_order(3, 2, LONG_TAIL, False, 1), permutation(3, 2, 1_000))


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_balanced_epoch_shows_every_class_equally_often_and_no_image_much_more_than_another(epoch: int) -> None:
    index = epoch_order(0, epoch, LONG_TAIL, True, 1)
    assert np.abs(np.bincount(LONG_TAIL[index]) - 250).max() <= 1
    times = np.bincount(index, minlength=1_000)
    for label, expected in enumerate(1_000 / (4 * np.bincount(LONG_TAIL))):
        assert set(times[label == LONG_TAIL]) <= {int(np.floor(expected)), int(np.ceil(expected))}
    assert times.max() <= most_shown(LONG_TAIL, True, 1) == 9
    halves = LONG_TAIL[index].reshape(2, 500)
    assert all(100 < (half == 3).sum() < 150 for half in halves)  # shuffled: no class comes first


def test_balancing_a_balanced_set_shows_every_image_once() -> None:
    labels = np.arange(400) % 4
    assert np.array_equal(np.sort(epoch_order(0, 1, labels, True, 1)), np.arange(400))


def test_balanced_epochs_come_to_every_image_and_differ() -> None:
    epochs = [epoch_order(0, epoch, LONG_TAIL, True, 1) for epoch in range(1, 31)]
    assert set(np.concatenate(epochs)) == set(range(1_000))
    assert not np.array_equal(np.sort(epochs[0]), np.sort(epochs[1]))
    assert np.array_equal(epochs[0], epoch_order(0, 1, LONG_TAIL, True, 1))


def test_occurrences_count_what_stands_before() -> None:
    assert earlier_occurrences(np.array([5, 2, 5, 5, 2, 0])).tolist() == [0, 0, 1, 2, 1, 0]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_no_two_epochs_share_a_view_and_steps_stay(balanced: bool, repeats: int) -> None:
    source = loader(array_images(50))
    source.labels[:] = torch.from_numpy(np.repeat([0, 1, 2], [30, 15, 5]))
    source.config.balanced = balanced
    recipe, met = AugmentConfig(name="test", repeats=repeats, flip=0.5, rotate=20.0), Counter[tuple[int, int]]()
    images = dict[tuple[int, int], torch.Tensor]()
    for epoch in (1, 2, 3):
        shown = Showing(source, recipe, 7, 12)
        steps = list(shown.epoch(epoch))
        assert len(steps) == shown.steps_per_epoch == 4
        for (batch,) in steps:
            assert isinstance(batch.view, torch.Tensor)
            rows = list(zip(batch.view.tolist(), batch.index.tolist(), strict=True))
            if not balanced:
                assert set(Counter(batch.index.tolist()).values()) == {repeats}
            met.update(rows)
            images |= dict(zip(rows, batch.images, strict=True))
    assert set(met.values()) == {1}
    for one, two in itertools.pairwise(sorted(images, key=lambda row: (row[1], row[0]))):
        assert one[1] != two[1] or not torch.equal(images[one], images[two])


def test_repeated_views_are_cached_each_for_itself(tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}", "teacher.cache.mode=float32", "augment.repeats=2", "teacher.cache.views=2")
    teacher, data = cached(config)
    seen = set()
    for epoch in (1, 2, 3, 4):
        for batch in batches(config, data, epoch):
            assert isinstance(batch.view, torch.Tensor)
            seen.update(batch.view.tolist())
            live = teacher.live.backbone.eval()(batch.images).logits
            torch.testing.assert_close(teacher(batch).logits, live, rtol=0, atol=1e-4)
    assert seen == {1, 2, 3, 4}


def test_views_grow_to_full_size_in_even_numbers() -> None:
    sides = [view_size(224, [0.5, 0.8], epoch, 10) for epoch in range(1, 11)]
    assert sides == [112, 126, 140, 154, 168, 182, 196, 210, 224, 224]
    assert view_size(224, None, 1, 10) == 224
    assert view_size(32, [0.5, 0.01], 1, 2) == 16


@pytest.mark.parametrize("override", ["trainer.progressive=[0.5,0.5]", "dataset.balanced=true", "augment.repeats=2"])
def test_a_run_trains_as_asked_and_otherwise_than_without(override: str, tmp_path: Path) -> None:
    train(tiny("trainer.epochs=2", override), tmp_path / "asked")
    train(tiny("trainer.epochs=2"), tmp_path / "plain")
    assert last(tmp_path / "asked")["step"] == 2 * STEPS
    assert last(tmp_path / "asked")["recipe"] != last(tmp_path / "plain")["recipe"]
    if override != "dataset.balanced=true":  # this set is balanced, all but the order changes
        assert digest(last(tmp_path / "asked")["student"]) != digest(last(tmp_path / "plain")["student"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("augment.repeats=3", "trainer.batch_size=16 is not divisible"),
        ("augment.repeats=0", "at least 1"),
        ("trainer.progressive=[0.5]", "two fractions"),
        ("trainer.progressive=[0.1,0.5]", "fewer than 8 pixels"),
        ("augment.policy=random", "one of none, randaugment"),
        ("augment.policy_magnitude=31", r"\[0, 30\]"),
        ("augment.mixup=-1", "at least 0"),
        ("augment.mix_probability=2", r"\[0, 1\]"),
        ("augment.hue=0.6", "at most 0.5"),
    ],
)
def test_what_cannot_be_shown_is_refused(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny(override)


def test_views_that_grow_do_not_come_again() -> None:
    with pytest.raises(UserError, match=r"teacher.cache.views=0"):
        tiny("trainer.progressive=[0.5,0.5]", "teacher.cache.views=2")


def test_a_model_of_one_size_refuses_growing_views(distill: Distill) -> None:
    answer = distill("train", "experiment=smoke", "trainer.progressive=[0.5,0.5]", "student.name=test_vit")
    assert answer.code == 2
    assert "test_vit takes images of one size; use trainer.progressive=null" in answer.stderr
    assert "Traceback" not in answer.stderr

"""Mixup and CutMix: functions of (seed, view, index), closed forms of pixels and labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from distillcli.config.schema import AugmentConfig, DatasetConfig
from distillcli.types import Batch
from distillcli.views.epochs import partner_cumulative_weights
from distillcli.views.loader import Loader
from distillcli.views.mix import Mix, draw_mix, mix_images, mix_labels
from distillcli.views.showing import Showing
from distillcli.views.store import Rows
from tests.test_loader import CONFIG, MEMORY, STREAM, array_images, by_index, file_images, loader, same
from tests.tiny import last, tiny, train

pytestmark = pytest.mark.usefixtures("ranks_without_a_group")

MIXING = [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0, "mix_probability": 0.7}]


def recipe(**parts: Any) -> AugmentConfig:
    return AugmentConfig(name="test", **{"flip": 0.5, "crop_area": [0.3, 1.0], "brightness": 0.4, **parts})


def mixes(count: int = 5_000, view: int = 1, split: int = 1_000, size: int = 32, **parts: Any) -> Mix:
    return draw_mix(recipe(**parts), 0, np.full(count, view), np.arange(count), even(split), size)


def even(split: int) -> NDArray[np.float64]:
    """Any of the images is as likely to be a partner."""
    return partner_cumulative_weights(np.zeros(split, np.int64), balanced=False)


def unmixed(source: Loader, index: Tensor, view: int) -> Tensor:
    (batch,) = source.views(recipe(), 7, [Rows(np.full(len(index), view), index.numpy())])
    return batch.images


# --- parameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_follow_their_beta_distribution(alpha: float) -> None:
    assert stats.kstest(mixes(mixup=alpha).opacity, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    left, top, right, bottom = mixes(cutmix=alpha, size=100_000).boxes.T
    inside = (left > 0) & (top > 0) & (right < 100_000) & (bottom < 100_000)  # what the rim did not cut off
    areas = ((right - left) * (bottom - top))[inside] / 100_000**2
    # A box of side s stays inside with probability (1 - s)^2.
    shares = np.random.default_rng(0).beta(alpha, alpha, 100_000)
    kept = shares[np.random.default_rng(1).random(100_000) < (1 - np.sqrt(shares)) ** 2]
    assert stats.ks_2samp(areas, kept).pvalue > 0.01


def test_partners_are_any_image_of_the_split() -> None:
    partners = mixes(count=20_000, split=50, mixup=1.0).partners
    assert stats.chisquare(np.bincount(partners, minlength=50)).pvalue > 0.01


def test_partners_are_of_every_class_alike_where_classes_are_balanced() -> None:
    labels = np.random.RandomState(0).permutation(np.repeat([0, 1, 2], [70, 25, 5]))
    ends = partner_cumulative_weights(labels, balanced=True)
    partners = draw_mix(recipe(mixup=1.0), 0, np.ones(30_000, np.int64), np.arange(30_000), ends, 32).partners
    assert stats.chisquare(np.bincount(labels[partners])).pvalue > 0.01
    for label in range(3):
        of_class = np.flatnonzero(labels == label)
        assert stats.chisquare(np.bincount(partners, minlength=100)[of_class]).pvalue > 0.01


def test_the_images_that_are_mixed_in_follow_the_balance_of_the_data() -> None:
    """Half of what the views show is of the rare class, which one image of nine has."""
    config = DatasetConfig(name="test", image_size=16, balanced=True)
    source = loader(array_images(27))
    source = dataclasses.replace(source, config=config, classes=2, labels=(torch.arange(27) % 9 == 0).long())
    parts = recipe(mixup=1.0)
    batches = [batch for number in range(1, 41) for (batch,) in Showing(source, parts, 7, 12).epoch(number)]
    assert torch.cat([batch.targets for batch in batches]).mean(dim=0)[1].item() == pytest.approx(0.5, abs=0.03)
    plain = dataclasses.replace(source, config=CONFIG)
    assert source.rendering(parts) == [*plain.rendering(parts), "balanced partners"]
    assert source.rendering(recipe()) == plain.rendering(recipe())


def test_mixes_come_with_their_probability_and_either_kind_half_of_the_time() -> None:
    mix = mixes(count=10_000, mixup=1.0, cutmix=1.0, mix_probability=0.3)
    assert stats.binomtest(int(mix.mixed.sum()), 10_000, 0.3).pvalue > 0.01
    pasted = mix.opacity[mix.mixed] == 1
    assert stats.binomtest(int(pasted.sum()), len(pasted), 0.5).pvalue > 0.01
    whole = (mix.boxes[mix.mixed] == [0, 0, 32, 32]).all(axis=1)
    assert whole[~pasted].all()
    assert not whole[pasted].all()
    assert not mixes().mixed.any()


def test_a_mix_depends_on_seed_view_and_index_alone() -> None:
    whole = mixes(mixup=1.0, cutmix=1.0)
    picked = np.array([400, 3, 3, 77])
    one = draw_mix(recipe(mixup=1.0, cutmix=1.0), 0, np.ones(4, np.int64), picked, even(1_000), 32)
    for field in dataclasses.fields(Mix):
        assert np.array_equal(getattr(one, field.name), getattr(whole, field.name)[picked])
        assert not np.array_equal(getattr(mixes(view=2, mixup=1.0, cutmix=1.0), field.name), getattr(whole, field.name))


# --- images and labels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_bytes", [MEMORY, STREAM])
@pytest.mark.parametrize("parts", MIXING, ids=str)
def test_a_mixed_view_is_made_of_two_unmixed_views_of_the_split(memory_bytes: float, parts: dict[str, float]) -> None:
    source = loader(array_images(26), memory_bytes)
    whole, plain = (list(Showing(source, one, 7, 12).epoch(3)) for one in (recipe(**parts), recipe()))
    for (batch,), (before,) in zip(whole, plain, strict=True):
        index = batch.index.numpy()
        mix = draw_mix(recipe(**parts), 7, np.full(12, 3), index, even(26), 16)
        partners = unmixed(source, torch.from_numpy(mix.partners), 3)
        for row, (left, top, right, bottom) in enumerate(mix.boxes):
            weight = torch.zeros(16, 16)
            weight[top:bottom, left:right] = float(mix.opacity[row])
            expected = (1 - weight) * before.images[row] + weight * partners[row]
            torch.testing.assert_close(batch.images[row], expected, rtol=0, atol=2e-6)
            shares = torch.zeros(3)
            shares[index[row] % 3] += 1 - weight.mean()
            shares[mix.partners[row] % 3] += weight.mean()
            torch.testing.assert_close(batch.targets[row], shares, rtol=0, atol=1e-6)


def test_a_view_that_is_not_mixed_is_the_same_bit_for_bit() -> None:
    source = loader(array_images(26))
    (batch,), (before,) = (
        next(Showing(source, recipe(**parts), 7, 24).epoch(1)) for parts in ({"mixup": 1.0, "mix_probability": 0.5}, {})
    )
    mixed = draw_mix(
        recipe(mixup=1.0, mix_probability=0.5), 7, np.ones(24, np.int64), batch.index.numpy(), even(26), 16
    ).mixed
    assert 4 < mixed.sum() < 20
    assert torch.equal(batch.images[~mixed], before.images[~mixed])
    assert torch.equal(batch.targets[~mixed].argmax(dim=1), before.targets[~mixed])
    assert set(batch.targets[~mixed].unique().tolist()) == {0.0, 1.0}


def test_an_image_without_a_label_leaves_its_share_out() -> None:
    mix = Mix(np.arange(3), np.tile([0, 0, 4, 2], (3, 1)), np.array([1.0, 0.5, 0.5]))
    labels, others = torch.tensor([0, -1, -1]), torch.tensor([-1, 2, -1])
    expected = torch.tensor([[0.5, 0, 0], [0, 0, 0.25], [0, 0, 0]])
    assert torch.equal(mix_labels(labels, others, mix, 4, 3), expected)


def test_the_images_given_are_not_changed() -> None:
    images, mix = torch.zeros(2, 3, 4, 4), Mix(np.arange(2), np.tile([0, 0, 4, 4], (2, 1)), np.ones(2))
    assert torch.equal(mix_images(images, torch.ones(2, 3, 4, 4), mix), torch.ones(2, 3, 4, 4))
    assert not images.any()


# --- what may not matter ------------------------------------------------------------------------------------------


def shown(source: Loader, first_step: int = 0, **options: Any) -> list[list[Batch]]:
    return list(Showing(source, recipe(mixup=1.0, cutmix=1.0), 7, 12, **options).epoch(2, first_step))


@pytest.mark.parametrize("memory_bytes", [MEMORY, STREAM])
def test_workers_micro_batches_ranks_and_resuming_change_no_mix(tmp_path: Path, memory_bytes: float) -> None:
    images = file_images(tmp_path, [(40 + 8 * (number % 3), 40) for number in range(26)])
    whole = shown(loader(images, memory_bytes))
    assert same(whole, shown(loader(images, memory_bytes, workers=2)))
    assert same(whole[1:], shown(loader(images, memory_bytes), first_step=1))
    split = shown(loader(images, memory_bytes), micro_batches=3)
    ranks = [shown(loader(images, memory_bytes, rank=rank, world=2)) for rank in range(2)]
    for step, (batch,) in enumerate(whole):
        expected, targets = by_index([batch]), dict(zip(batch.index.tolist(), batch.targets, strict=True))
        for parts in (split[step], [rank[step][0] for rank in ranks]):
            assert by_index(parts).keys() == expected.keys()
            for part in parts:
                for position, image, target in zip(part.index.tolist(), part.images, part.targets, strict=True):
                    torch.testing.assert_close(image, expected[position], rtol=0, atol=1e-6)
                    assert torch.equal(target, targets[position])


@pytest.mark.parametrize("distill", ["kd", "dkd", "nkd", "wsld", "tfkd"])
def test_every_labelled_objective_trains_on_mixed_views(distill: str, tmp_path: Path) -> None:
    config = tiny("augment.mixup=1", "augment.cutmix=1", f"distill={distill}", "trainer.epochs=1")
    train(config, tmp_path / "run")
    assert last(tmp_path / "run")["step"] == 4

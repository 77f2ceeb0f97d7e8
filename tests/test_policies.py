"""RandAugment, TrivialAugment and AutoAugment: torchvision's operations and ranges, drawn for each view apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image_ops

from distillcli.config.schema import AugmentConfig
from distillcli.views.colours import PHOTOMETRIC, apply_operations
from distillcli.views.policies import _AUTOAUGMENT_CIFAR, CHOICES, GEOMETRIC, Steps, affine_maps, draw_policy
from distillcli.views.views import plain_views, render_views
from tests.test_views import pixels, shown, smooth

COUNT = 14_000
# Operation here -> torchvision's name of it.
NAMES = {
    **{name: "".join(part.capitalize() for part in name.split("_")) for name in [*CHOICES, "invert"]},
    "autocontrast": "AutoContrast",
}


def steps(policy: str, size: int = 32, view: int = 1, count: int = COUNT, **parts: Any) -> Steps:
    recipe = AugmentConfig(name="test", policy=policy, **parts)
    return draw_policy(recipe, 0, np.full(count, view), np.arange(count), size)


def torchvisions(space: dict[str, Any], name: str, bins: int, size: int) -> tuple[list[float], bool]:
    """The strengths torchvision chooses from, and whether it gives them a random sign."""
    magnitudes, signed = space[NAMES[name]]
    found = magnitudes(bins, size, size)
    return ([] if found is None else [float(value) for value in found]), signed


def as_ours(name: str, magnitude: float) -> float:
    if name in ("brightness", "color", "contrast", "sharpness"):
        return 1 + magnitude
    return float(int(magnitude)) if name.startswith("translate") else magnitude


# --- what is drawn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["randaugment", "trivial"])
def test_every_operation_of_torchvision_comes_equally_often(policy: str) -> None:
    names = steps(policy).names
    space = v2.RandAugment if policy == "randaugment" else v2.TrivialAugmentWide
    assert {NAMES[name] for name in CHOICES} == space._AUGMENTATION_SPACE.keys()
    for column in names.T:
        counts = [int((column == name).sum()) for name in CHOICES]
        assert sum(counts) == COUNT
        assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("size", [32, 224])
def test_the_strengths_of_randaugment_are_torchvisions(magnitude: int, size: int) -> None:
    drawn = steps("randaugment", size, policy_ops=3, policy_magnitude=magnitude)
    assert drawn.names.shape == (COUNT, 3)
    for name in CHOICES:
        known, signed = torchvisions(v2.RandAugment._AUGMENTATION_SPACE, name, 31, size)
        expected = {as_ours(name, sign * known[magnitude]) for sign in ((-1, 1) if signed else (1,))} if known else {0}
        found = set(drawn.strengths[drawn.names == name].tolist())
        assert sorted(found) == pytest.approx(sorted(expected), abs=1e-5), name


def test_trivialaugment_draws_one_of_torchvisions_strengths() -> None:
    drawn = steps("trivial", count=60_000)
    assert drawn.names.shape == (60_000, 1)
    for name in CHOICES:
        known, signed = torchvisions(v2.TrivialAugmentWide._AUGMENTATION_SPACE, name, 31, 32)
        expected = {as_ours(name, sign * value) for value in known for sign in ((-1, 1) if signed else (1,))} or {0}
        found, counts = np.unique(np.round(drawn.strengths[drawn.names == name], 4), return_counts=True)
        rounding = 1.0 if name.startswith("translate") else 2e-4  # torchvision's float32 makes 15 pixels of 16
        assert found.tolist() == pytest.approx(sorted({round(value, 4) + 0.0 for value in expected}), abs=rounding), (
            name
        )
        if signed and not name.startswith("translate"):
            middle = counts[np.abs(found - np.median(found)) > 1e-3]  # strength 0 has no sign and comes twice as often
            assert stats.chisquare(middle).pvalue > 0.001, name


def test_the_table_of_autoaugment_is_torchvisions() -> None:
    published = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies
    assert len(published) == len(_AUTOAUGMENT_CIFAR)
    for ours, theirs in zip(_AUTOAUGMENT_CIFAR, published, strict=True):
        for (name, probability, level), (their_name, their_probability, their_level) in zip(ours, theirs, strict=True):
            assert NAMES[name] == their_name
            assert float(probability) == their_probability
            assert int(level) == (their_level or 0)


def test_autoaugment_takes_each_pair_equally_often_and_its_halves_with_their_probability() -> None:
    drawn = steps("autoaugment_cifar", count=50_000)
    # The last pair but one: equalize with 0.8, then invert with 0.1; invert is last in no other pair that can hit.
    inverted = drawn.names[:, 1] == "invert"
    assert stats.binomtest(int(inverted.sum()), 50_000, 0.1 / 25).pvalue > 0.01
    assert stats.binomtest(int((drawn.names[inverted, 0] == "equalize").sum()), int(inverted.sum()), 0.8).pvalue > 0.01
    both = (drawn.names == "translate_y").all(axis=1)
    assert stats.binomtest(int(both.sum()), 50_000, 0.9 * 0.7 / 25).pvalue > 0.01
    space = v2.AutoAugment._AUGMENTATION_SPACE
    for name in (*GEOMETRIC, *PHOTOMETRIC):
        known, signed = torchvisions(space, name, 10, 32)
        allowed = [as_ours(name, sign * value) for value in known for sign in ((-1, 1) if signed else (1,))] or [0.0]
        for strength in set(drawn.strengths[drawn.names == name].tolist()):
            assert min(abs(strength - value) for value in allowed) < 1e-5, name


def test_a_policy_depends_on_seed_view_and_index_alone() -> None:
    whole, picked = steps("trivial"), np.array([400, 3, 3, 77])
    recipe = AugmentConfig(name="test", policy="trivial")
    one = draw_policy(recipe, 0, np.ones(4, np.int64), picked, 32)
    for field in dataclasses.fields(Steps):
        assert np.array_equal(getattr(one, field.name), getattr(whole, field.name)[picked])
        assert not np.array_equal(getattr(steps("trivial", view=2), field.name), getattr(whole, field.name))


# --- what it does -------------------------------------------------------------------------------------------------


def apply(name: str, image: torch.Tensor, strength: float) -> torch.Tensor:
    """torchvision's operation on one image, C x H x W."""
    found: torch.Tensor = v2.RandAugment()._apply_image_or_video_transform(
        image, NAMES[name], strength, interpolation=InterpolationMode.BILINEAR, fill={}
    )
    return found


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_a_change_of_colours_is_torchvisions_with_one_strength_per_image(name: str) -> None:
    images = shown(torch.cat([pixels(5), smooth(32, 32)[None]]))
    strengths = {"posterize": np.array([8.0, 7, 4, 2, 1, 4]), "solarize": np.array([1.0, 0.9, 0.5, 0.1, 0.0, 0.5])}
    numbers = strengths.get(name, np.array([0.01, 0.5, 1.0, 1.5, 1.99, 1.3]))
    changed = apply_operations(images, np.array([[name]] * 6), numbers[:, None])
    factor = name in ("brightness", "color", "contrast", "sharpness")
    for row, number in enumerate(numbers.tolist()):
        expected = apply(name, images[row], number - 1 if factor else number)
        torch.testing.assert_close(changed[row], expected, rtol=0, atol=2e-6)


def test_steps_follow_each_other_and_rows_without_one_stay_bit_for_bit() -> None:
    images = shown(pixels(4))
    names = np.array([["invert", "solarize"], ["solarize", "invert"], ["identity", "identity"], ["rotate", "invert"]])
    strengths = np.array([[0.0, 0.3], [0.3, 0.0], [0.0, 0.0], [9.0, 0.0]])
    changed = apply_operations(images, names, strengths)
    expected = torch.stack(
        [
            image_ops.solarize(image_ops.invert(images[0]), 0.3),
            image_ops.invert(image_ops.solarize(images[1], 0.3)),
            images[2],
            image_ops.invert(images[3]),
        ]
    )
    assert torch.equal(changed, expected)
    assert not torch.equal(changed[0], images[0])


def affine_view(maps: NDArray[np.float64], image: torch.Tensor) -> torch.Tensor:
    return render_views(
        image[None], dataclasses.replace(plain_views(np.ones(1), 1.0), maps=np.eye(2, 3)[None] @ maps), 32
    )[0]


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    ("name", "strength"),
    [("shear_x", 0.25), ("shear_y", 0.25), ("translate_x", 5.0), ("translate_y", 5.0), ("rotate", 20.0)],
)
def test_a_geometric_step_is_torchvisions_away_from_the_rim(name: str, strength: float, sign: int) -> None:
    """At the rim torchvision blends with black, a view repeats the last pixel up to the edge."""
    image = smooth(32, 32)
    moved = affine_view(affine_maps(np.array([name]), np.array([sign * strength]), 32), image)
    expected = apply(name, shown(image[None])[0], sign * strength)
    differ = (moved - expected).abs().amax(dim=0) > 1e-5
    assert differ.float().mean() < 0.06
    assert not differ[8:24, 8:24].any()
    assert (moved - shown(image[None])[0]).abs().mean() > 0.01


def test_two_geometric_steps_are_one_map_in_their_order() -> None:
    recipe = AugmentConfig(name="test", policy="randaugment", policy_magnitude=20)
    drawn = draw_policy(recipe, 0, np.ones(400, np.int64), np.arange(400), 32)
    image = smooth(32, 32)
    found = [row for row in range(400) if {*drawn.names[row]} == {"rotate", "shear_x"}]
    assert {drawn.names[row, 0] for row in found} == {"rotate", "shear_x"}
    for row in found:
        expected = shown(image[None])[0]
        for name, strength in zip(drawn.names[row], drawn.strengths[row], strict=True):
            expected = apply(name, expected, float(strength))
        differ = (affine_view(drawn.affine[row : row + 1], image) - expected).abs().amax(dim=0)
        assert differ[12:20, 12:20].max() < 0.01

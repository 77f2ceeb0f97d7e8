"""Views: pure functions of (seed, view, index), and the pixels they show."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as image_ops

from distillcli.config.compose import compose
from distillcli.config.schema import AugmentConfig, TrainConfig
from distillcli.views.policies import draw_policy
from distillcli.views.views import (
    Views,
    centre_boxes,
    crop_and_resize,
    crop_boxes,
    draw_views,
    plain_views,
    render_views,
)

INDEX = np.arange(500)
SQUARE = np.ones(500)
STRONG = {
    "flip": 0.5,
    "crop_area": [0.2, 1.0],
    "translate": 0.2,
    "rotate": 30.0,
    "shear": 10.0,
    "zoom": [0.8, 1.5],
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "erase": 0.5,
}
EVERYTHING = STRONG | {"hue": 0.3, "policy": "trivial", "pad": 0.1}


def recipe(**parts: Any) -> AugmentConfig:
    return AugmentConfig(name="test", **parts)


def views_of(seed: int = 0, view: int = 1, index: NDArray[np.int64] = INDEX, size: int = 32, **parts: Any) -> Views:
    return draw_views(recipe(**parts), seed, np.full(len(index), view), index, np.ones(len(index)), 1.0, size)


def pixels(count: int = 8, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


def shown(images: Tensor) -> Tensor:
    """uint8 B x H x W x 3 as the floats that a view of them without any change holds."""
    return images.permute(0, 3, 1, 2).float() / 255


def to_bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def smooth(height: int, width: int) -> Tensor:
    """One image of long waves: neighbouring pixels differ by little, however it is cut."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    channels = [torch.sin(3 * x + 2 * y), torch.cos(2 * x - 3 * y), x * y]
    return ((torch.stack(channels, dim=2) + 1) * 127).round().to(torch.uint8)


# --- parameters ---------------------------------------------------------------------------------------------------


def test_a_view_depends_on_seed_view_and_index_alone() -> None:
    whole = views_of(**EVERYTHING)
    picked = np.array([400, 3, 3, 77])
    for field in dataclasses.fields(Views):
        values = getattr(views_of(index=picked, **EVERYTHING), field.name)
        assert np.array_equal(values, getattr(whole, field.name)[picked])
        assert not np.array_equal(getattr(views_of(view=2, **EVERYTHING), field.name), getattr(whole, field.name))
        assert not np.array_equal(getattr(views_of(seed=1, **EVERYTHING), field.name), getattr(whole, field.name))


def test_the_views_of_a_recipe_are_pinned() -> None:
    """Another meaning of the same draws would break resuming, caches of teacher outputs and every published number."""
    view = views_of(index=np.array([7]), **STRONG)
    expected = {
        "boxes": [0.267385388186, 0.475240608913, 0.531135030745, 0.464889755053],
        "maps": [-1.099702446196, 0.346142680587, -0.296559529086, 0.505246652092, 1.1728010823, 0.053011595379],
        "colours": [1.707285030856, 1.306676399582, 1.542040422725, 0.0],
        "erased": [0.030934953969, 0.239476661111, 0.812383930958, 0.284443049945],
    }
    for field, values in expected.items():
        assert getattr(view, field).ravel().tolist() == pytest.approx(values, abs=1e-11), field


@pytest.mark.parametrize("part", [part for part in EVERYTHING if part != "policy"])
def test_switching_one_part_off_changes_no_other(part: str) -> None:
    """Every part owns its draws: the flips of an ablation without erasing are those of the run with it."""
    whole, without = (
        views_of(**EVERYTHING),
        views_of(**{key: value for key, value in EVERYTHING.items() if key != part}),
    )
    owner = {"crop_area": "boxes", "erase": "erased"}.get(part, "maps")
    kinds = ("brightness", "contrast", "saturation", "hue")
    owner = "colours" if part in kinds else owner
    for field in dataclasses.fields(Views):
        same = np.array_equal(getattr(whole, field.name), getattr(without, field.name))
        assert same == (field.name != owner)
    if owner == "colours":
        columns = [column for column, name in enumerate(kinds) if name != part]
        assert np.array_equal(whole.colours[:, columns], without.colours[:, columns])


def test_a_policy_leaves_the_rest_of_the_view_alone() -> None:
    whole, without = views_of(**EVERYTHING), views_of(**(EVERYTHING | {"policy": "none"}))
    for name in ("boxes", "colours", "erased"):
        assert np.array_equal(getattr(whole, name), getattr(without, name))
    steps = draw_policy(recipe(**EVERYTHING), 0, np.ones(500, np.int64), INDEX, 32)
    assert np.array_equal(whole.maps, without.maps @ steps.affine)
    assert np.array_equal(whole.operations, steps.names)
    assert without.operations.shape == (500, 0)


def test_without_a_recipe_every_view_is_the_plain_image() -> None:
    for field in dataclasses.fields(Views):
        drawn, wanted = getattr(views_of(), field.name), getattr(plain_views(SQUARE, 1.0), field.name)
        if field.name == "erased":  # nothing is erased, wherever it would have been
            drawn, wanted = drawn[:, 2:], wanted[:, 2:]
        assert np.array_equal(drawn, wanted)


def test_flips_come_with_their_probability() -> None:
    flipped = views_of(flip=0.3, index=np.arange(10_000)).maps[:, 0, 0] < 0
    assert stats.binomtest(int(flipped.sum()), 10_000, 0.3).pvalue > 0.01


def test_angles_are_uniform_within_their_bound_and_only_turn() -> None:
    linear = views_of(rotate=20.0, index=np.arange(5_000)).maps[:, :, :2]
    angle = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert stats.kstest(angle, stats.uniform(-20, 40).cdf).pvalue > 0.01
    assert np.allclose(linear @ linear.transpose(0, 2, 1), np.eye(2), rtol=0, atol=1e-15)
    assert np.allclose(np.linalg.det(linear), 1, rtol=0, atol=1e-15)


def test_zoom_is_log_uniform_and_magnifies() -> None:
    linear = views_of(zoom=[0.5, 2.0], index=np.arange(5_000)).maps[:, :, :2]
    magnification = 1 / linear[:, 0, 0]
    assert np.array_equal(linear, linear[:, :1, :1] * np.eye(2))
    assert stats.kstest(np.log2(magnification), stats.uniform(-1, 2).cdf).pvalue > 0.01
    image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    image[:, 12:20, 12:20] = 255
    double = dataclasses.replace(plain_views(np.ones(1), 1.0), maps=np.array([[[0.5, 0, 0], [0, 0.5, 0]]]))
    assert (render_views(image, double, 32) > 0.5).sum() == 3 * 16 * 16


def test_shears_are_uniform_in_degrees_and_only_shear() -> None:
    linear = views_of(shear=15.0, index=np.arange(5_000)).maps[:, :, :2]
    assert np.array_equal(linear[:, [0, 1, 1], [0, 0, 1]], np.tile([1.0, 0.0, 1.0], (5_000, 1)))
    angle = np.degrees(np.arctan(linear[:, 0, 1]))
    assert stats.kstest(angle, stats.uniform(-15, 30).cdf).pvalue > 0.01


def test_shifts_are_whole_pixels_within_their_bound() -> None:
    offsets = views_of(translate=0.125, index=np.arange(5_000), size=32).maps[:, :, 2] * 16
    assert np.allclose(offsets, np.round(offsets), rtol=0, atol=1e-12)
    assert set(np.unique(np.round(offsets))) == set(range(-4, 5))


@pytest.mark.fault("F8.9")
def test_padded_crops_are_uniform_over_whole_pixels() -> None:
    """As torchvision's RandomCrop(32, padding=4): 9 x 9 places, each equally likely."""
    offsets = views_of(pad=0.125, index=np.arange(20_000), size=32).maps[:, :, 2] * 16
    assert np.allclose(offsets, np.round(offsets), rtol=0, atol=1e-12)
    places, counts = np.unique(np.round(offsets), axis=0, return_counts=True)
    assert len(places) == 81
    assert np.abs(places).max() == 4
    assert stats.chisquare(counts).pvalue > 0.01
    alone = views_of(pad=0.1, index=np.arange(100), size=32).maps[:, :, 2] * 16
    assert np.abs(alone).max() == 3  # of 3.2 pixels


@pytest.mark.fault("F8.9")
@pytest.mark.parametrize("preset", ["cifar", "autoaugment"])
def test_the_cifar_protocol_is_a_padded_crop(preset: str) -> None:
    """Each of its views is a crop of the image with 4 black pixels around it."""
    config = compose("train", [f"augment={preset}", "augment.policy=none", "augment.flip=0"])
    assert isinstance(config, TrainConfig)
    images = pixels(8)
    drawn = draw_views(config.augment, 0, np.ones(8, np.int64), np.arange(8), np.ones(8), 1.0, 32)
    padded = torch.nn.functional.pad(shown(images), (4, 4, 4, 4))
    for number, view in enumerate(render_views(images, drawn, 32)):
        crops = [padded[number, :, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
        assert min((view - crop).abs().max().item() for crop in crops) < 1e-5


@pytest.mark.fault("F8.10")
def test_the_classic_imagenet_protocol_leaves_colours_alone() -> None:
    config = compose("train", ["augment=imagenet_classic"])
    assert isinstance(config, TrainConfig)
    assert config.augment == AugmentConfig(name="imagenet_classic", crop_area=[0.08, 1.0], flip=0.5)


def test_colour_factors_are_uniform_around_one() -> None:
    colours = views_of(brightness=0.4, contrast=0.2, index=np.arange(5_000)).colours
    assert stats.kstest(colours[:, 0], stats.uniform(0.6, 0.8).cdf).pvalue > 0.01
    assert stats.kstest(colours[:, 1], stats.uniform(0.8, 0.4).cdf).pvalue > 0.01
    assert np.array_equal(colours[:, 2:], np.tile([1.0, 0.0], (5_000, 1)))
    turns = views_of(hue=0.3, index=np.arange(5_000)).colours[:, 3]
    assert stats.kstest(turns, stats.uniform(-0.3, 0.6).cdf).pvalue > 0.01


@pytest.mark.parametrize("aspect", [0.1, 0.75, 1.0, 1.5, 10.0])
def test_crops_lie_inside_the_image_with_area_and_ratio_in_range_where_they_fit(aspect: float) -> None:
    area, ratio = [0.2, 0.9], [0.75, 1.3333]
    boxes = crop_boxes(recipe(crop_area=area, crop_ratio=ratio), 0, 1, np.arange(5_000), np.full(5_000, aspect), 1.0)
    left, top, width, height = boxes.T
    rounding = 1e-12
    assert min(left.min(), top.min(), width.min(), height.min()) >= 0
    assert max((left + width).max(), (top + height).max()) <= 1 + rounding
    shapes = width / height * aspect  # in pixels
    assert shapes.min() >= ratio[0] - rounding
    assert shapes.max() <= ratio[1] + rounding
    fits = (width < 1 - rounding) & (height < 1 - rounding)
    assert (width * height).max() <= area[1] + rounding
    assert (width * height)[fits].min(initial=1.0) >= area[0] - rounding
    if 0.75 <= aspect <= 1.3333:
        assert fits.mean() > 0.5
        assert np.ptp((width * height)[fits]) > 0.5


@pytest.mark.parametrize(("width", "height"), [(64, 64), (640, 480), (100, 1000), (1001, 10)])
@pytest.mark.parametrize("fraction", [1.0, 0.875])
def test_centre_crops_are_centred_squares_in_pixels(width: int, height: int, fraction: float) -> None:
    left, top, across, down = centre_boxes(np.array([width / height]), fraction)[0]
    assert across * width == pytest.approx(down * height, rel=1e-12)
    assert across * width == pytest.approx(fraction * min(width, height), rel=1e-12)
    assert 2 * left + across == pytest.approx(1, rel=1e-12)
    assert 2 * top + down == pytest.approx(1, rel=1e-12)


def test_erased_rectangles_have_area_and_place_in_range() -> None:
    left, top, width, height = views_of(erase=0.4, index=np.arange(10_000)).erased.T
    hit = width > 0
    assert stats.binomtest(int(hit.sum()), 10_000, 0.4).pvalue > 0.01
    assert not height[~hit].any()
    area = (width * height)[hit]
    assert area.min() >= 0.02 - 1e-12
    assert area.max() <= 0.33 + 1e-12
    assert left.min() >= 0
    assert top.min() >= 0
    assert (left + width).max() <= 1 + 1e-12
    assert (top + height).max() <= 1 + 1e-12


# --- pixels -------------------------------------------------------------------------------------------------------


def test_the_plain_view_returns_the_pixels_exactly() -> None:
    images = pixels()
    assert torch.equal(render_views(images, plain_views(np.ones(8), 1.0), 32), shown(images))
    assert torch.equal(render_views(images, views_of(index=np.arange(8)), 32), shown(images))


def test_a_flip_mirrors_the_columns_and_flipping_twice_is_nothing() -> None:
    images, flip = pixels(), views_of(index=np.arange(8), flip=1.0)
    once = to_bytes(render_views(images, flip, 32))
    assert torch.equal(once, images.flip(2))
    assert torch.equal(to_bytes(render_views(once, flip, 32)), images)


def test_a_shift_moves_whole_pixels_and_leaves_black_behind() -> None:
    images, views = pixels(200), views_of(index=np.arange(200), translate=0.25)
    moved = to_bytes(render_views(images, views, 32)).numpy()
    seen = set()
    for row, image in enumerate(images.numpy()):
        x, y = (-np.round(views.maps[row, :, 2] * 16)).astype(int)  # the content moves against the map
        expected = np.roll(image, (y, x), axis=(0, 1))
        expected[: max(y, 0)] = expected[32 + min(y, 0) :] = 0
        expected[:, : max(x, 0)] = expected[:, 32 + min(x, 0) :] = 0
        assert np.array_equal(moved[row], expected)
        seen.add((np.sign(x), np.sign(y)))
    assert {(-1, -1), (-1, 1), (1, -1), (1, 1)} <= seen


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_permute_the_pixels(quarters: int) -> None:
    images, angle = pixels(), quarters * np.pi / 2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    views = dataclasses.replace(plain_views(np.ones(8), 1.0), maps=np.tile(turn, (8, 1, 1)))
    assert torch.equal(to_bytes(render_views(images, views, 32)), images.rot90(quarters, dims=(1, 2)))


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 40, 32), (40, 24, 32), (8, 8, 32)])
def test_every_affine_view_is_scipys_linear_interpolation(height: int, width: int, size: int) -> None:
    """Crop, flip, shift, rotation, shear and zoom together, and black outside of the image."""
    count = 20
    geometry = {key: value for key, value in STRONG.items() if key not in ("brightness", "contrast", "saturation")}
    aspects = np.full(count, width / height)
    views = draw_views(recipe(**{**geometry, "erase": 0.0}), 0, 1, np.arange(count), aspects, 1.0, size)
    images = pixels(count, height, width)
    rendered = render_views(images, views, size).permute(0, 2, 3, 1).numpy()
    place = (np.arange(size) + 0.5) * 2 / size - 1
    outside = 0
    for row in range(count):
        left, top, across, down = views.boxes[row]
        crop_x, crop_y = np.einsum("ij,jyx->iyx", views.maps[row, :, :2], np.stack(np.meshgrid(place, place)))
        share_x = left + across * (crop_x + views.maps[row, 0, 2] + 1) / 2  # of the image, from its left edge
        share_y = top + down * (crop_y + views.maps[row, 1, 2] + 1) / 2
        coordinates = np.stack([share_y * height - 0.5, share_x * width - 0.5])
        channels = [
            ndimage.map_coordinates(images[row, :, :, channel].double().numpy(), coordinates, order=1, mode="nearest")
            for channel in range(3)
        ]
        inside = (share_x >= 0) & (share_x <= 1) & (share_y >= 0) & (share_y <= 1)
        outside += int((~inside).sum())
        expected = np.stack(channels, axis=2) / 255 * inside[:, :, None]
        assert np.allclose(rendered[row], expected, rtol=0, atol=2e-5)
    assert outside > 0


@pytest.mark.parametrize(("side", "size"), [(8, 32), (8, 20), (7, 32)])
def test_enlarging_is_bilinear_interpolation(side: int, size: int) -> None:
    images = pixels(4, side, side)
    expected = functional.interpolate(shown(images), size=(size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(render_views(images, plain_views(np.ones(4), 1.0), size), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (90, 160), (160, 90)])
def test_cutting_from_the_file_and_cropping_in_memory_show_the_same(height: int, width: int) -> None:
    """The streamed box is rounded to pixels of the file, the stored image was squeezed: half a pixel at most."""
    image, size, count = smooth(height, width), 32, 50
    aspects = np.full(count, width / height)
    boxes = crop_boxes(recipe(crop_area=[0.3, 1.0]), 0, 1, np.arange(count), aspects, 1.0)
    boxes = np.concatenate([boxes, centre_boxes(aspects[:1], 0.875)])
    streamed = shown(torch.stack([crop_and_resize(image, box, size) for box in boxes]))
    stored = image_ops.resize(image.permute(2, 0, 1), [40, 40], antialias=True).permute(1, 2, 0)
    views = dataclasses.replace(plain_views(np.ones(count + 1), 1.0), boxes=boxes)
    memory = render_views(stored.expand(count + 1, -1, -1, -1), views, size)
    assert (streamed - memory).abs().max() < 0.03
    assert (streamed - memory).abs().mean() < 0.004
    assert (streamed - streamed.flip(0)).abs().mean() > 0.03  # other boxes look different


def test_cutting_the_whole_image_at_its_own_size_is_exact() -> None:
    image = pixels(1)[0]
    assert torch.equal(crop_and_resize(image, np.array([0.0, 0.0, 1.0, 1.0]), 32), image)
    assert torch.equal(crop_and_resize(image, np.array([0.25, 0.5, 0.5, 0.5]), 16), image[16:, 8:24])


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = torch.zeros(64, 64, 3, dtype=torch.uint8)
    stripes[:, 3::8] = stripes[:, 4::8] = 255  # two of eight columns, those where a cell of the small image is centred
    small = crop_and_resize(stripes, np.array([0.0, 0.0, 1.0, 1.0]), 8)
    assert 0.2 < small.float().mean() / 255 < 0.3
    assert small.max() < 128


@pytest.mark.parametrize("box", [[0.0, 0.0, 1e-6, 1e-6], [1 - 1e-6, 1 - 1e-6, 1e-6, 1e-6]])
def test_a_box_smaller_than_a_pixel_still_shows_one(box: list[float]) -> None:
    assert crop_and_resize(pixels(1)[0], np.array(box), 8).shape == (8, 8, 3)


def test_colours_change_as_in_torchvision_one_factor_per_image() -> None:
    images = pixels()
    factors = views_of(index=np.arange(8), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5).colours
    views = dataclasses.replace(plain_views(np.ones(8), 1.0), colours=factors)
    recoloured = render_views(images, views, 32)
    for row, (brightness, contrast, saturation, hue) in enumerate(factors):
        expected = image_ops.adjust_brightness(shown(images)[row], brightness)
        expected = image_ops.adjust_contrast(expected, contrast)
        expected = image_ops.adjust_saturation(expected, saturation)
        expected = image_ops.adjust_hue(expected, hue)
        torch.testing.assert_close(recoloured[row], expected, rtol=0, atol=5e-6)


def test_erasing_blanks_its_rectangle_with_the_mean_colour_and_nothing_else() -> None:
    images, views = pixels(50), views_of(index=np.arange(50), erase=0.7)
    erased, before = render_views(images, views, 32), shown(images)
    centres = (np.arange(32) + 0.5) / 32
    for row, (left, top, width, height) in enumerate(views.erased):
        columns = (centres >= left) & (centres < left + width)
        rows = (centres >= top) & (centres < top + height)
        inside = torch.from_numpy(rows[:, None] & columns[None, :])
        mean = before[row].mean(dim=(1, 2))
        assert torch.equal(erased[row][:, ~inside], before[row][:, ~inside])
        torch.testing.assert_close(
            erased[row][:, inside], mean[:, None].expand(3, int(inside.sum())), rtol=0, atol=1e-6
        )
    assert torch.equal(erased, render_views(images, views, 32))


@pytest.mark.parametrize("size", [16, 32, 48])
def test_every_view_stays_between_black_and_white(size: int) -> None:
    rendered = render_views(pixels(100), views_of(index=np.arange(100), size=size, **EVERYTHING), size)
    assert rendered.shape == (100, 3, size, size)
    assert rendered.dtype == torch.float32
    assert rendered.min() >= 0
    assert rendered.max() <= 1


def test_a_rendered_view_does_not_depend_on_its_batch() -> None:
    images = pixels(20)
    whole = render_views(images, views_of(index=np.arange(20), **EVERYTHING), 32)
    for row in (0, 7, 19):
        alone = render_views(images[row : row + 1], views_of(index=np.array([row]), **EVERYTHING), 32)
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-6)

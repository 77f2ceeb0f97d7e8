"""Which images form a batch, and that nothing but seed, epoch, step and ranks has a say in it."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distillcli.config.schema import AugmentConfig, DatasetConfig
from distillcli.config.search import builtin_folder
from distillcli.errors import UserError
from distillcli.runtime import Runtime
from distillcli.sources.draws import permutation
from distillcli.sources.folder import FileImages
from distillcli.sources.source import ArrayImages, Images, MinimumSize, Source, Split
from distillcli.types import Batch
from distillcli.views.loader import EVALUATION_BATCH, Loader, open_data
from distillcli.views.showing import Showing
from distillcli.views.store import Cropping, MemoryStore, Rows, StreamStore, open_store

pytestmark = pytest.mark.usefixtures("ranks_without_a_group")

CPU = torch.device("cpu")
CONFIG = DatasetConfig(name="test", image_size=16)
RECIPE = AugmentConfig(
    name="test", flip=0.5, crop_area=[0.3, 1.0], rotate=10.0, translate=0.1, brightness=0.4, erase=0.25
)
MEMORY, STREAM = 1e9, 0.0


def array_images(count: int, side: int = 16) -> ArrayImages:
    random = np.random.RandomState(0)
    return ArrayImages(random.randint(0, 256, (count, side, side, 3)).astype(np.uint8), "test")


def file_images(folder: Path, sizes: list[tuple[int, int]]) -> FileImages:
    """One PNG for each width and height: a smooth image, another colour for each."""
    for number, (width, height) in enumerate(sizes):
        y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
        colour = np.stack([x, y, np.full_like(x, number / len(sizes))], axis=2)
        Image.fromarray((255 * colour).astype(np.uint8)).save(folder / f"{number}.png")
    return FileImages(folder, tuple(f"{number}.png" for number in range(len(sizes))))


def loader(
    images: Images, memory_bytes: float = MEMORY, workers: int = 0, rank: int = 0, world: int = 1, size: int = 16
) -> Loader:
    runtime, config = Runtime(CPU, rank, world), DatasetConfig(name="test", image_size=size)
    store = open_store(images, config, workers, runtime, memory_bytes)
    return Loader(store, torch.arange(len(images)) % 3, config, runtime, 3)


def epoch(
    source: Loader, batch_size: int = 12, number: int = 1, first_step: int = 0, **options: Any
) -> list[list[Batch]]:
    return list(Showing(source, RECIPE, 7, batch_size, **options).epoch(number, first_step))


def indices(steps: list[list[Batch]]) -> list[list[int]]:
    return [[int(position) for part in parts for position in part.index] for parts in steps]


def same(one: list[list[Batch]], two: list[list[Batch]]) -> bool:
    pairs = [
        (first, second) for left, right in zip(one, two, strict=True) for first, second in zip(left, right, strict=True)
    ]
    assert pairs
    return all(
        torch.equal(first.images, second.images)
        and torch.equal(first.targets, second.targets)
        and torch.equal(first.index, second.index)
        for first, second in pairs
    )


def by_index(batches: list[Batch]) -> dict[int, Tensor]:
    return {
        int(position): image for batch in batches for position, image in zip(batch.index, batch.images, strict=True)
    }


@pytest.fixture
def folder(tmp_path: Path) -> FileImages:
    return file_images(tmp_path, [(40 + 8 * (number % 3), 40) for number in range(26)])


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_bytes", [MEMORY, STREAM])
def test_the_number_of_workers_changes_nothing(folder: FileImages, memory_bytes: float) -> None:
    alone, helped = loader(folder, memory_bytes), loader(folder, memory_bytes, workers=2)
    for number in (1, 2):  # the second epoch meets workers that live already
        assert same(epoch(alone, number=number), epoch(helped, number=number))
    assert same([list(alone.plain())], [list(helped.plain())])


def test_memory_and_stream_show_the_same_images_in_the_same_order(folder: FileImages) -> None:
    memory, stream = loader(folder, MEMORY), loader(folder, STREAM)
    assert isinstance(memory.store, MemoryStore)
    assert isinstance(stream.store, StreamStore)
    # Turned or shifted, a stored image shows what lies beside the crop, a streamed crop has nothing there.
    crops = AugmentConfig(name="test", flip=0.5, crop_area=[0.3, 1.0], brightness=0.4)
    one, two = (list(Showing(source, crops, 7, 12).epoch(1)) for source in (memory, stream))
    assert indices(one) == indices(two)
    for left, right in zip(one, two, strict=True):
        assert torch.equal(left[0].targets, right[0].targets)
        assert (left[0].images - right[0].images).abs().mean() < 0.02
        assert (left[0].images - right[0].images.roll(1, 0)).abs().mean() > 0.1  # the views of its neighbours


@pytest.mark.parametrize("memory_bytes", [MEMORY, STREAM])
def test_resuming_within_an_epoch_shows_the_rest_of_it(folder: FileImages, memory_bytes: float) -> None:
    source = loader(folder, memory_bytes)
    whole = epoch(source, batch_size=6)
    assert len(whole) == 4
    for first_step in range(4):
        assert same(epoch(source, batch_size=6, first_step=first_step), whole[first_step:])
    assert epoch(source, batch_size=6, first_step=4) == []


def test_an_epoch_follows_the_permutation_and_drops_the_rest() -> None:
    steps = epoch(loader(array_images(26)), batch_size=12, number=3)
    assert indices(steps) == permutation(7, 3, 26)[:24].reshape(2, 12).tolist()


PINNED = {
    "cifar": [0.387684, 0.693076, 0.355024, 0.89565],
    "crop_flip": [0.227142, 0.430946, 0.350129, 0.836528],
    "light": [0.269737, 0.49315, 0.412081, 0.281356],
    "none": [0.34902, 0.492708, 0.43174, 0.257414],
    "strong": [0.467941, 0.259111, 0.385941, 0.45625],
}


@pytest.mark.parametrize("name", PINNED)
def test_the_views_of_the_shipped_recipes_are_pinned(name: str) -> None:
    """New kinds of augmentation leave these as they are, and so every fitted teacher and cached answer."""
    recipe = AugmentConfig(**yaml.safe_load((builtin_folder() / "augment" / f"{name}.yaml").read_text("utf-8")))
    (batch,) = next(Showing(loader(array_images(20, 20)), recipe, 5, 8).epoch(2))
    assert batch.index[:4].tolist() == [8, 10, 15, 9]
    assert batch.images[:4, 1, 5, 9].tolist() == pytest.approx(PINNED[name], abs=1e-5)


def test_views_differ_between_epochs() -> None:
    source = loader(array_images(26))
    one, two = (by_index([parts[0] for parts in epoch(source, number=number)]) for number in (1, 2))
    shared = one.keys() & two.keys()
    assert len(shared) > 20
    assert all(not torch.equal(one[position], two[position]) for position in shared)


@pytest.mark.parametrize("memory_bytes", [MEMORY, STREAM])
@pytest.mark.parametrize("world", [2, 3])
def test_the_ranks_together_see_the_batch_of_one_process(folder: FileImages, memory_bytes: float, world: int) -> None:
    single = epoch(loader(folder, memory_bytes))
    ranks = [epoch(loader(folder, memory_bytes, rank=rank, world=world)) for rank in range(world)]
    for step, parts in enumerate(single):
        shares = [rank[step][0] for rank in ranks]
        assert [len(share.index) for share in shares] == [12 // world] * world
        assert sorted(indices([shares])[0]) == sorted(indices([parts])[0])
        expected = by_index(parts)
        for position, image in by_index(shares).items():
            torch.testing.assert_close(image, expected[position], rtol=0, atol=1e-6)


@pytest.mark.parametrize("micro_batches", [2, 3, 4])
def test_micro_batches_partition_the_batch(micro_batches: int) -> None:
    source = loader(array_images(26))
    whole, split = epoch(source), epoch(source, micro_batches=micro_batches)
    assert indices(split) == indices(whole)
    for parts, (batch,) in zip(split, whole, strict=True):
        assert [len(part.index) for part in parts] == [12 // micro_batches] * micro_batches
        together = torch.cat([part.images for part in parts])
        torch.testing.assert_close(together, batch.images, rtol=0, atol=1e-6)
        assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)


@pytest.mark.parametrize("memory_bytes", [MEMORY, STREAM])
def test_a_set_smaller_than_the_batch_is_one_batch(memory_bytes: float) -> None:
    source = loader(array_images(5), memory_bytes)
    assert Showing(source, RECIPE, 7, 64).steps_per_epoch == 1
    assert [sorted(step) for step in indices(epoch(source, batch_size=64))] == [[0, 1, 2, 3, 4]]


def test_targets_are_the_labels_of_the_images() -> None:
    for parts in epoch(loader(array_images(26))):
        assert torch.equal(parts[0].targets, parts[0].index % 3)
        assert parts[0].targets.dtype == torch.int64


# --- evaluation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_bytes", [MEMORY, STREAM])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 26])
def test_evaluation_shows_every_image_once_over_all_ranks(world: int, count: int, memory_bytes: float) -> None:
    images = array_images(count)
    shown: list[int] = []
    for rank in range(world):
        for batch in loader(images, memory_bytes, rank=rank, world=world).plain():
            shown += batch.index.tolist()
            expected = torch.from_numpy(images.pixels[batch.index.numpy()]).permute(0, 3, 1, 2).float() / 255
            assert torch.equal(batch.images, expected)
            assert torch.equal(batch.targets, batch.index % 3)
    assert sorted(shown) == list(range(count))


def test_evaluation_goes_in_batches_of_one_size_in_order() -> None:
    batches = list(loader(array_images(EVALUATION_BATCH + 3, side=4), size=8).plain())
    assert [len(batch.index) for batch in batches] == [EVALUATION_BATCH, 3]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(EVALUATION_BATCH + 3))


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("memory_bytes", [MEMORY, STREAM])
def test_a_broken_image_is_one_line_that_names_the_file_and_ends_the_workers(
    tmp_path: Path, workers: int, memory_bytes: float
) -> None:
    images = file_images(tmp_path, [(20, 20)] * 8)
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:60])

    def refusal() -> str:
        try:
            list(loader(images, memory_bytes, workers).plain())
        except UserError as error:  # pytest.raises would keep the traceback, and with it the loader
            return str(error)
        return ""

    before = multiprocessing.active_children()
    message = refusal()
    assert "5.png: truncated or damaged" in message
    assert "\n" not in message
    assert "Traceback" not in message
    assert multiprocessing.active_children() == before


@pytest.mark.parametrize("memory_bytes", [MEMORY, STREAM])
def test_images_of_many_sizes_keep_their_aspect(tmp_path: Path, memory_bytes: float) -> None:
    """Red grows from left to right, green from top to bottom: the centre square shows which part of each it holds."""
    sizes = [(64, 64), (160, 64), (64, 160), (31, 93)]
    source = loader(file_images(tmp_path, sizes), memory_bytes)
    (batch,) = source.plain()
    for (width, height), image in zip(sizes, batch.images, strict=True):
        side = min(width, height)
        for channel, (length, ends) in enumerate(
            [(width, image[0].mean(dim=0)[[0, -1]]), (height, image[1].mean(dim=1)[[0, -1]])]
        ):
            span = side / length
            expected = torch.tensor([0.5 - span * 15 / 32, 0.5 + span * 15 / 32])  # centres of first and last of 16
            torch.testing.assert_close(ends, expected, rtol=0, atol=0.02, msg=f"{width} x {height}, {channel}")


def test_aspects_in_memory_are_width_over_height(tmp_path: Path) -> None:
    sizes = [(64, 64), (160, 64), (64, 160), (31, 93)]
    store = loader(file_images(tmp_path, sizes)).store
    assert store.aspects(np.arange(4)).tolist() == [width / height for width, height in sizes]


@pytest.mark.parametrize(("count", "workers"), [(1, 0), (64, 0), (65, 2), (130, 0)])
def test_decoding_into_memory_keeps_every_image_in_its_place(count: int, workers: int) -> None:
    pixels = np.empty((count, 40, 20, 3), np.uint8)  # too large to be kept as they are
    pixels[:] = np.arange(count).reshape(-1, 1, 1, 1)
    source = loader(ArrayImages(pixels, "test"), workers=workers)
    shown = torch.cat([batch.images for batch in source.plain()])
    expected = (torch.arange(count) / 255).view(-1, 1, 1, 1).expand(count, 3, 16, 16)
    torch.testing.assert_close(shown, expected, rtol=0, atol=1e-6)


def test_a_set_beyond_the_memory_is_streamed_and_each_part_has_its_share() -> None:
    images = array_images(30)
    source = Source("test", ("a", "b"), *[Split(images, np.arange(30) % 2)] * 3, "")
    bytes_of_all = 3 * images.pixels.nbytes
    for share, kind in ((1.01, MemoryStore), (0.99, StreamStore)):
        config = DatasetConfig(name="test", image_size=16, memory_gb=share * bytes_of_all / 1e9)
        data = open_data(source, config, 0, Runtime(CPU))
        assert all(isinstance(part.store, kind) for part in (data.train, data.val, data.evaluation))
    without_test = open_data(Source("test", ("a", "b"), source.train, source.val, None, ""), config, 0, Runtime(CPU))
    assert without_test.evaluation is without_test.val


# --- photographs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched:
    """``images``, noting what they are decoded at; ``whole``: always at their full size."""

    images: Images
    whole: bool = False
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, minimum_size: MinimumSize | None = None) -> NDArray[np.uint8]:
        pixels = self.images.read(index, None if self.whole else minimum_size)
        self.sizes.append((pixels.shape[1], pixels.shape[0]))
        return pixels

    def name(self, index: int) -> str:
        return self.images.name(index)


SIDES = [(1201, 903), (640, 480), (903, 1201), (300, 200), (120, 900), (64, 64)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> FileImages:
    folder = tmp_path_factory.mktemp("photographs")
    for number, (width, height) in enumerate(SIDES):
        coarse = np.random.RandomState(number).randint(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    return FileImages(folder, tuple(f"{number}.jpg" for number in range(len(SIDES))))


CROPS = AugmentConfig(name="test", crop_area=[0.08, 1.0])


def test_a_crop_of_a_reduced_photograph_has_the_pixels_of_the_view(photographs: FileImages) -> None:
    watched, reduced, views = Watched(photographs), 0, 40
    source = loader(watched, STREAM, size=48)
    for view in range(1, views + 1):
        rows = Rows(np.full(len(SIDES), view), np.arange(len(SIDES)))
        next(source.views(CROPS, 7, [rows]))
        for row, ((width, height), whole) in enumerate(zip(watched.sizes[-len(SIDES) :], SIDES, strict=True)):
            one = Rows(rows.view[row : row + 1], rows.index[row : row + 1])
            shares = Cropping(CROPS, 7, 1.0).boxes(one, np.array([width / height]))[0, 2:]
            full = Cropping(CROPS, 7, 1.0).boxes(one, np.array([whole[0] / whole[1]]))[0, 2:]
            if (width, height) == whole:
                assert (full * whole < 2 * 49 + 2).any(), "half of it would have been enough"
            else:
                assert (shares * (width, height) >= 49).all()
                reduced += 1
    assert reduced > views


def test_reduced_photographs_show_what_whole_ones_show(photographs: FileImages) -> None:
    rows = [Rows(np.full(len(SIDES), view), np.arange(len(SIDES))) for view in range(1, 6)]
    shown = [
        torch.stack([batch.images for batch in loader(images, STREAM, workers, size=48).views(CROPS, 7, rows)])
        for images, workers in ((Watched(photographs, whole=True), 0), (photographs, 0), (photographs, 2))
    ]
    assert torch.equal(shown[1], shown[2])
    assert (shown[0] - shown[1]).abs().max() < 0.1
    assert (shown[0] - shown[1]).abs().mean() < 0.005
    assert not torch.equal(shown[0][:, :3], shown[1][:, :3])
    assert torch.equal(shown[0][:, 5], shown[1][:, 5]), "too small to be reduced"


def test_reducing_is_part_of_what_a_view_is_where_it_can_happen(photographs: FileImages) -> None:
    assert loader(photographs, MEMORY).rendering(CROPS) == loader(array_images(4)).rendering(CROPS) == [16, 1.0, False]
    assert loader(array_images(4), STREAM).rendering(CROPS) == [16, 1.0, True]
    assert loader(photographs, STREAM).rendering(CROPS) == [16, 1.0, True, "reduced"]

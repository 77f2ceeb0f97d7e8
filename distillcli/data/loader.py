"""Batches of views on the device.

Small sets live decoded in memory, on the device, and whole batches are augmented at once. Large ones stream through
loader processes that decode, crop and resize; everything after the crop happens on the device as well. Which images
form a batch is a pure function of (seed, epoch, step, rank, world size): the loader's settings change nothing.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as image_ops

from distillcli.config.schema import AugmentConfig, DatasetConfig
from distillcli.data.epochs import most_shown, occurrence, order, partner_ends
from distillcli.data.mix import Mix, draw_mix, mix_images, mix_labels
from distillcli.data.source import ArrayImages, Images, Source, Split
from distillcli.data.upload import Upload
from distillcli.data.views import Floats, Positions, Views, centre_boxes, crop_boxes, cut, draw, plain, render
from distillcli.errors import UserError
from distillcli.runtime import Runtime
from distillcli.types import Batch

# Rows are computed in batches of one size wherever numbers are compared: sums in other shapes round differently.
EVALUATION_BATCH = 256
# Decoded images keep this much more than the view's side, so that random crops are not enlarged beyond need.
STORED_MARGIN = 1.25
WORKER_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Rows:
    """Views of images: row by row view ``view`` of the image at position ``index`` of its split."""

    view: Positions
    index: Positions

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> Rows:
        return Rows(self.view[rows], self.index[rows])


@dataclass(frozen=True)
class Cropping:
    """Which crops to take: those of ``recipe``, or the centred squares of evaluation if it is None."""

    recipe: AugmentConfig | None
    seed: int
    fraction: float

    def boxes(self, rows: Rows, aspects: Floats) -> Floats:
        if self.recipe is None:
            return centre_boxes(aspects, self.fraction)
        return crop_boxes(self.recipe, self.seed, rows.view, rows.index, aspects, self.fraction)


class Store(Protocol):
    """Holds the pixels of a split."""

    @property
    def crops(self) -> bool:
        """Whether ``fetch`` returns the crops, or whole images that are still to be cropped."""
        ...

    @property
    def reduces(self) -> bool:
        """Whether large JPEGs are decoded at less than their size, as far as their crops allow."""
        ...

    def aspects(self, index: Positions) -> Floats:
        """Width / height of the images. Meaningful only where ``fetch`` does not crop."""
        ...

    def fetch(self, cropping: Cropping, plan: Sequence[Rows]) -> Iterator[Tensor]:
        """For each batch of the plan its pixels on the device: B x H x W x C, uint8."""
        ...


@dataclass(frozen=True)
class MemoryStore:
    """All images decoded, squeezed to one size: boxes are shares of the image, so nothing is lost but resolution."""

    pixels: Tensor  # N x H x W x C, uint8, on the device
    widths_by_heights: Floats  # N
    crops: bool = False
    reduces: bool = False

    def aspects(self, index: Positions) -> Floats:
        return self.widths_by_heights[index]

    def fetch(self, cropping: Cropping, plan: Sequence[Rows]) -> Iterator[Tensor]:
        for rows in plan:
            yield self.pixels[torch.from_numpy(rows.index).to(self.pixels.device)]


class StreamStore:
    """Images decoded, cropped and resized when they are asked for, in ``workers`` processes."""

    crops = True

    def __init__(self, images: Images, size: int, workers: int, runtime: Runtime) -> None:
        self._plan: list[list[tuple[Cropping, int, int]]] = []
        self.reduces = not isinstance(images, ArrayImages)
        self._upload = Upload(runtime.device)
        self._loader = _loader(_Crops(images, size), self._plan, workers, runtime)

    def aspects(self, index: Positions) -> Floats:
        return np.ones(len(index))

    def fetch(self, cropping: Cropping, plan: Sequence[Rows]) -> Iterator[Tensor]:
        self._plan[:] = [
            [(cropping, int(view), int(position)) for view, position in zip(rows.view, rows.index, strict=True)]
            for rows in plan
        ]
        for item in self._loader:
            yield self._upload(_unwrap(item))


class _Crops(Dataset["Tensor | UserError"]):
    def __init__(self, images: Images, size: int) -> None:
        self.images = images
        self.size = size

    def __getitem__(self, request: tuple[Cropping, int, int]) -> Tensor | UserError:
        cropping, view, position = request
        row = Rows(np.array([view]), np.array([position]))

        def box(width: int, height: int) -> Floats:
            return cropping.boxes(row, np.array([width / height]))[0]

        def least(width: int, height: int) -> tuple[int, int]:
            """A crop is never enlarged for having been decoded smaller; one pixel more, as its edges are rounded."""
            _, _, wide, high = box(width, height)
            return math.ceil((self.size + 1) / wide), math.ceil((self.size + 1) / high)

        try:
            pixels = self.images.read(position, least)
        except UserError as error:
            return error
        height, width = pixels.shape[:2]
        return cut(torch.from_numpy(pixels), box(width, height), self.size)


class _Squeezed(Dataset["Tensor | UserError"]):
    """Whole images resized to side x side, the aspect ratio kept apart as two trailing float32 in bytes."""

    def __init__(self, images: Images, side: int) -> None:
        self.images = images
        self.side = side

    def __getitem__(self, position: int) -> Tensor | UserError:
        try:
            pixels = self.images.read(position)
        except UserError as error:
            return error
        squeezed = image_ops.resize(torch.from_numpy(pixels).permute(2, 0, 1), [self.side, self.side], antialias=True)
        aspect = torch.tensor([pixels.shape[1] / pixels.shape[0]], dtype=torch.float64)
        return torch.cat([squeezed.permute(1, 2, 0).reshape(-1), aspect.view(torch.uint8)])


def _stack(items: list[Tensor | UserError]) -> Tensor | UserError:
    """Collate: a broken image travels as its error, since a worker's exception arrives as a page of traceback."""
    tensors = [item for item in items if isinstance(item, Tensor)]
    if len(tensors) < len(items):
        return next(item for item in items if isinstance(item, UserError))
    return torch.stack(tensors)


def _unwrap(item: Tensor | UserError) -> Tensor:
    if isinstance(item, UserError):
        # A fresh one: a local variable that is raised refers to itself through its traceback. The garbage collector,
        # unlike the end of the last reference, closes the queues first, and the workers never hear that they may go.
        raise UserError(str(item))
    return item


def _spare_from_signals(closing: Event, _worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group; only the main process may act on them, after saving.

    At exit, multiprocessing ends its workers by SIGTERM and waits for them: from then on it must be obeyed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if closing.is_set() else None)


def _loader(
    dataset: Dataset[Tensor | UserError], plan: Sequence[object], workers: int, runtime: Runtime
) -> DataLoader[Tensor | UserError]:
    closing = multiprocessing.Event()
    if workers:
        atexit.register(closing.set)  # runs before multiprocessing's own, which was registered earlier
    return DataLoader(
        dataset,
        batch_sampler=plan,  # type: ignore[arg-type]  # any iterable of lists of requests
        num_workers=workers,
        collate_fn=_stack,
        pin_memory=runtime.device.type == "cuda",
        timeout=WORKER_TIMEOUT_SECONDS if workers else 0,
        worker_init_fn=functools.partial(_spare_from_signals, closing),
        persistent_workers=workers > 0,
    )


def open_store(images: Images, config: DatasetConfig, workers: int, runtime: Runtime, memory_bytes: float) -> Store:
    """Decode ``images`` into memory when they take at most ``memory_bytes``, else prepare to stream them."""
    stored = round(config.image_size * STORED_MARGIN)
    if isinstance(images, ArrayImages):
        height, width = images.pixels.shape[1:3]
        if images.pixels.nbytes <= memory_bytes and max(height, width) <= stored:
            pixels = torch.from_numpy(np.ascontiguousarray(images.pixels)).to(runtime.device)
            return MemoryStore(pixels, np.full(len(images), width / height))
    if len(images) * stored**2 * config.channels > memory_bytes:
        return StreamStore(images, config.image_size, workers, runtime)
    plan = [list(range(start, min(start + 64, len(images)))) for start in range(0, len(images), 64)]
    rows = torch.cat([_unwrap(item) for item in _loader(_Squeezed(images, stored), plan, workers, runtime)])
    aspects = rows[:, -8:].contiguous().view(torch.float64)[:, 0].numpy()
    pixels = rows[:, :-8].reshape(-1, stored, stored, config.channels)
    return MemoryStore(pixels.to(runtime.device), aspects)


# --- batches -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loader:
    """The batches of one split. ``labels``: N, int64, on the device, -1 where the class is not known.

    ``only``: the positions of the images that are shown; None for all.
    """

    store: Store
    labels: Tensor
    config: DatasetConfig
    runtime: Runtime
    classes: int
    only: Positions | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shown(self) -> Positions:
        return np.arange(len(self)) if self.only is None else self.only

    @property
    def has_labels(self) -> bool:
        return bool((self.labels >= 0).any())

    def labelled(self) -> Loader:
        """The same split without the images that have no label."""
        return dataclasses.replace(self, only=self.shown[(self.labels >= 0).cpu().numpy()[self.shown]])

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches only: a last batch of one image has no batch statistics. A small set is one batch.

        Of all images, also where only some are shown: with few labels a model learns for as many steps as with many.
        """
        return max(1, len(self) // batch_size)

    def epoch(
        self,
        recipe: AugmentConfig,
        seed: int,
        epoch: int,
        batch_size: int,
        micro_batches: int = 1,
        first_step: int = 0,
        cycle: int = 0,
        size: int | None = None,
    ) -> Iterator[list[Batch]]:
        """From ``first_step`` on, this rank's share of every global batch of ``epoch``, as ``micro_batches`` parts.

        ``cycle``: after this many passes their views come again, in another order; 0 for fresh views in every pass.
        ``size``: the side of the views in pixels, None for ``dataset.image_size``. Where only some images are shown, an
        epoch passes over them several times, each time in other views and another order.
        """
        shown, steps = self.shown, self.steps_per_epoch(batch_size)
        steps_per_pass = max(1, len(shown) // batch_size)
        first, end = (epoch - 1) * steps + first_step, epoch * steps
        world, rank = self.runtime.world, self.runtime.rank
        share = min(batch_size, len(shown)) // (world * micro_batches)
        plan = []
        for number in range(first // steps_per_pass, -(-end // steps_per_pass)):
            index = shown[order(seed, number + 1, self._labels_shown(), self.config.balanced, recipe.repeats)]
            turn = number % cycle if cycle else number
            rows = Rows(turn * self.views_per_pass(recipe) + occurrence(index) + 1, index)
            begin = number * steps_per_pass
            for step in range(max(first - begin, 0), min(end - begin, steps_per_pass)):
                mine = rows[step * batch_size : (step + 1) * batch_size][rank::world]
                plan += [mine[part * share : (part + 1) * share] for part in range(micro_batches)]
        batches = self.views(recipe, seed, plan, size)
        while parts := list(itertools.islice(batches, micro_batches)):
            yield parts

    def views_per_pass(self, recipe: AugmentConfig) -> int:
        """How many views of one image a pass shows at most; so many numbers of views belong to it."""
        return most_shown(self._labels_shown(), self.config.balanced, recipe.repeats)

    def rendering(self, recipe: AugmentConfig) -> list[Any]:
        """What decides the pixels of a view beside its image, recipe and seed, for fingerprints."""
        special = ["reduced"] if self.store.reduces else []
        special += ["balanced partners"] if self.config.balanced and (recipe.mixup or recipe.cutmix) else []
        return [self.config.image_size, self.config.crop_fraction, self.store.crops, *special]

    def _labels_shown(self) -> Positions:
        labels: Positions = self.labels.cpu().numpy()[self.shown]
        return labels

    def views(self, recipe: AugmentConfig, seed: int, plan: Sequence[Rows], size: int | None = None) -> Iterator[Batch]:
        """A batch for each entry of ``plan``. Where images are mixed, targets are distributions over the classes."""
        size, fraction = size or self.config.image_size, self.config.crop_fraction
        ends = partner_ends(self._labels_shown(), self.config.balanced)

        def mix_of(rows: Rows) -> Mix:
            mix = draw_mix(recipe, seed, rows.view, rows.index, ends, size)
            return dataclasses.replace(mix, partners=self.shown[mix.partners])

        def with_partners(rows: Rows) -> Rows:
            mix = mix_of(rows)
            index = np.concatenate([rows.index, mix.partners[mix.mixed]])
            return Rows(np.concatenate([rows.view, rows.view[mix.mixed]]), index)

        shown = [with_partners(rows) for rows in plan]
        pixels_of = self.store.fetch(Cropping(recipe, seed, fraction), shown)
        for rows, both, pixels in zip(plan, shown, pixels_of, strict=True):
            drawn = draw(recipe, seed, both.view, both.index, self.store.aspects(both.index), fraction, size)
            images, targets = self._render(pixels, drawn, size), self._labels(rows.index)
            if recipe.mixup or recipe.cutmix:
                mix = mix_of(rows)  # drawn again: a mix for every image of an epoch would be a large thing to keep
                images = mix_images(images[: len(rows)], images[len(rows) :], mix)
                targets = mix_labels(targets, self._labels(mix.partners), mix, size, self.classes)
            yield Batch(images, targets, torch.from_numpy(rows.index), torch.from_numpy(rows.view))

    def plain(self) -> Iterator[Batch]:
        """This rank's share of the images shown, for evaluation: each once over all ranks, none twice."""
        mine = self.shown[self.runtime.rank :: self.runtime.world]
        everything, fraction = Rows(np.zeros_like(mine), mine), self.config.crop_fraction
        plan = [everything[start : start + EVALUATION_BATCH] for start in range(0, len(mine), EVALUATION_BATCH)]
        for rows, pixels in zip(plan, self.store.fetch(Cropping(None, 0, fraction), plan), strict=True):
            images = self._render(pixels, plain(self.store.aspects(rows.index), fraction), self.config.image_size)
            yield Batch(images, self._labels(rows.index), torch.from_numpy(rows.index))

    def _labels(self, index: Positions) -> Tensor:
        return self.labels[torch.from_numpy(index).to(self.runtime.device)]

    def _render(self, pixels: Tensor, views: Views, size: int) -> Tensor:
        if self.store.crops:
            views = dataclasses.replace(views, boxes=np.tile([0.0, 0.0, 1.0, 1.0], (len(pixels), 1)))
        return render(pixels, views, size)


@dataclass(frozen=True)
class Data:
    """A source, opened for training."""

    source: Source
    train: Loader
    val: Loader
    evaluation: Loader  # the split that is reported: test, or val when there is no test part


def open_data(source: Source, config: DatasetConfig, workers: int, runtime: Runtime) -> Data:
    """Loaders for the parts of ``source``; each part takes its share of ``dataset.memory_gb``."""
    total = len(source.train.labels) + len(source.val.labels) + (len(source.test.labels) if source.test else 0)

    def loader(split: Split) -> Loader:
        share = config.memory_gb * 1e9 * len(split.labels) / total
        store = open_store(split.images, config, workers, runtime, share)
        return Loader(store, torch.from_numpy(split.labels).to(runtime.device), config, runtime, len(source.classes))

    train, val = loader(source.train), loader(source.val)
    return Data(source, train, val, val if source.test is None else loader(source.test))

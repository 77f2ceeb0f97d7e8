"""Where the pixels of a split are kept, and how the crops of a batch are taken from them.

Small data sets are kept decoded in the memory of the device. Large ones are streamed by loader processes, which decode,
crop and resize on demand.
"""

from __future__ import annotations

import atexit
import functools
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as image_ops

from distillcli.config.schema import AugmentConfig, DatasetConfig
from distillcli.errors import UserError
from distillcli.runtime import Runtime
from distillcli.sources.source import ArrayImages, Images
from distillcli.sources.stored import pixels_kept, stored_size
from distillcli.views.upload import Upload, send
from distillcli.views.views import Floats, Positions, centre_boxes, crop_and_resize, crop_boxes

WORKER_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Rows:
    """Views of images: in each row, view ``view`` of the image at position ``index`` of its split."""

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
        """Whether ``fetch`` returns crops, instead of whole images that are yet to be cropped."""
        ...

    @property
    def reduces(self) -> bool:
        """Whether large JPEGs are decoded at a reduced size if their crops allow it."""
        ...

    def aspects(self, index: Positions) -> Floats:
        """Width / height of the images. Meaningful only if ``fetch`` does not crop."""
        ...

    def fetch(self, cropping: Cropping, plan: Sequence[Rows]) -> Iterator[Tensor]:
        """The pixels of each batch of the plan, on the device: B x H x W x C, uint8."""
        ...


@dataclass(frozen=True)
class MemoryStore:
    """All images, decoded and resized to one size. Boxes are fractions of the image, so only resolution is lost."""

    pixels: Tensor  # N x H x W x C, uint8, on the device
    widths_by_heights: Floats  # N
    crops: bool = False
    reduces: bool = False

    def aspects(self, index: Positions) -> Floats:
        return self.widths_by_heights[index]

    def fetch(self, cropping: Cropping, plan: Sequence[Rows]) -> Iterator[Tensor]:
        for rows in plan:
            yield self.pixels[send(rows.index, self.pixels.device)]


class StreamStore:
    """Images decoded, cropped and resized on demand, in ``workers`` processes."""

    crops = True

    def __init__(self, images: Images, size: int, workers: int, runtime: Runtime) -> None:
        self._plan: list[list[tuple[Cropping, int, int]]] = []
        self.reduces = not isinstance(images, ArrayImages)
        self._upload = Upload(runtime.device)
        self._loader = _loader(Crops(images, size), self._plan, workers, runtime)

    def aspects(self, index: Positions) -> Floats:
        return np.ones(len(index))

    def fetch(self, cropping: Cropping, plan: Sequence[Rows]) -> Iterator[Tensor]:
        self._plan[:] = [
            [(cropping, int(view), int(position)) for view, position in zip(rows.view, rows.index, strict=True)]
            for rows in plan
        ]
        for item in self._loader:
            yield self._upload(_unwrap(item))


class Crops(Dataset["Tensor | UserError"]):
    """Crops of the images, decoded, cropped and resized: size x size x C, uint8."""

    def __init__(self, images: Images, size: int) -> None:
        self.images = images
        self.size = size

    def __getitem__(self, request: tuple[Cropping, int, int]) -> Tensor | UserError:
        cropping, view, position = request
        row = Rows(np.array([view]), np.array([position]))

        @functools.cache  # called twice for an image that keeps its size
        def box(width: int, height: int) -> Floats:
            share: Floats = cropping.boxes(row, np.array([width / height]))[0]
            return share

        def minimum_size(width: int, height: int) -> tuple[int, int]:
            """Decoding at a reduced size must not enlarge the crop; one pixel more, because its edges are rounded."""
            _, _, wide, high = box(width, height)
            return math.ceil((self.size + 1) / wide), math.ceil((self.size + 1) / high)

        try:
            pixels = self.images.read(position, minimum_size)
        except UserError as error:
            return error
        height, width = pixels.shape[:2]
        return crop_and_resize(torch.from_numpy(pixels), box(width, height), self.size)


class Squeezed(Dataset["Tensor | UserError"]):
    """Whole images as flat bytes, resized to size x size x C, followed by the aspect ratio as a float64."""

    def __init__(self, images: Images, size: int) -> None:
        self.images = images
        self.size = size

    def __getitem__(self, position: int) -> Tensor | UserError:
        try:
            pixels = self.images.read(position)
        except UserError as error:
            return error
        squeezed = image_ops.resize(torch.from_numpy(pixels).permute(2, 0, 1), [self.size, self.size], antialias=True)
        aspect = torch.tensor([pixels.shape[1] / pixels.shape[0]], dtype=torch.float64)
        return torch.cat([squeezed.permute(1, 2, 0).reshape(-1), aspect.view(torch.uint8)])


def _stack(items: list[Tensor | UserError]) -> Tensor | UserError:
    """Collate. A damaged image travels as its error, since a worker's exception would arrive as a page of traceback."""
    tensors = [item for item in items if isinstance(item, Tensor)]
    if len(tensors) < len(items):
        return next(item for item in items if isinstance(item, UserError))
    return torch.stack(tensors)


def _unwrap(item: Tensor | UserError) -> Tensor:
    if isinstance(item, UserError):
        # A new one: a raised local variable refers to itself through its traceback, so only the garbage collector frees
        # it, and that closes the queues first, so that the workers are never told to stop.
        raise UserError(str(item))
    return item


def _spare_from_signals(closing: Event, _worker: int) -> None:
    """Signals often reach the whole process group, but only the main process may act on them, after saving.

    At exit, multiprocessing terminates its workers with SIGTERM and waits for them, so from then on they obey it.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if closing.is_set() else None)


def _loader(
    dataset: Dataset[Tensor | UserError], plan: Sequence[object], workers: int, runtime: Runtime
) -> DataLoader[Tensor | UserError]:
    closing = multiprocessing.Event()
    if workers:
        atexit.register(closing.set)  # runs before multiprocessing's own handler, which was registered earlier
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
    """Decode ``images`` into memory if they take at most ``memory_bytes``, else prepare to stream them."""
    stored, kept = stored_size(config.image_size), pixels_kept(images, config, memory_bytes)
    if kept == "whole":
        assert isinstance(images, ArrayImages)
        height, width = images.pixels.shape[1:3]
        pixels = torch.from_numpy(np.ascontiguousarray(images.pixels)).to(runtime.device)
        return MemoryStore(pixels, np.full(len(images), width / height))
    if kept == "cropped":
        return StreamStore(images, config.image_size, workers, runtime)
    plan = [list(range(start, min(start + 64, len(images)))) for start in range(0, len(images), 64)]
    decoded = []
    for item in _loader(Squeezed(images, stored), plan, workers, runtime):
        runtime.obey_stop()
        decoded.append(_unwrap(item))
    rows = torch.cat(decoded)
    aspects = rows[:, -8:].contiguous().view(torch.float64)[:, 0].numpy()
    pixels = rows[:, :-8].reshape(-1, stored, stored, config.channels)
    return MemoryStore(pixels.to(runtime.device), aspects)

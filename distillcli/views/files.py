"""Batches of image files as evaluation sees them: the same pixels, the same size of batch, a few of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillcli.errors import UserError
from distillcli.sources.channels import GrayImages
from distillcli.sources.folder import FileImages
from distillcli.sources.source import Images
from distillcli.sources.stored import stored_size
from distillcli.views.loader import EVALUATION_BATCH
from distillcli.views.store import Cropping, Crops, Squeezed
from distillcli.views.views import plain_views, render_views


@dataclass(frozen=True)
class Look:
    """How a model is shown a file. ``size``: pixels of both sides of the view. ``crop_fraction``: share of the shorter
    side that the centre crop keeps. ``pixels``: as of ``sources.stored.pixels_kept``.
    """

    size: int
    channels: int
    crop_fraction: float
    pixels: str

    def read(self, path: str) -> tuple[Tensor, float]:
        """What is kept of a file, H x W x C, uint8, and width / height of the image; 1 where it is the crop already.

        Raises UserError when the file cannot be read.
        """
        files: Images = FileImages(Path(), (path,))
        images, stored = GrayImages(files) if self.channels == 1 else files, stored_size(self.size)
        if self.pixels == "cropped":
            return _readable(Crops(images, self.size)[Cropping(None, 0, self.crop_fraction), 0, 0]), 1.0
        if self.pixels == "whole":
            height, width, _ = (whole := images.read(0)).shape
            if max(height, width) <= stored:
                return torch.from_numpy(whole), width / height
        row = _readable(Squeezed(images, stored)[0])
        return row[:-8].reshape(stored, stored, -1), row[-8:].clone().view(torch.float64).item()

    def views(self, kept: Sequence[tuple[Tensor, float]]) -> Tensor:
        """B x C x size x size, in [0, 1], in the memory layout of evaluation, which decides how sums round."""
        if len({pixels.shape for pixels, _ in kept}) > 1:
            return torch.cat([self.views([one]) for one in kept])
        fraction = 1.0 if self.pixels == "cropped" else self.crop_fraction
        aspects = np.array([aspect for _, aspect in kept])
        return render_views(torch.stack([pixels for pixels, _ in kept]), plain_views(aspects, fraction), self.size)


def _readable(item: Tensor | UserError) -> Tensor:
    if isinstance(item, UserError):
        raise item
    return item


def batches(
    paths: Iterable[str], look: Look, workers: int, unreadable: Callable[[UserError], None]
) -> Iterator[tuple[list[str], Tensor]]:
    """The files and their views, B x C x H x W, in batches of the size of evaluation; what cannot be read is left out.

    ``unreadable``: told why, for each. ``workers``: threads that decode; 0 and 1 are the same.
    """

    def read(path: str) -> tuple[Tensor, float] | UserError:
        try:
            return look.read(path)
        except UserError as error:
            return error

    waiting, names, kept = iter(paths), list[str](), list[tuple[Tensor, float]]()
    with ThreadPoolExecutor(max(1, workers)) as threads:
        while chunk := list(islice(waiting, EVALUATION_BATCH - len(kept))):
            for path, found in zip(chunk, threads.map(read, chunk), strict=True):
                if isinstance(found, UserError):
                    unreadable(found)
                else:
                    names.append(path)
                    kept.append(found)
            if len(kept) == EVALUATION_BATCH:
                yield names, look.views(kept)
                names, kept = [], []
    if kept:
        yield names, look.views(kept)

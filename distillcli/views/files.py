"""Batches of image files as evaluation sees them: the same pixels, the same size of batch, a few of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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

    def at(self, path: str) -> Tensor:
        """The view of one file: C x size x size, in [0, 1]. Raises UserError when it cannot be read."""
        files: Images = FileImages(Path(), (path,))
        images = GrayImages(files) if self.channels == 1 else files
        whole = images.read(0) if self.pixels == "whole" else None
        if whole is not None and max(whole.shape[:2]) <= stored_size(self.size):
            return self._rendered(torch.from_numpy(whole), whole.shape[1] / whole.shape[0])
        if self.pixels == "cropped":
            crops = Crops(images, self.size)[Cropping(None, 0, self.crop_fraction), 0, 0]
            if isinstance(crops, UserError):
                raise crops
            return crops.permute(2, 0, 1).float() / 255
        row = Squeezed(images, stored_size(self.size))[0]
        if isinstance(row, UserError):
            raise row
        aspect = row[-8:].clone().view(torch.float64).item()
        stored = stored_size(self.size)
        return self._rendered(row[:-8].reshape(stored, stored, -1), aspect)

    def _rendered(self, pixels_HWC: Tensor, aspect: float) -> Tensor:
        return render_views(pixels_HWC[None], plain_views(np.array([aspect]), self.crop_fraction), self.size)[0]


def batches(
    paths: Iterable[str], look: Look, workers: int, unreadable: Callable[[UserError], None]
) -> Iterator[tuple[list[str], Tensor]]:
    """The files and their views, B x C x H x W, in batches of the size of evaluation; what cannot be read is left out.

    ``unreadable``: told why, for each. ``workers``: threads that decode; 0 and 1 are the same.
    """

    def read(path: str) -> Tensor | UserError:
        try:
            return look.at(path)
        except UserError as error:
            return error

    waiting, names, views = iter(paths), list[str](), list[Tensor]()
    with ThreadPoolExecutor(max(1, workers)) as threads:
        while chunk := list(islice(waiting, EVALUATION_BATCH - len(views))):
            for path, view in zip(chunk, threads.map(read, chunk), strict=True):
                if isinstance(view, UserError):
                    unreadable(view)
                else:
                    names.append(path)
                    views.append(view)
            if len(views) == EVALUATION_BATCH:
                yield names, torch.stack(views)
                names, views = [], []
    if views:
        yield names, torch.stack(views)

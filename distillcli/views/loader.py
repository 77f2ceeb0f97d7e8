"""Batches of views on the device, where what :mod:`distillcli.views.store` gives is augmented as whole batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillcli.config.schema import AugmentConfig, DatasetConfig
from distillcli.runtime import Runtime
from distillcli.sources.source import Source, Split
from distillcli.sources.stored import memory_share
from distillcli.types import Batch, Inputs
from distillcli.views.epochs import most_shown, partner_cumulative_weights
from distillcli.views.mix import Mix, draw_mix, mix_images, mix_labels
from distillcli.views.store import Cropping, Rows, Store, open_store
from distillcli.views.upload import send
from distillcli.views.views import Positions, Views, draw_views, plain_views, render_views

# Evaluation always uses this batch size: other shapes round differently.
EVALUATION_BATCH = 256


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

    def views_per_pass(self, recipe: AugmentConfig) -> int:
        """How many views of one image a pass shows at most; so many numbers of views belong to it."""
        return most_shown(self.labels_shown, self.config.balanced, recipe.repeats)

    def rendering(self, recipe: AugmentConfig) -> list[Any]:
        """What decides the pixels of a view beside its image, recipe and seed, for fingerprints."""
        special = ["reduced"] if self.store.reduces else []
        special += ["balanced partners"] if self.config.balanced and (recipe.mixup or recipe.cutmix) else []
        return [self.config.image_size, self.config.crop_fraction, self.store.crops, *special]

    @property
    def labels_shown(self) -> Positions:
        """The labels of the images that are shown, on the CPU."""
        labels: Positions = self.labels.cpu().numpy()[self.shown]
        return labels

    def views(self, recipe: AugmentConfig, seed: int, plan: Sequence[Rows], size: int | None = None) -> Iterator[Batch]:
        """A batch for each entry of ``plan``. Where images are mixed, targets are distributions over the classes."""
        size, fraction = size or self.config.image_size, self.config.crop_fraction
        weights = partner_cumulative_weights(self.labels_shown, self.config.balanced)

        def mix_of(rows: Rows) -> Mix:
            mix = draw_mix(recipe, seed, rows.view, rows.index, weights, size)
            return dataclasses.replace(mix, partners=self.shown[mix.partners])

        def with_partners(rows: Rows) -> Rows:
            mix = mix_of(rows)
            index = np.concatenate([rows.index, mix.partners[mix.mixed]])
            return Rows(np.concatenate([rows.view, rows.view[mix.mixed]]), index)

        shown = [with_partners(rows) for rows in plan]
        pixels_of = self.store.fetch(Cropping(recipe, seed, fraction), shown)
        for rows, both, pixels in zip(plan, shown, pixels_of, strict=True):
            drawn = draw_views(recipe, seed, both.view, both.index, self.store.aspects(both.index), fraction, size)
            images, targets = self._render(pixels, drawn, size), self._labels(rows.index)
            if recipe.mixup or recipe.cutmix:
                mix = mix_of(rows)  # drawn again: a mix for every image of an epoch would be a large thing to keep
                images = mix_images(images[: len(rows)], images[len(rows) :], mix)
                targets = mix_labels(targets, self._labels(mix.partners), mix, size, self.classes)
            yield Batch(images, targets, torch.from_numpy(rows.index), torch.from_numpy(rows.view))

    def plain(self) -> Iterator[Batch]:
        """This rank's share of the images shown, for evaluation: each once over all ranks, none twice.

        Raises Interrupted after a batch when a stop was requested, so all ranks must go on to the end together.
        """
        mine = self.shown[self.runtime.rank :: self.runtime.world]
        everything, fraction = Rows(np.zeros_like(mine), mine), self.config.crop_fraction
        plan = [everything[start : start + EVALUATION_BATCH] for start in range(0, len(mine), EVALUATION_BATCH)]
        for rows, pixels in zip(plan, self.store.fetch(Cropping(None, 0, fraction), plan), strict=True):
            images = self._render(pixels, plain_views(self.store.aspects(rows.index), fraction), self.config.image_size)
            yield Batch(images, self._labels(rows.index), torch.from_numpy(rows.index))
            self.runtime.obey_stop()
        if len(plan) < -(-len(self.shown) // (EVALUATION_BATCH * self.runtime.world)):
            self.runtime.obey_stop()  # the first ranks may have a batch more; all look equally often

    def _labels(self, index: Positions) -> Tensor:
        return self.labels[send(index, self.runtime.device)]

    def _render(self, pixels: Tensor, views: Views, size: int) -> Tensor:
        if self.store.crops:
            views = dataclasses.replace(views, boxes=np.tile([0.0, 0.0, 1.0, 1.0], (len(pixels), 1)))
        return render_views(pixels, views, size)


@dataclass(frozen=True)
class Data:
    """A source, opened for training."""

    source: Source
    train: Loader
    val: Loader | None  # chooses the best epoch; None where nothing is held out for that
    evaluation: Loader  # the split that is reported: test, or val when there is no test part, or all that there is

    @property
    def inputs(self) -> Inputs:
        """What a classifier of these images is built for."""
        config = self.train.config
        return Inputs(len(self.source.classes), config.image_size, config.channels)


def open_part(source: Source, split: Split, config: DatasetConfig, workers: int, runtime: Runtime) -> Loader:
    """A loader for one part of ``source``, which takes its share of ``dataset.memory_gb``."""
    store = open_store(split.images, config, workers, runtime, memory_share(source, split, config))
    return Loader(store, torch.from_numpy(split.labels).to(runtime.device), config, runtime, len(source.classes))


def open_data(source: Source, config: DatasetConfig, workers: int, runtime: Runtime) -> Data:
    """Loaders for the parts of ``source``; each part takes its share of ``dataset.memory_gb``."""
    loaders = {part: open_part(source, split, config, workers, runtime) for part, split in source.parts.items()}
    reported = next(loaders[part] for part in ("test", "val", "train") if part in loaders)
    return Data(source, loaders["train"], loaders.get("val"), reported)

"""What a fit is shown, epoch by epoch: which views of which images form a batch.

A pure function of (seed, epoch, step, rank, world size): where it begins, and the loader's settings, change nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from distillcli.config.schema import AugmentConfig, TrainConfig
from distillcli.runtime import Runtime
from distillcli.types import Batch
from distillcli.views.epochs import earlier_occurrences, epoch_order, view_size
from distillcli.views.loader import Loader
from distillcli.views.store import Rows


@dataclass(frozen=True)
class Growth:
    """Views that grow over the epochs. ``shares``: the share of the side in the first epoch, and the share of the
    ``epochs`` after which views have full size."""

    shares: list[float]
    epochs: int


@dataclass(frozen=True)
class Showing:
    """All that decides the batches of a fit before its first step.

    ``batch_size``: images of an optimizer step over all ranks, given in ``micro_batches`` parts. ``cycle``: after this
    many passes their views come again, in another order; 0 for fresh views in every pass. ``growth``: None for views of
    full size.
    """

    loader: Loader
    augment: AugmentConfig
    seed: int
    batch_size: int
    micro_batches: int = 1
    cycle: int = 0
    growth: Growth | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Full batches only: a last batch of one image has no batch statistics. A small set is one batch.

        Of all images, also where only some are shown: with few labels a model learns for as many steps as with many.
        """
        return max(1, len(self.loader) // self.batch_size)

    @property
    def images_per_step(self) -> int:
        return min(self.batch_size, len(self.loader.shown))

    def view_size(self, epoch: int) -> int:
        """Pixels of the side of a view in ``epoch``, counted from 1."""
        full = self.loader.config.image_size
        return full if self.growth is None else view_size(full, self.growth.shares, epoch, self.growth.epochs)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """From ``first_step`` on, this rank's share of every batch of ``epoch``, as ``micro_batches`` parts.

        Where only some images are shown, an epoch passes over them several times, each time in other views and another
        order.
        """
        batches = self.loader.views(self.augment, self.seed, self._plan(epoch, first_step), self.view_size(epoch))
        while parts := list(itertools.islice(batches, self.micro_batches)):
            yield parts

    def step_rows(self, step: int) -> Rows:
        """The whole batch of a step, counted from 1 over all epochs: what all ranks see together."""
        alone = dataclasses.replace(self.loader, runtime=Runtime(self.loader.runtime.device))
        steps = self.steps_per_epoch
        whole = dataclasses.replace(self, loader=alone, micro_batches=1)
        return whole._plan((step - 1) // steps + 1, (step - 1) % steps)[0]

    def _plan(self, epoch: int, first_step: int) -> list[Rows]:
        """The rows of every micro-batch of this rank."""
        # 1. The steps of an epoch are counted over all images, those of a pass over the images that are shown.
        loader, shown, steps = self.loader, self.loader.shown, self.steps_per_epoch
        steps_per_pass = max(1, len(shown) // self.batch_size)
        first, end = (epoch - 1) * steps + first_step, epoch * steps
        world, rank = loader.runtime.world, loader.runtime.rank
        share = self.images_per_step // (world * self.micro_batches)
        labels, balanced, repeats = loader.labels_shown, loader.config.balanced, self.augment.repeats
        plan = []
        for number in range(first // steps_per_pass, -(-end // steps_per_pass)):
            # 2. Each pass has an order of its own, and views of its own until the cycle begins again.
            index = shown[epoch_order(self.seed, number + 1, labels, balanced, repeats)]
            turn = number % self.cycle if self.cycle else number
            rows = Rows(turn * loader.views_per_pass(self.augment) + earlier_occurrences(index) + 1, index)
            # 3. A rank takes every world-th row of a batch, so that the batch itself is the same for any world.
            begin = number * steps_per_pass
            for step in range(max(first - begin, 0), min(end - begin, steps_per_pass)):
                mine = rows[step * self.batch_size : (step + 1) * self.batch_size][rank::world]
                plan += [mine[part * share : (part + 1) * share] for part in range(self.micro_batches)]
        return plan


def showing(config: TrainConfig, loader: Loader) -> Showing:
    """What the run of ``config`` shows of the images of ``loader``."""
    trainer = config.trainer
    return Showing(
        loader=loader,
        augment=config.augment,
        seed=config.seed,
        batch_size=trainer.batch_size,
        micro_batches=trainer.accumulate,
        cycle=config.teacher.cache.views,
        growth=None if trainer.progressive is None else Growth(list(trainer.progressive), trainer.epochs),
    )

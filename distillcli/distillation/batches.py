"""Whether a batch, cut into its parts, is large enough for the models and terms that see these."""

from __future__ import annotations

import torch

from distillcli.config.job import process_count
from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.config.terms import KNOWN_TERMS, active_terms
from distillcli.errors import UserError
from distillcli.models.backbone import build_on_meta
from distillcli.models.freezing import freeze
from distillcli.reused_head import title
from distillcli.types import Inputs
from distillcli.views.epochs import view_size


def check_batch(config: TrainConfig, images: int, inputs: Inputs, model: ModelConfig, key: str) -> None:
    """Raise UserError where a micro-batch is too small for ``model``, or for the terms that it learns from.

    ``images``: how many are shown; a set smaller than a batch is one batch. ``key``: where the config names the model.
    """
    trainer, processes = config.trainer, process_count()
    share = min(trainer.batch_size, images) // (processes * trainer.accumulate)
    parts = f"trainer.batch_size={trainer.batch_size} with trainer.accumulate={trainer.accumulate}"
    parts += f" in {processes} processes" if processes > 1 else ""
    if share < 1:
        raise UserError(f"{parts}: {images} images do not give every part one; use trainer.accumulate=1 or more images")
    for name in active_terms(config.distill):
        least = KNOWN_TERMS[name].least_batch
        if share < least:
            raise UserError(
                f"{parts}: {name} compares the images of a batch with each other, {least} or more, and has {share} (of "
                f"{images} in the data); use trainer.batch_size={least * processes} or more"
            )
    if share == 1 and not _can_normalise_one_image(config, inputs, model, key):
        wanted = 2 * processes * trainer.accumulate
        fix = "fewer parts" if trainer.batch_size >= wanted else f"trainer.batch_size={wanted} or more"
        raise UserError(
            f"{parts}: a part is one image (of {images}), in which the batch norms of {title(model)} would see a "
            f"single value; use {fix}, or a larger dataset.image_size"
        )


def _can_normalise_one_image(config: TrainConfig, inputs: Inputs, model: ModelConfig, key: str) -> bool:
    """Whether a training step of one view, as small as they get, has several values in each channel of a batch norm."""
    size = view_size(inputs.image_size, config.trainer.progressive, 1, config.trainer.epochs)
    outline = build_on_meta(model, inputs, key)
    freeze(outline, model.freeze, key)
    side = model.image_size or size
    with torch.no_grad():
        try:
            outline.train().net(torch.zeros(1, inputs.channels, side, side, device="meta"))
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            return False
    return True

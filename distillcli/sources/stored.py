"""In which form the pixels of a split are kept: what was decoded whole is cropped from fewer pixels than a file has."""

from __future__ import annotations

from distillcli.config.schema import DatasetConfig
from distillcli.sources.source import ArrayImages, Images, Source, Split

# Decoded images are kept larger than the view by this factor, so that random crops are enlarged less.
STORED_MARGIN = 1.25


def stored_size(image_size: int) -> int:
    """Pixels of both sides of an image in memory."""
    return round(image_size * STORED_MARGIN)


def memory_share(source: Source, split: Split, config: DatasetConfig) -> float:
    """Bytes that a split may take of ``dataset.memory_gb``."""
    total = sum(len(part.labels) for part in source.parts.values())
    return config.memory_gb * 1e9 * len(split.labels) / total


def pixels_kept(images: Images, config: DatasetConfig, memory_bytes: float) -> str:
    """``whole``: arrays as they are. ``squeezed``: in memory, resized to one square. ``cropped``: decoded on demand."""
    stored = stored_size(config.image_size)
    if isinstance(images, ArrayImages):
        height, width = images.pixels.shape[1:3]
        if images.pixels.nbytes <= memory_bytes and max(height, width) <= stored:
            return "whole"
    return "cropped" if len(images) * stored**2 * config.channels > memory_bytes else "squeezed"


def pixels_evaluated(source: Source, config: DatasetConfig) -> str:
    """``pixels_kept`` for the part that is reported."""
    return pixels_kept(source.evaluation.images, config, memory_share(source, source.evaluation, config))

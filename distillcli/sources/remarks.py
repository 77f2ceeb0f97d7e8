"""What is remarkable about data that is sound: one line each, which every run repeats among its warnings."""

from __future__ import annotations

import numpy as np

from distillcli.sources.decode import largest_of_16_bit
from distillcli.sources.source import EncodedImages, Source
from distillcli.sources.tree import quoted_names

LOOKED_AT = 64  # images whose values are read
_DARK = 65536 // 4  # 16-bit images below this are taken for ones of fewer bits


def absent_classes(source: Source) -> list[str]:
    """Classes of which val or test has no image, although it has labels: no accuracy there tells of them."""
    found = []
    for part, split in source.parts.items():
        absent = np.setdiff1d(np.arange(len(source.classes)), split.labels)
        if part == "train" or not split.labelled or not len(absent):
            continue
        names = quoted_names([source.classes[label] for label in absent])
        found.append(
            f"{source.name}: {part} has no image of {len(absent)} of the {len(source.classes)} classes ({names}); no"
            " accuracy there counts them"
        )
    return found


def dark_images(source: Source) -> list[str]:
    """A line where the training images have 16 bits but use a small part of that range, as 12-bit cameras do.

    They are scaled by the range of their type, so they would be nearly black.
    """
    images = source.train.images
    if not isinstance(images, EncodedImages):
        return []
    rows = np.unique(np.linspace(0, len(images) - 1, num=LOOKED_AT).astype(int)).tolist()
    found = [(largest, row) for row in rows if (largest := largest_of_16_bit(images.content(row))) is not None]
    if not found or max(found)[0] >= _DARK:
        return []
    largest, row = max(found)
    return [
        f"{source.name}: 16-bit images whose largest value is {largest:,} of 65,535 ({images.name(row)!r}, the"
        f" brightest of {len(found)}) are read as nearly black, at most {largest * 255 // 65535} of 255; multiply their"
        f" values by {65535 // max(largest, 1)}, or save them with 8 bits"
    ]

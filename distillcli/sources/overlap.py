"""Images that are in two parts of a data set, found by their content.

Only what could be equal is read: files of the same size, arrays that agree in a few pixels. Of very large sets a sample
is looked at, so that opening them stays a matter of seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from distillcli.errors import UserError
from distillcli.sources.source import ArrayImages, EncodedImages, Images, Source, Split

MOST_READ = 10_000  # images whose content is read, for two parts
SAMPLE = 200  # images of the smaller part that are looked at in a larger set
_PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))


def overlap_notes(
    where: str, splits: Mapping[str, Split], keys: Mapping[str, Sequence[Hashable]], held_out: bool = False
) -> list[str]:
    """A line for every two parts with common images.

    ``keys``: for each part, what equal images must have in common, such as their size. ``held_out``: whether val was
    taken from train here. If the data set itself has the parts, raises UserError where one of them repeats another,
    since no result on it would mean anything.
    """
    notes = []
    for one, other in _PAIRS:
        if one not in splits or other not in splits:
            continue
        looked_at, repeats = _repeats(splits[one], splits[other], keys[one], keys[other])
        if not repeats:
            continue
        row, first = repeats[0]
        example = f"e.g. {splits[other].images.name(row)!r} is {splits[one].images.name(first)!r}"
        if len(repeats) == looked_at and not held_out:
            raise UserError(
                f"{where}: {other} repeats {one}, each of its images is there too, {example}; point {other} at other"
                " images or remove it"
            )
        sampled = f" that were compared (of {len(keys[other]):,})" if looked_at < len(keys[other]) else ""
        notes.append(
            f"{where}: {len(repeats):,} of the {looked_at:,} images of {other}{sampled} are in {one} too, {example};"
            f" results on {other} look better than they are"
        )
    return notes


def array_overlap_notes(where: str, splits: Mapping[str, Split], held_out: bool = False) -> list[str]:
    """As ``overlap_notes``, for splits of ArrayImages."""
    return overlap_notes(where, splits, {part: _pixel_keys(split.images) for part, split in splits.items()}, held_out)


def training_note(evaluated: Source, trained: Source) -> str | None:
    """A line where images that ``evaluated`` is reported on are among those that ``trained`` was learned from.

    None without a common image, and where the two keep their images in ways that cannot be compared.
    """
    one, other = trained.train, evaluated.evaluation
    of_one, of_other = _keys(one.images), _keys(other.images)
    if of_one is None or of_other is None:
        return None
    looked_at, repeats = _repeats(one, other, of_one, of_other)
    if not repeats:
        return None
    row, first = repeats[0]
    sampled = f" that were compared (of {len(other.labels):,})" if looked_at < len(other.labels) else ""
    return (
        f"{evaluated.name}: {len(repeats):,} of its {looked_at:,} images{sampled} are among those that the model was"
        f" trained on, e.g. {other.images.name(row)!r} is {one.images.name(first)!r}; its numbers look better than they"
        " are"
    )


def _keys(images: Images) -> Sequence[Hashable] | None:
    """For each image what equal ones must have in common; None for images that are changed when they are read."""
    if isinstance(images, ArrayImages):
        return _pixel_keys(images)
    return [images.size(row) for row in range(len(images))] if isinstance(images, EncodedImages) else None


def _pixel_keys(images: Images) -> list[bytes]:
    """Some evenly spaced values of each image."""
    assert isinstance(images, ArrayImages)
    flat = images.pixels.reshape(len(images), -1)
    columns = np.unique(np.linspace(0, flat.shape[1] - 1, num=64).astype(int))
    return [row.tobytes() for row in flat[:, columns]]


def _repeats(
    one: Split, other: Split, keys_of_one: Sequence[Hashable], keys_of_other: Sequence[Hashable]
) -> tuple[int, list[tuple[int, int]]]:
    """How many images of ``other`` were looked at, and which of them are which of ``one``."""
    known = set(keys_of_one)
    rows = [row for row, key in enumerate(keys_of_other) if key in known]
    looked_at = len(keys_of_other)
    candidates = _candidates(keys_of_one, [keys_of_other[row] for row in rows])
    if len(rows) + len(candidates) > MOST_READ:
        sample = np.unique(np.linspace(0, looked_at - 1, num=SAMPLE).astype(int)).tolist()
        rows, looked_at = [row for row in sample if keys_of_other[row] in known], len(sample)
        candidates = _candidates(keys_of_one, [keys_of_other[row] for row in rows])[:MOST_READ]
    contents = {_content(one, row): row for row in reversed(candidates)}
    found = [(row, contents.get(_content(other, row))) for row in rows]
    return looked_at, [(row, first) for row, first in found if first is not None]


def _candidates(keys: Sequence[Hashable], wanted: Sequence[Hashable]) -> list[int]:
    kept = set(wanted)
    return [row for row, key in enumerate(keys) if key in kept] if kept else []


def _content(split: Split, row: int) -> bytes:
    images = split.images
    if isinstance(images, EncodedImages):
        try:
            return hashlib.blake2b(images.content(row), digest_size=16).digest()
        except UserError:  # whoever decodes it says what is wrong; it equals none
            return f"{id(split)}/{row}".encode()
    assert isinstance(images, ArrayImages)
    return hashlib.blake2b(images.pixels[row].tobytes(), digest_size=16).digest()

"""What is known before anything is decoded: names, labels and sizes of images, and how they become a Source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.overlap import overlap_notes
from distillcli.sources.source import EncodedImages, Source, Split
from distillcli.sources.tree import PARTS, quoted_names

SAMPLED_FILES = 64  # whose content enters the fingerprint


@dataclass(frozen=True)
class Listing:
    """The images of one part. ``names``, ``labels`` and ``sizes`` (bytes) are parallel."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Listing:
        return Listing(self.classes, tuple(self.names[row] for row in rows), self.labels[rows], self.sizes[rows])


def listed_source(
    kind: str,
    name: str,
    where: str,
    parts: Mapping[str, Listing],
    images: Callable[[tuple[str, ...]], EncodedImages],
    config: DatasetConfig,
) -> Source:
    """A Source from ``train`` and perhaps ``val`` and ``test``; a missing val is held out of train.

    ``images``: from names to images. ``where``: the name of the data in messages. All parts have the same classes.
    """

    def compared(listings: Mapping[str, Listing], held_out: bool = False) -> list[str]:
        splits = {part: Split(images(listing.names), listing.labels) for part, listing in listings.items()}
        sizes = {part: listing.sizes.tolist() for part, listing in listings.items()}
        return overlap_notes(where, splits, sizes, held_out)

    train = parts["train"]
    listings, notes = dict(parts), compared(parts)
    if "val" not in parts and config.val_fraction > 0:
        kept, held = hold_out(train.labels, train.classes, config.val_fraction, config.split_seed, where)
        sides = {"train": train.take(kept), "val": train.take(held)}
        listings |= sides
        notes += compared(sides, held_out=True)
    splits = {part: Split(images(listings[part].names), listings[part].labels) for part in PARTS if part in listings}
    sizes = {part: listings[part].sizes for part in splits}
    return Source.of(name, train.classes, splits, file_fingerprint(kind, train.classes, splits, sizes), notes)


def named_listings(where: str, parts: Mapping[str, Mapping[str, str]], sizes: Mapping[str, int]) -> dict[str, Listing]:
    """Listings, in the order of the names, of ``parts``: image name -> class name. The classes are those of train.

    Numbered classes are ordered by number, others lexicographically. Raises UserError for a class without training
    images.
    """
    found = set(parts["train"].values())
    classes = tuple(sorted(found, key=int if all(name.isdecimal() for name in found) else None))
    labels = {name: label for label, name in enumerate(classes)}
    listings = {}
    for part, named in parts.items():
        extra = sorted(set(named.values()) - found)
        if extra:
            raise UserError(f"{where}: {quoted_names(extra)} only in {part}, no training image has that class")
        names = tuple(sorted(named))
        listings[part] = Listing(
            classes,
            names,
            np.array([labels[named[name]] for name in names], np.int64),
            np.array([sizes[name] for name in names], np.int64),
        )
    return listings


def index_labels(
    where: str, values: Mapping[str, NDArray[Any]], names: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Classes and, for each part, labels in [0, number of classes) of its ``values``: whole numbers or text.

    With ``names``, the values are indices into them. Without, the classes are the values in train, numbers ordered by
    value and text lexicographically. Raises UserError, naming the row, for a negative number or an unknown class.
    """
    for part, found in values.items():
        if found.dtype.kind == "i" and len(found) and found.min() < 0:
            row = int(found.argmin())
            raise UserError(f"{where}: row {row} of the {part} part has label {found[row]}; correct or remove it")
    if names is not None:
        known = np.arange(len(names))
        if any(found.dtype.kind == "U" for found in values.values()):
            raise UserError(f"{where}: labels must be whole numbers from 0, because class names are given")
    else:
        known = np.unique(values["train"])
    if not len(known):
        raise UserError(f"{where}: has no classes; add labelled images")
    labels = {}
    for part, found in values.items():
        position = np.minimum(np.searchsorted(known, found), len(known) - 1)
        stray = np.flatnonzero(known[position] != found)
        if len(stray):
            row = stray[0]
            problem = "which no training image has" if names is None else f"outside 0..{len(known) - 1}"
            raise UserError(
                f"{where}: row {row} of the {part} part has label {str(found[row])!r}, {problem}; correct or remove it"
            )
        labels[part] = position.astype(np.int64)
    return tuple(str(name) for name in (known if names is None else names)), labels


def hold_out(
    labels: NDArray[np.int64], classes: Sequence[str], fraction: float, seed: int, where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two sorted, disjoint arrays of rows: those kept for training and those held out.

    A ``fraction`` of every class is held out, rounded, but at least one image; at least one is kept.
    Raises UserError if a class has fewer than two images.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < fraction < 1:
        raise UserError(f"dataset.val_fraction={fraction}: must be above 0 and below 1, e.g. 0.1")
    random = np.random.RandomState(seed)
    kept, held = [], []
    for label, name in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise UserError(
                f"{where}: class {name!r} has {len(rows)} image{'s' * (len(rows) != 1)}, but a validation part"
                " needs 2; add images or a val/ folder, or remove the class"
            )
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        first, second = train_test_split(rows, test_size=count, random_state=random)
        kept.append(first)
        held.append(second)
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


def split_kind(kind: str, splits: Mapping[str, Split]) -> str:
    """``kind`` for a fingerprint: the parts follow each other there, so a missing val must not pass for a test."""
    return kind if "val" in splits else f"{kind} without val"


def file_fingerprint(
    kind: str,
    classes: Sequence[str],
    splits: Mapping[str, Split],
    sizes: Mapping[str, NDArray[np.int64]] | None = None,
) -> str:
    """32 hex digits over class names, image names, sizes, labels, and the content of up to 64 evenly spaced images.

    Absolute paths and times do not enter, so a copy of the data elsewhere has the same fingerprint. The splits must
    contain EncodedImages; ``sizes``: one array of bytes per split. Raises UserError if a sampled image cannot be read.
    """
    digest = hashlib.sha256(json.dumps([split_kind(kind, splits), list(classes)]).encode())
    files: list[tuple[EncodedImages, int]] = []
    for part, split in splits.items():
        assert isinstance(split.images, EncodedImages)
        lengths = sizes[part].tolist() if sizes is not None else None
        digest.update(json.dumps([list(split.images.names), split.labels.tolist(), lengths]).encode())
        files += [(split.images, row) for row in range(len(split.images))]
    for position in np.unique(np.linspace(0, len(files) - 1, num=SAMPLED_FILES).astype(int)) if files else ():
        images, row = files[position]
        digest.update(hashlib.sha256(images.content(row)).digest())
    return digest.hexdigest()[:32]

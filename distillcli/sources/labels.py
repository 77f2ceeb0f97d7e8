"""Missing labels, where an image whose class is not known has the label -1, and wrong ones."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distillcli.sources.draws import uniform
from distillcli.sources.source import Source
from distillcli.sources.tree import quoted_names

UNLABELLED = -1


def with_label_noise(source: Source, share: float, seed: int) -> Source:
    """``source`` with about a ``share`` of the training labels replaced by another class, all others equally likely.

    Symmetric noise, as benchmarks of learning from wrong labels use. Which labels are replaced, and by what, depends on
    ``seed`` and the position of the image alone. val and test do not change.
    """
    if share == 0:
        return source
    labels = source.train.labels
    chance, other = uniform(seed, "label noise", 0, np.arange(len(labels)), 2).T
    steps = 1 + (other * (len(source.classes) - 1)).astype(np.int64)
    wrong = (chance < share) & (labels != UNLABELLED)
    key = f"{source.fingerprint}/label noise/{share}/{seed}"
    return dataclasses.replace(
        source,
        train=dataclasses.replace(
            source.train, labels=np.where(wrong, (labels + steps) % max(1, len(source.classes)), labels)
        ),
        fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
        notes=(
            *source.notes,
            f"{source.name}: {wrong.sum():,} of {len(labels):,} training labels are wrong on purpose "
            f"(dataset.label_noise={share})",
        ),
    )


def keep_labels(source: Source, share: float, seed: int) -> Source:
    """``source`` with a ``share`` of the training labels of each class, at least one; the others become -1.

    Which are kept depends on ``seed`` alone, and a larger share keeps all labels of a smaller one. val and test do not
    change. A share of 1 gives the same source, a share of 0 keeps no label at all.
    """
    if share == 1:
        return source
    labels = np.full_like(source.train.labels, UNLABELLED)
    if share > 0:
        kept = _kept(source.train.labels, share, seed)
        labels[kept] = source.train.labels[kept]
    key = f"{source.fingerprint}/labelled/{share}/{seed}"
    return dataclasses.replace(
        source,
        train=dataclasses.replace(source.train, labels=labels),
        fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
    )


def with_class_names(source: Source, names: Sequence[str]) -> Source:
    """``source`` with its labels among the classes ``names``, if it has no others; else, or without names, the same.

    A set that is only evaluated may lack classes of the model, or have its folders in another order.
    """
    if tuple(names) == source.classes or not source.classes or not set(source.classes) <= set(names):
        return source
    places = np.array([*(names.index(name) for name in source.classes), UNLABELLED])  # the last one is that of -1
    splits = {part: dataclasses.replace(split, labels=places[split.labels]) for part, split in source.parts.items()}
    absent = [name for name in names if name not in source.classes]
    note = f"{source.name}: has no image of {len(absent)} of the {len(names)} classes ({quoted_names(absent)})"
    return dataclasses.replace(
        source,
        classes=tuple(names),
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        notes=(*source.notes, *([note] if absent else [])),
    )


def _kept(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    order = np.argsort(uniform(seed, "labelled", 0, np.arange(len(labels)), 1)[:, 0], kind="stable")
    of_class = [order[labels[order] == number] for number in np.unique(labels[labels != UNLABELLED])]
    return np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in of_class] or [order[:0]])

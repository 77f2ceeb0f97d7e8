"""Which class of a teacher stands for which class of the data. Names decide, never positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from distillcli.errors import UserError, did_you_mean
from distillcli.sources.label_files import read_class_map


def teacher_classes(class_map: str | None, classes: tuple[str, ...], key: str) -> tuple[str, ...]:
    """What the teacher calls each of ``classes``: what the file ``class_map`` says, or the same where it says nothing.

    Raises UserError when it cannot be read so, or names a class that the data does not have.
    """
    if class_map is None:
        return classes
    names = read_class_map(key, Path(class_map))
    for name in names:
        if name not in classes:
            raise UserError(f"{key}={class_map}: {name!r} is no class of the data{did_you_mean(name, classes)}")
    return tuple(names.get(name, name) for name in classes)


def columns(wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    """Where among the ``known`` classes each wanted one stands. Raises KeyError with the first that is not there once.

    Two wanted classes of one name would share their probability.
    """
    if tuple(wanted) == tuple(known):
        return list(range(len(known)))
    counts, asked = Counter(known), Counter(wanted)
    for name in wanted:
        if counts[name] != 1 or asked[name] != 1:
            raise KeyError(name)
    places = {name: place for place, name in enumerate(known)}
    return [places[name] for name in wanted]


def knows(wanted: Sequence[str], known: Sequence[str]) -> bool:
    try:
        columns(wanted, known)
    except KeyError:
        return False
    return True

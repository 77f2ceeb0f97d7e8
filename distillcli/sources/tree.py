"""Trees of folders with images, on disk or in an archive, from which the layouts are read."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Protocol

PARTS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}
_PART_OF = {spelling: part for part, spellings in PARTS.items() for spelling in spellings}

_IGNORED = frozenset({"__MACOSX", "Thumbs.db"})  # besides everything that begins with a dot


class Tree(Protocol):
    """A folder is named by its path below the root, with forward slashes; the root itself is ``""``."""

    @property
    def ignored(self) -> Mapping[str, str]:
        """Files that look like images and were not listed so far, by path below the root, and why."""
        ...

    def listing(self, folder: str) -> tuple[list[str], list[str]]:
        """The sorted names of the folders and of the images directly in ``folder``."""
        ...

    def images_below(self, folder: str) -> list[tuple[str, int]]:
        """Path below ``folder`` and size in bytes of every image, in the order of the paths."""
        ...

    def same(self, one: str, other: str) -> bool:
        """Whether two names mean the same folder."""
        ...

    def shown(self, folder: str) -> str:
        """The folder's name in messages."""
        ...

    def as_root(self, folder: str) -> str:
        """Advice: what to do so that ``folder`` is read as the root."""
        ...


def part_of(name: str) -> str | None:
    """The part that a folder or split of this name is, as ``Train``, ``testing`` or ``validation_set``; else None."""
    return _PART_OF.get(re.sub(r"[\W_]+", "", name.lower()).removesuffix("set"))


def parts_hinted(name: str) -> set[str]:
    """The parts that single words of a name speak of: ``seg_train`` and ``TrainImages`` of train."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    return {part for word in words if (part := part_of(word)) is not None}


def join_path(*names: str) -> str:
    return "/".join(name for name in names if name)


def is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED


def extension_of(name: str) -> str:
    """In lower case, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - ten times faster than Path for 1e5 names


def composed(name: str) -> str:
    """Accented letters as one character each (NFC): macOS writes file names decomposed, other systems do not."""
    return unicodedata.normalize("NFC", name)


def quoted_names(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + rest


def images_words(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"

"""Trees of folders with images, on disk or in an archive, from which the layouts are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
PARTS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
PART_OF = {spelling: part for part, spellings in PARTS.items() for spelling in spellings}

_IGNORED = frozenset({"__MACOSX", "Thumbs.db"})  # besides everything that begins with a dot


class Tree(Protocol):
    """A folder is named by its path below the root, with forward slashes; the root itself is ``""``."""

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


def join_path(*names: str) -> str:
    return "/".join(name for name in names if name)


def is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED


def has_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122 - ten times faster than Path for 1e5 names


def quoted_names(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + rest

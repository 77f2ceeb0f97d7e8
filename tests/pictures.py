"""Tiny image files for the tests of data sources."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image


def png(value: int = 0) -> bytes:
    """A gray image of 4 x 4."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def put(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, value, value)).save(path)
    return path


def put_classes(folder: Path, count: int = 4, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for label, name in enumerate(classes):
        for number in range(count):
            put(folder / name / f"{number}.png", 50 * label + number)
    return folder

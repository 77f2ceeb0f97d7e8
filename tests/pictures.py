"""Tiny image files for the tests of data sources."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def png(value: int = 0, text: str = "") -> bytes:
    """A gray image of 4 x 4, whose file differs by the ``text`` that it holds."""
    file, held = io.BytesIO(), PngInfo()
    held.add_text("text", text)
    Image.new("RGB", (4, 4), (value, value, value)).save(file, "PNG", pnginfo=held)
    return file.getvalue()


def put(path: Path, value: int = 0) -> Path:
    """A gray image of 4 x 4. As a PNG it holds its own path, so that no two files are copies of each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PngInfo()
    text.add_text("path", ascii(str(path)))
    Image.new("RGB", (4, 4), (value, value, value)).save(path, pnginfo=text)
    return path


def put_classes(folder: Path, count: int = 4, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for label, name in enumerate(classes):
        for number in range(count):
            put(folder / name / f"{number}.png", 50 * label + number)
    return folder

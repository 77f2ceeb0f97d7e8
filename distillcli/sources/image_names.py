"""Which files are images: what Pillow can decode is read, and what only looks like an image is named.

Nothing is decoded to find out. The name decides; only a file whose ending says nothing is looked into, and then it is
not read, but counted: its ending may be wrong on purpose, as that of a backup copy is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from PIL import Image

from distillcli.sources.tree import extension_of

# Formats that Pillow recognises but cannot decode, or only with programs that are installed apart.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_OTHER_IMAGES = frozenset(
    {
        *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jxr", ".wdp", ".webp", ".svg", ".svgz", ".eps", ".wmf", ".emf"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".exr", ".hdr", ".dcm", ".xcf", ".kra"),
    }
)
# What lies beside images and is none; without this list every annotation of a large data set would be opened.
_NO_IMAGES = frozenset({".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".mat"})
# JPEG, PNG, GIF, TIFF of both byte orders, JPEG 2000 and JPEG XL.
_STARTS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"),
    *(b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL "),
)
HEAD = 16  # bytes at the beginning of a file that tell an image


@functools.cache
def image_extensions() -> frozenset[str]:
    """The endings of the formats that Pillow decodes, in lower case, with their dots."""
    Image.init()
    formats = (Image.OPEN.keys() | {"MPO"}) - _NOT_DECODED  # MPO, of stereo cameras, is opened as a JPEG
    return frozenset(extension for extension, kind in Image.EXTENSION.items() if kind in formats)


def has_image_name(name: str) -> bool:
    return extension_of(name) in image_extensions()


def why_not_read(name: str, head: Callable[[], bytes]) -> str | None:
    """Why a file without the name of an image is left out although it looks like one; None if it does not.

    ``head``: reads its first ``HEAD`` bytes.
    """
    extension = extension_of(name)
    if extension in _OTHER_IMAGES:
        return f"Pillow does not read {extension}"
    if extension in _NO_IMAGES or not _starts_as_image(head()):
        return None
    return f"an image named {extension}" if extension else "an image whose name has no ending"


def ignored_words(ignored: Mapping[str, str]) -> str:
    """How many files look like images and are not read, with one of them; empty if there are none."""
    if not ignored:
        return ""
    name, why = next(iter(ignored.items()))
    are = "files look like images and are" if len(ignored) > 1 else "file looks like an image and is"
    return f"{len(ignored):,} {are} not read, e.g. {name!r} ({why})"


def _starts_as_image(head: bytes) -> bool:
    if head.startswith(_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return True
    return head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"heic", b"heix", b"mif1")

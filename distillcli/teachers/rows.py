"""The teacher-output cache: a teacher's outputs by (index, view) in files, so that each is computed once.

Exact because a view is a pure function of (seed, view, index): the row stored for a view is the one the teacher would
output now, rounded as the format says. The first run uses the rounded rows that it stores, so it and all later runs are
equal bit for bit. A folder is named by a hash of everything that can change a row.

Every row ends with its checksum: a row that was never written, was torn by a crash or was damaged since is computed
again, and damaged ones are counted.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcli.errors import UserError
from distillcli.report.format import byte_count
from distillcli.runs.folder import fingerprint, write_json
from distillcli.runs.reading import read_json, reading, try_json

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

CHECKSUM_BYTES = 4
TOP_K = 50
_VIEW = re.compile(r"view-\d{5}\.r\d+")
ROW_VERSION = 1  # raised when the layout of a row or the rendering of views changes


# --- formats -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowFormat:
    """How a row of ``width`` numbers becomes bytes. ``encode``: B x width float32 -> B x bytes; ``decode``: back."""

    name: str
    size: Callable[[int], int]  # bytes of one row of this width, without checksum
    encode: Callable[[Floats], Bytes]
    decode: Callable[[Bytes, int], Floats]


def _as_bytes(array: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1)


def _encode_int8(rows: Floats) -> Bytes:
    low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
    scale = np.maximum((high - low) / 255, np.finfo(np.float32).tiny)
    levels = np.rint((rows - low) / scale).astype(np.uint8)
    return np.concatenate([_as_bytes(low), _as_bytes(scale), levels], axis=1)


def _decode_int8(stored: Bytes, width: int) -> Floats:
    low, scale = np.ascontiguousarray(stored[:, :8]).view(np.float32).reshape(-1, 2).T
    rows: Floats = low[:, None] + stored[:, 8 : 8 + width].astype(np.float32) * scale[:, None]
    return rows


def _encode_topk(rows: Floats) -> Bytes:
    """The largest log-probabilities; what is left of the probability is spread over the other classes on decoding."""
    shifted = rows - rows.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    count = min(TOP_K, rows.shape[1])
    kept = np.argsort(-log_probabilities, axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(log_probabilities, kept, axis=1).astype(np.float16)
    return np.concatenate([_as_bytes(kept.astype(np.uint32)), _as_bytes(values)], axis=1)


def _decode_topk(stored: Bytes, width: int) -> Floats:
    count = min(TOP_K, width)
    kept = np.ascontiguousarray(stored[:, : 4 * count]).view(np.uint32).astype(np.int64)
    values = np.ascontiguousarray(stored[:, 4 * count : 6 * count]).view(np.float16).astype(np.float32)
    # Rounding to half precision can push the sum above 1: never less than nothing is left.
    left = np.maximum(1 - np.exp(values).sum(axis=1, keepdims=True), 1e-8) / max(1, width - count)
    rows = np.repeat(np.log(left).astype(np.float32), width, axis=1)
    np.put_along_axis(rows, kept, values, axis=1)
    return rows


FORMATS = {
    "float16": RowFormat(
        "float16",
        lambda width: 2 * width,
        lambda rows: _as_bytes(rows.astype(np.float16)),
        lambda stored, width: np.ascontiguousarray(stored).view(np.float16).astype(np.float32),
    ),
    "float32": RowFormat(
        "float32",
        lambda width: 4 * width,
        _as_bytes,
        lambda stored, width: np.ascontiguousarray(stored).view(np.float32),
    ),
    "int8": RowFormat("int8", lambda width: width + 8, _encode_int8, _decode_int8),
    "topk": RowFormat("topk", lambda width: 6 * min(TOP_K, width), _encode_topk, _decode_topk),
}


def check_mode(mode: str, embedding: bool) -> None:
    """Raise UserError for a ``teacher.cache.mode`` that cannot hold the embeddings which a term compares."""
    if embedding and mode in ("int8", "topk"):
        raise UserError(f"teacher.cache.mode={mode}: holds logits only and a term compares embeddings; use float16")


def choose_format(
    mode: str, width: int, images: int, views: int, max_gb: float, temperature: float, embedding: bool
) -> tuple[str, str]:
    """The format for ``teacher.cache.mode`` and one line that says why; ``"off"`` for none.

    ``auto`` takes float16 if all views fit into ``max_gb``, else int8, which is closer to the truth than top-k at equal
    size unless the temperature is about 1 and there are very many classes, else top-k for these. Embeddings are kept in
    floating point: their numbers differ too much in size for the others.
    """
    check_mode(mode, embedding)
    if mode != "auto":
        return mode, f"teacher cache: {mode}, as asked"
    candidates = ["float16"] if embedding else ["float16", "int8"]
    if not embedding and width >= 1000 and temperature <= 1.5:
        candidates.append("topk")
    for name in candidates:
        needed = images * views * (FORMATS[name].size(width) + CHECKSUM_BYTES)
        if needed <= max_gb * 1e9:
            return name, f"teacher cache: {name}, {views} views of {images:,} images, up to {byte_count(needed)}"
    return "off", (
        f"teacher cache: off, {views} views of {images:,} images do not fit into teacher.cache.max_gb={max_gb:g}; "
        "teacher.cache.views=K would cycle through fewer"
    )


# --- files -------------------------------------------------------------------------------------------------------


class RowCache:
    """Rows of ``width`` numbers for ``images`` images and any number of views, below ``folder``.

    One file per view and rank, reserved in full when it is made, so that a full disk is noticed then. Each rank writes
    its own file and reads all of them.
    """

    def __init__(self, folder: Path, row_format: RowFormat, width: int, images: int, rank: int = 0) -> None:
        self.folder = folder
        self.format = row_format
        self.width = width
        self.images = images
        self.rank = rank
        self.damaged = 0
        self.row_bytes = row_format.size(width) + CHECKSUM_BYTES
        self._open: dict[tuple[int, int], NDArray[np.uint8]] = {}
        self._own: dict[int, NDArray[np.uint8]] = {}

    def read(self, view: int, index: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_]]:
        """Rows B x width and which of them are there; the others are undefined."""
        stored = np.zeros((len(index), self.row_bytes - CHECKSUM_BYTES), dtype=np.uint8)
        present = np.zeros(len(index), dtype=bool)
        for rank in self._ranks(view):
            file = self._file(view, rank)
            if file is None:
                continue
            rows = file[index]
            written = rows[:, -CHECKSUM_BYTES:].any(axis=1)
            sound = written & (_checksums(rows[:, :-CHECKSUM_BYTES]) == rows[:, -CHECKSUM_BYTES:]).all(axis=1)
            self.damaged += int((written & ~sound).sum())
            fresh = sound & ~present
            stored[fresh] = rows[fresh, :-CHECKSUM_BYTES]
            present |= sound
        return self.format.decode(stored, self.width), present

    def write(self, view: int, index: NDArray[np.int64], rows: Floats) -> Floats:
        """Store rows and return them as ``read`` will give them back. Raises UserError when the file cannot be made."""
        stored = self.format.encode(np.ascontiguousarray(rows, dtype=np.float32))
        self._own_file(view)[index] = np.concatenate([stored, _checksums(stored)], axis=1)
        return self.format.decode(stored, self.width)

    def _ranks(self, view: int) -> list[int]:
        found = (path.suffix[2:] for path in self.folder.glob(f"view-{view:05d}.r*"))
        return sorted({int(rank) for rank in found if rank.isdecimal()})

    def _path(self, view: int, rank: int) -> Path:
        return self.folder / f"view-{view:05d}.r{rank}"

    def _file(self, view: int, rank: int) -> NDArray[np.uint8] | None:
        """A file to read; None where it has another size or cannot be read: its rows are computed again."""
        if (view, rank) not in self._open:
            path, shape = self._path(view, rank), (self.images, self.row_bytes)
            try:
                if path.stat().st_size != self.images * self.row_bytes:
                    return None
                self._open[view, rank] = np.memmap(path, np.uint8, "r", shape=shape)
            except OSError:
                return None
        return self._open[view, rank]

    def _own_file(self, view: int) -> NDArray[np.uint8]:
        """The file of this rank, to write. Raises UserError when it cannot be."""
        if view not in self._own:
            path, shape = self._path(view, self.rank), (self.images, self.row_bytes)
            if self._file(view, self.rank) is None:
                _reserve(path, self.images * self.row_bytes)
            try:
                self._own[view] = np.memmap(path, np.uint8, "r+", shape=shape)
            except OSError as error:
                raise UserError(
                    f"{path}: the teacher cache cannot be written ({error.strerror}); use teacher.cache.mode=off or "
                    "another teacher.cache.dir="
                ) from error
            self._open[view, self.rank] = self._own[view]  # the file may be a new one
        return self._own[view]


def _reserve(path: Path, needed: int) -> None:
    """Make a file of zeros. Not a sparse one: writing into a hole on a full disk would kill the process.

    It takes its name when it is complete. Raises UserError when it cannot be made.
    """
    fresh = path.with_name(f"{path.name.replace('view', 'new')}.{os.getpid()}")
    try:
        with fresh.open("wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, needed)
        fresh.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: {byte_count(needed)} of the teacher cache cannot be written ({error.strerror}); free some space, "
            "or use teacher.cache.mode=off or teacher.cache.dir="
        ) from error
    finally:
        fresh.unlink(missing_ok=True)


def _checksums(rows: Bytes) -> Bytes:
    """B x 4: never all zero, which is how an unwritten row looks."""
    sums = np.array([zlib.crc32(row) or 1 for row in np.ascontiguousarray(rows)], dtype=np.uint32)
    return sums.view(np.uint8).reshape(-1, CHECKSUM_BYTES)


def open_cache(root: Path, key: dict[str, Any], row_format: str, width: int, images: int, rank: int) -> RowCache:
    """The cache of all that ``key`` describes, in a folder below ``root`` that is named by a hash of it.

    The key stands in plain words beside the rows. Raises OSError when the folder cannot be written.
    """
    description = key | {"format": row_format, "width": width, "images": images, "version": ROW_VERSION}
    folder = root / fingerprint(description)
    folder.mkdir(parents=True, exist_ok=True)
    if try_json(folder / "key.json") != json.loads(json.dumps(description)):  # where tuples are lists
        write_json(folder / "key.json", description)
    return RowCache(folder, FORMATS[row_format], width, images, rank)


@dataclass(frozen=True)
class Listed:
    """One cache folder: the teacher's name, and how much of it is filled. ``bytes``: what it takes on the disk."""

    folder: Path
    teacher: str
    format: str
    views: int
    rows: int
    damaged: int
    bytes: int


def cache_folders(root: Path) -> list[Path]:
    """Every cache below ``root``."""
    return sorted(path.parent for path in root.glob("*/key.json"))


def look_into(folder: Path) -> Listed:
    """What a cache holds, all checksums compared. Raises UserError when its key is broken."""
    path = folder / "key.json"
    key = read_json(path)
    with reading(path):
        teacher, row_format = str(key["teacher"][0]), FORMATS[key["format"]]
        width, images = (_count(name, key[name]) for name in ("width", "images"))
    cache = RowCache(folder, row_format, width, images)
    files = [file for file in folder.iterdir() if file.is_file()]
    stored = [file for file in files if _VIEW.fullmatch(file.name)]
    whole = [file for file in stored if file.stat().st_size == images * cache.row_bytes]
    views = sorted({int(file.name[5:10]) for file in whole})
    rows = sum(int(cache.read(view, np.arange(images))[1].sum()) for view in views)
    size = sum(file.stat().st_size for file in files)
    damaged = cache.damaged + (len(stored) - len(whole)) * images
    return Listed(folder, teacher, row_format.name, len(views), rows, damaged, size)


def _count(name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is {value!r}, not a whole number above 0")
    return value

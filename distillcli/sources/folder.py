"""A folder of images: finds and reads the files of the layouts in :mod:`distillcli.sources.class_folders`."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.class_folders import LAYOUT, open_tree
from distillcli.sources.decode import decode_file, read_file, show_path
from distillcli.sources.image_names import HEAD, has_image_name, why_not_read
from distillcli.sources.source import MinimumSize, Source
from distillcli.sources.tree import is_ignored, join_path


@dataclass(frozen=True)
class FileImages:
    """Images that are decoded from files when they are read. ``names``: paths below ``root``, with forward slashes."""

    root: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def content(self, index: int) -> bytes:
        return read_file(self.root / self.names[index])

    def size(self, index: int) -> int:
        try:
            return (self.root / self.names[index]).stat().st_size
        except OSError:  # whoever reads it says what is wrong
            return 0

    def read(self, index: int, minimum_size: MinimumSize | None = None) -> NDArray[np.uint8]:
        return decode_file(self.root / self.names[index], minimum_size)

    def name(self, index: int) -> str:
        return show_path(self.root / self.names[index])


@dataclass(frozen=True)
class DiskTree:
    """A :class:`~distillcli.sources.tree.Tree` of files. Its methods raise UserError for what cannot be read."""

    root: Path
    ignored: dict[str, str] = field(default_factory=dict)

    def listing(self, folder: str) -> tuple[list[str], list[str]]:
        try:
            with os.scandir(self.root / folder) as entries:
                visible = [entry for entry in entries if not is_ignored(entry.name)]
        except OSError as error:
            _unreadable(self.root / folder, error)
        folders = sorted(entry.name for entry in visible if _is_folder(entry))
        return folders, sorted(e.name for e in visible if has_image_name(e.name) and not _is_folder(e))

    def images_below(self, folder: str) -> list[tuple[str, int]]:
        """Links are followed, and each real folder is entered once. A link to a folder above is ignored: it would
        never end, and would bring in images of other classes and parts.
        """
        top = self.root / folder
        images: list[tuple[str, int]] = []
        entered = {_identity(parent) for parent in top.absolute().parents}
        pending = [""]
        while pending:
            prefix = pending.pop()
            here = top / prefix
            try:
                identity = _identity(here)
                if identity in entered:
                    continue
                entered.add(identity)
                with os.scandir(here) as entries:
                    visible = sorted((e for e in entries if not is_ignored(e.name)), key=lambda entry: entry.name)
            except OSError as error:
                _unreadable(here, error)
            below = []
            for entry in visible:
                if _is_folder(entry):
                    below.append(f"{prefix}{entry.name}/")
                elif has_image_name(entry.name):
                    file = _status(entry)
                    if stat.S_ISREG(file.st_mode):  # opening a pipe would wait forever
                        images.append((f"{prefix}{entry.name}", file.st_size))
                elif (why := why_not_read(entry.name, partial(_head, entry))) is not None:
                    self.ignored[join_path(folder, f"{prefix}{entry.name}")] = why
            pending += reversed(below)
        return sorted(images)

    def same(self, one: str, other: str) -> bool:
        return (self.root / one).samefile(self.root / other)

    def shown(self, folder: str) -> str:
        return show_path(self.root / folder)

    def as_root(self, folder: str) -> str:
        return f"set dataset.root={self.shown(folder)}"


def open_folder(config: DatasetConfig) -> Source:
    """The images below ``config.root``. Raises UserError for every layout that could be misread."""
    root = folder_root(config, LAYOUT)
    return open_tree("folder", root.resolve().name or "folder", DiskTree(root), partial(FileImages, root), config)


def folder_root(config: DatasetConfig, layout: str) -> Path:
    """``dataset.root`` as an existing folder. Raises UserError with the ``layout`` expected there."""
    if not config.root:
        raise UserError(f"dataset={config.name} needs dataset.root=PATH, the folder of images; {layout}")
    root = Path(config.root)
    if not root.exists():
        raise UserError(f"dataset.root={show_path(root)}: no such folder; {layout}")
    if not root.is_dir():
        raise UserError(f"dataset.root={show_path(root)}: is a file, not a folder; {layout}")
    return root


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        _unreadable(Path(entry.path), error)


def _head(entry: os.DirEntry[str]) -> bytes:
    """The first bytes of a file; none of what is no file or cannot be read."""
    try:
        if not stat.S_ISREG(entry.stat().st_mode):
            return b""
        with Path(entry.path).open("rb") as opened:
            return opened.read(HEAD)
    except OSError:
        return b""


def _unreadable(path: Path, error: OSError) -> NoReturn:
    raise UserError(f"{show_path(path)}: cannot be read ({error.strerror}); restore it or remove it") from error

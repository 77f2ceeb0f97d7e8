"""Images inside zip and uncompressed tar files, read by their offsets without unpacking them.

A compressed tar (.tar.gz, .tar.xz, ...) can only be read from its beginning, so it is refused. Every read opens the
archive again, so that loader processes share nothing.
"""

from __future__ import annotations

import posixpath
import struct
import tarfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.class_folders import open_tree
from distillcli.sources.decode import decode_bytes, show_path
from distillcli.sources.image_names import HEAD, has_image_name, ignored_words, why_not_read
from distillcli.sources.source import MinimumSize, Source
from distillcli.sources.tree import is_ignored, join_path

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member; its last fields are the lengths of its name and extra field
LARGEST = 2**30  # bytes of one image; a small archive can claim any size
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. ``offset``: of its first byte in a tar, of its header in a zip."""

    archive: Path
    name: str
    offset: int
    size: int
    stored: int  # bytes in the archive
    method: int | None  # compression method in a zip; None in a tar
    checksum: int  # CRC-32 of the content in a zip; 0 in a tar, which has none

    def __str__(self) -> str:
        return f"{show_path(self.archive)}/{show_path(self.name)}"

    def content(self) -> bytes:
        """Raises UserError if the archive has changed or is damaged, or for more bytes than an image has."""
        if self.size > LARGEST:
            raise UserError(f"{self}: has {self.size:,} bytes, more than an image may have ({LARGEST:,}); remove it")
        try:
            with self.archive.open("rb") as file:
                file.seek(self.offset)
                if self.method is not None:
                    name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                    file.seek(name + extra, 1)
                content = file.read(self.stored)
            if self.method == zipfile.ZIP_DEFLATED:
                # One byte more than the archive promises shows that it does not keep its promise.
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, self.size + 1)
        except (OSError, struct.error, zlib.error) as error:
            raise UserError(f"{self}: cannot be read ({error}); create the archive again") from error
        if len(content) != self.size or (self.method is not None and zlib.crc32(content) != self.checksum):
            raise UserError(f"{self}: is damaged or has changed since the start; create the archive again")
        return content


@dataclass(frozen=True)
class MemberImages:
    """Images that are decoded from members of archives when they are read; ``names`` and ``members`` are parallel."""

    names: tuple[str, ...]
    members: tuple[Member, ...]

    def __len__(self) -> int:
        return len(self.members)

    def content(self, index: int) -> bytes:
        return self.members[index].content()

    def size(self, index: int) -> int:
        return self.members[index].size

    def read(self, index: int, minimum_size: MinimumSize | None = None) -> NDArray[np.uint8]:
        return decode_bytes(self.content(index), self.name(index), minimum_size)

    def name(self, index: int) -> str:
        return str(self.members[index])


def member_images(members: dict[str, Member], names: tuple[str, ...]) -> MemberImages:
    return MemberImages(names, tuple(members[name] for name in names))


class MemberTree:
    """A :class:`~distillcli.sources.tree.Tree` of the images of one archive, by path below its ``top`` folder."""

    def __init__(self, archive: Path, top: str, sizes: dict[str, int], ignored: dict[str, str]) -> None:
        self.ignored = ignored
        self._archive = archive
        self._top = top
        self._sizes = sizes
        self._names = sorted(sizes)
        self._folders: dict[str, set[str]] = {"": set()}
        self._files: dict[str, list[str]] = {}
        for name in self._names:
            folder, _, file = name.rpartition("/")
            self._files.setdefault(folder, []).append(file)
            while folder:
                above, _, last = folder.rpartition("/")
                self._folders.setdefault(above, set()).add(last)
                folder = above

    def listing(self, folder: str) -> tuple[list[str], list[str]]:
        return sorted(self._folders.get(folder, ())), self._files.get(folder, [])

    def images_below(self, folder: str) -> list[tuple[str, int]]:
        prefix = f"{folder}/" if folder else ""
        found = []
        for name in self._names[bisect_left(self._names, prefix) :]:
            if not name.startswith(prefix):
                break
            found.append((name.removeprefix(prefix), self._sizes[name]))
        return found

    def same(self, one: str, other: str) -> bool:
        return one == other

    def shown(self, folder: str) -> str:
        return show_path(join_path(str(self._archive), self._top, folder))

    def as_root(self, folder: str) -> str:
        return f"create an archive of the content of {self.shown(folder)}"


def open_archive(config: DatasetConfig) -> Source:
    """The images in ``config.root``, laid out as in a folder. A single folder around all of them is skipped.

    Raises UserError for every layout that could be misread, and for archives without random access.
    """
    if not config.root:
        raise UserError("dataset=archive needs dataset.root=FILE.zip or FILE.tar")
    file = Path(config.root)
    everything = members_of(file)
    members = {name: member for name, member in everything.items() if _is_image(name)}
    reasons = {name: _why_not_read(member) for name, member in everything.items() if name not in members}
    ignored = {name: why for name, why in reasons.items() if why is not None}
    if not members:
        unread = f"; {ignored_words(ignored)}; convert or rename them" if ignored else ""
        raise UserError(f"dataset.root={show_path(file)}: contains no images{unread}")
    top = "" if config.labels else _common_folder(members)
    members = {name.removeprefix(f"{top}/"): member for name, member in members.items()}
    ignored = {name.removeprefix(f"{top}/"): why for name, why in ignored.items()}
    tree = MemberTree(file, top, {name: member.size for name, member in members.items()}, ignored)
    return open_tree("archive", file.stem, tree, partial(member_images, members), config)


def members_of(file: Path) -> dict[str, Member]:
    """The regular files in a zip or tar, by name. Raises UserError if it is neither, or could be misread."""
    if not file.is_file():
        raise UserError(f"dataset.root={show_path(file)}: {'is a folder' if file.is_dir() else 'no such file'}")
    members: dict[str, Member] = {}
    try:
        found: Iterable[Member] = _in_zip(file) if _starts_as_zip(file) else _in_tar(file)
        for member in found:
            if member.name in members:
                raise UserError(f"{member}: is in the archive twice; create the archive again")
            members[member.name] = member
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"{show_path(file)}: cannot be read as an archive ({error}); create it again") from error
    return members


def _starts_as_zip(file: Path) -> bool:
    """``zipfile.is_zipfile`` looks at the end, and takes a tar that ends with a zip for a zip."""
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"


def _in_zip(file: Path) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        # Some programs on Windows part folders by backslashes, against the format.
        backslashes = not any("/" in entry.filename for entry in entries)
        for entry in entries:
            path = entry.filename.replace("\\", "/") if backslashes else entry.filename
            member = Member(
                file, _clean(path), entry.header_offset, entry.file_size, entry.compress_size,
                entry.compress_type, entry.CRC,
            )  # fmt: skip
            if entry.flag_bits & 1:
                raise UserError(f"{member}: is encrypted; create the archive again without a password")
            if entry.compress_type not in _METHODS:
                raise UserError(f"{member}: unsupported compression; create the archive again with plain zip")
            if not path.endswith("/"):
                yield member


def _in_tar(file: Path) -> Iterator[Member]:
    try:
        archive = tarfile.open(file, "r:")  # noqa: SIM115 - closed below; the colon means: without compression
    except tarfile.ReadError as error:
        raise UserError(
            f"{show_path(file)}: neither a zip nor an uncompressed tar; a compressed tar has no random access: unpack"
            " it and use dataset=folder, or create the tar again without compression"
        ) from error
    with archive:
        for entry in archive:
            name = _clean(entry.name)
            if (entry.issym() or entry.islnk() or entry.issparse()) and _is_image(name):
                raise UserError(
                    f"{show_path(file)}/{show_path(name)}: is a link or sparse; create the tar again with --dereference"
                )
            if entry.isreg():
                yield Member(file, name, entry.offset_data, entry.size, entry.size, None, 0)
        # tarfile accepts a tar that is cut off between two members. A complete one ends with empty blocks.
        with file.open("rb") as opened:
            opened.seek(archive.offset)
            if opened.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise UserError(f"{show_path(file)}: the end is missing; copy or create the archive again")


def _clean(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def _is_image(name: str) -> bool:
    return has_image_name(name) and not any(is_ignored(part) for part in name.split("/"))


def _why_not_read(member: Member) -> str | None:
    """As ``why_not_read``; what is damaged or larger than an image is none."""
    if any(is_ignored(part) for part in member.name.split("/")):
        return None
    try:
        return why_not_read(member.name, lambda: member.content()[:HEAD])
    except UserError:
        return None


def _common_folder(names: Iterable[str]) -> str:
    """The folder around all class folders, which many archives have."""
    return posixpath.commonpath({name.rsplit("/", 2)[0] if name.count("/") > 1 else "" for name in names})

"""A folder of images: the layouts understood, the split, and the fingerprint of files.

    ROOT/train/CLASS/...  ROOT/val/CLASS/...  ROOT/test/CLASS/...    val may also be called validation or valid
    ROOT/CLASS/...                                                   dataset.val_fraction of each class becomes val

Without a val folder, val is held out of train and test stays the test part. Images may lie at any depth below the
folder of their class. Classes are in lexicographic order, as in torchvision (timm puts class10 after class9), so
class names travel with every checkpoint and are compared. Hidden files and what archivers leave behind are ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from distillcli.config.schema import DatasetConfig
from distillcli.data.decode import decode, shown
from distillcli.data.source import Source, Split
from distillcli.errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
SAMPLED_FILES = 64  # files whose content enters the fingerprint

_IGNORED = frozenset({"__MACOSX", "Thumbs.db"})  # besides everything that starts with a dot
_PARTS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
_PART_NAMES = frozenset(name for spellings in _PARTS.values() for name in spellings)
_LAYOUT = "expected ROOT/CLASS/IMAGES, or ROOT/train/CLASS/IMAGES with ROOT/val/CLASS/IMAGES"


@dataclass(frozen=True)
class FileImages:
    """Images that are decoded from files when they are read. ``names``: paths below ``root``, with forward slashes."""

    root: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> NDArray[np.uint8]:
        return decode(self.root / self.names[index])

    def name(self, index: int) -> str:
        return str(self.root / self.names[index])


@dataclass(frozen=True)
class _Scan:
    """What lies in one folder of class folders. ``names`` are paths below the root, sorted; the rest is parallel."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]  # bytes

    def take(self, rows: NDArray[np.int64]) -> _Scan:
        return _Scan(self.classes, tuple(self.names[row] for row in rows), self.labels[rows], self.sizes[rows])


def open_folder(config: DatasetConfig) -> Source:
    """The images below ``config.root``. Raises UserError for every layout that could be misread."""
    if not config.root:
        raise UserError("dataset=folder needs dataset.root=PATH, the folder of images")
    root = Path(config.root).expanduser()
    if not root.exists():
        raise UserError(f"dataset.root={shown(root)}: no such folder; {_LAYOUT}")
    if not root.is_dir():
        raise UserError(f"dataset.root={shown(root)}: is a file, not a folder; {_LAYOUT}")

    parts = _find_parts(root)
    train = _scan(root, parts["train"])
    val, test = (_scan(root, parts[part]) if part in parts else None for part in ("val", "test"))
    for part, scan in (("val", val), ("test", test)):
        if scan is not None:
            _check_same_classes(root, parts["train"], parts[part], train.classes, scan.classes)
    if val is None:
        kept, held = hold_out(train.labels, train.classes, config.val_fraction, config.split_seed, shown(root))
        train, val = train.take(kept), train.take(held)

    scans = [train, val] if test is None else [train, val, test]
    splits = [Split(FileImages(root, scan.names), scan.labels) for scan in scans]
    return Source(
        name=root.resolve().name or "folder",
        classes=train.classes,
        train=splits[0],
        val=splits[1],
        test=splits[2] if test is not None else None,
        fingerprint=file_fingerprint("folder", train.classes, splits, [scan.sizes for scan in scans]),
    )


def hold_out(
    labels: NDArray[np.int64], classes: Sequence[str], fraction: float, seed: int, where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two sorted, disjoint arrays of rows: those kept for training and those held out.

    Of every class ``fraction`` is held out, rounded, but at least one image, and at least one is kept.
    Raises UserError if a class has fewer than two images.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < fraction < 1:
        raise UserError(f"dataset.val_fraction={fraction}: must lie between 0 and 1")
    random = np.random.RandomState(seed)
    kept, held = [], []
    for label, name in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise UserError(
                f"{where}: class {name!r} has {len(rows)} image{'s' * (len(rows) != 1)}, holding out validation data"
                " needs 2; add images or a val/ folder, or remove the class"
            )
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        first, second = train_test_split(rows, test_size=count, random_state=random)
        kept.append(first)
        held.append(second)
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


def file_fingerprint(
    kind: str, classes: Sequence[str], splits: Sequence[Split], sizes: Sequence[NDArray[np.int64]] | None = None
) -> str:
    """32 hex digits of class names, relative paths, sizes, labels and the content of up to 64 evenly spaced files.

    Neither absolute paths nor times enter, so a copy of the data elsewhere has the same fingerprint. The splits must
    hold FileImages; ``sizes``: one array of bytes per split. Raises UserError if a sampled file cannot be read.
    """
    digest = hashlib.sha256(json.dumps([kind, list(classes)]).encode())
    files: list[tuple[Path, str]] = []
    for number, split in enumerate(splits):
        assert isinstance(split.images, FileImages)
        lengths = sizes[number].tolist() if sizes is not None else None
        digest.update(json.dumps([list(split.images.names), split.labels.tolist(), lengths]).encode())
        files += zip(repeat(split.images.root), split.images.names)
    for row in np.unique(np.linspace(0, len(files) - 1, num=SAMPLED_FILES).astype(int)) if files else ():
        root, name = files[row]
        try:
            digest.update(hashlib.sha256((root / name).read_bytes()).digest())
        except OSError as error:
            _unreadable(root / name, error)
    return digest.hexdigest()[:32]


def _find_parts(root: Path) -> dict[str, Path]:
    """The folders of class folders: train, and val and test if there are any. A flat folder is its own train part."""
    folders, _ = _listing(root)
    named = [name for name in folders if name.lower() in _PART_NAMES]  # in any case: "Train" and "Val" are not classes
    # Folders that all have images of their own are classes: data about vehicles has one called train.
    if len(named) < len(folders) and all(_listing(root / name)[1] for name in named):
        return {"train": root}
    found: dict[str, Path] = {}
    for part, spellings in _PARTS.items():
        matches = [name for name in named if name.lower() in spellings]
        if len(matches) > 1:
            raise UserError(f"{shown(root)}: {_quoted(matches)} may each be the {part} part; rename or remove one")
        if matches:
            found[part] = root / matches[0]

    if not found:
        return {"train": root}
    if "train" not in found:
        raise UserError(f"{shown(root)}: has {_quoted([p.name for p in found.values()])} but no train/; {_LAYOUT}")
    others = [name for name in folders if root / name not in found.values() and _has_images(root / name)]
    if len(found) == 1 and others:
        raise UserError(
            f"{shown(root)}: train/ beside {_quoted(others)}, but neither val/ nor test/; rename train/ if it is a"
            f" class, or set dataset.root={shown(found['train'])}"
        )
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if one in found and other in found and found[one].samefile(found[other]):
            raise UserError(
                f"{shown(found[one])} and {shown(found[other])} are the same folder: {other} would repeat {one};"
                f" remove {other}/ or point it at other images"
            )
    return found


def _scan(root: Path, part: Path) -> _Scan:
    """All images of a folder of class folders."""
    classes, loose = _listing(part)
    if loose:
        raise UserError(
            f"{shown(part)}: {len(loose)} image{'s' * (len(loose) > 1)} outside any class folder, such as {loose[0]!r};"
            " move them into a folder named after their class"
        )
    if not classes:
        raise UserError(f"{shown(part)}: no class folders; {_LAYOUT}")
    if len(classes) == 1:
        raise UserError(
            f"{shown(part)}: only one class folder, {classes[0]!r}; a classifier needs two"
            f" (if that folder holds the classes, set dataset.root={shown(part / classes[0])})"
        )
    names: list[str] = []
    labels: list[int] = []
    sizes: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(_images_below(part / name))
        if not images:
            raise UserError(f"{shown(part / name)}: class folder without images; add some or remove the folder")
        prefix = (part / name).relative_to(root).as_posix()
        names += [f"{prefix}/{path}" for path, _ in images]
        sizes += [size for _, size in images]
        labels += [label] * len(images)
    return _Scan(tuple(classes), tuple(names), np.array(labels, np.int64), np.array(sizes, np.int64))


def _images_below(folder: Path) -> list[tuple[str, int]]:
    """Path below ``folder`` and size in bytes of every image.

    Links are followed, each real folder is entered once, and a link to a folder above is ignored: it would go round for
    ever and bring the images of other classes and parts.
    """
    images: list[tuple[str, int]] = []
    entered = {_identity(parent) for parent in folder.absolute().parents}
    pending = [""]
    while pending:
        prefix = pending.pop()
        here = folder / prefix
        try:
            identity = _identity(here)
            if identity in entered:
                continue
            entered.add(identity)
            with os.scandir(here) as entries:
                visible = sorted((entry for entry in entries if not _ignored(entry.name)), key=lambda entry: entry.name)
        except OSError as error:
            _unreadable(here, error)
        below = []
        for entry in visible:
            if _is_folder(entry):
                below.append(f"{prefix}{entry.name}/")
            elif _has_image_name(entry.name):
                try:
                    file = entry.stat()
                except OSError as error:
                    _unreadable(Path(entry.path), error)
                if stat.S_ISREG(file.st_mode):  # opening a pipe would wait for ever
                    images.append((f"{prefix}{entry.name}", file.st_size))
        pending += reversed(below)
    return images


def _listing(folder: Path) -> tuple[list[str], list[str]]:
    """The sorted names of the folders and of the images directly in ``folder``."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not _ignored(entry.name)]
    except OSError as error:
        _unreadable(folder, error)
    folders = sorted(entry.name for entry in visible if _is_folder(entry))
    return folders, sorted(e.name for e in visible if _has_image_name(e.name) and not _is_folder(e))


def _has_images(folder: Path) -> bool:
    """Whether there is an image at any depth; links are not followed."""
    return any(_has_image_name(name) and not _ignored(name) for _, _, names in os.walk(folder) for name in names)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _ignored(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED


def _has_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122 - ten times faster than Path for 1e5 names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _unreadable(path: Path, error: OSError) -> NoReturn:
    raise UserError(f"{shown(path)}: cannot be read ({error.strerror}); restore it or remove it") from error


def _check_same_classes(root: Path, train: Path, part: Path, expected: Sequence[str], found: Sequence[str]) -> None:
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if not missing and not extra:
        return
    differences = [f"{_quoted(missing)} only in {train.name}/"] if missing else []
    differences += [f"{_quoted(extra)} only in {part.name}/"] if extra else []
    raise UserError(
        f"{shown(root)}: {train.name}/ and {part.name}/ have different classes: {', '.join(differences)};"
        " every class needs a folder in each"
    )


def _quoted(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + rest

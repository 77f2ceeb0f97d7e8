"""The run folder: the files a run leaves behind, and the rules for claiming, reading and writing them.

Files are the product. Everything here works without torch, so that other commands can read runs in a moment.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import yaml

import distillcli
from distillcli.errors import UserError
from distillcli.runs.checksums import recorded
from distillcli.runs.reading import try_json

LIBRARIES = (
    *("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "pillow", "safetensors"),
    *("scikit-learn", "torchmetrics"),
)
# What decides the bits of the weights: a run that goes on under others is as good, but not the same.
DECIDING = ("torch", "torchvision", "timm", "numpy", "pillow")
COMPUTING = ("device", "threads", "processes")


# --- claiming a folder ---------------------------------------------------------------------------------------------


def claim_new(parent: Path) -> Path:
    """Create and return ``parent/<YYYY-MM-DD_HH-MM-SS>``; runs started within one second get ``-2``, ``-3``, ...

    Raises UserError when the parent cannot be written.
    """
    stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    with writable(parent):
        parent.mkdir(parents=True, exist_ok=True)
        attempt = 1
        while True:
            folder = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
            try:
                folder.mkdir()
            except FileExistsError:
                attempt += 1
            else:
                return folder


def claim(folder: Path) -> Path:
    """Create ``folder``, which must be absent or empty. Raises UserError otherwise, or when it cannot be written."""
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(
                f"out={folder}: the folder is not empty; use resume={folder} to continue it, or another out="
            )
        probe = folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    return folder


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Within the block a folder is made or written to. Raises UserError when that is not possible."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another place with out= or runs="
        ) from error


def check_place(folder: Path) -> None:
    """Raise UserError where ``folder`` cannot be made or written to. Nothing is made."""
    with writable(folder):
        place = next(path for path in (folder, *folder.parents) if path.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def locked(folder: Path, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold ``folder`` for this process. A second one is refused with the holder's pid and host, or waits its turn.

    ``wait``: called with a description of the holder for as long as there is one; it sleeps, and may raise.

    POSIX record locks vanish with the process, however it dies, and are not inherited by loader workers.
    """
    while True:
        # Opened each time: whoever knows that the holder is gone may remove the file.
        with writable(folder):
            handle = (folder / ".lock").open("a+")
        with handle:
            holder = _take(handle)
            if holder is None:
                handle.truncate(0)
                handle.write(f"pid {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
                handle.flush()
                yield
                return
        if wait is None:
            raise UserError(
                f"{folder}: another process is working in this folder ({holder}); wait for it or use another folder"
            )
        wait(holder)


def _take(lock: TextIO) -> str | None:
    """Take the lock, or say who holds it."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        lock.seek(0)
        return lock.read().strip() or "another process"
    return None


def is_elsewhere(holder: str) -> bool:
    """Whether the ``holder`` of a lock is on another machine, which may be gone without giving it back."""
    return f" on {socket.gethostname()}," not in holder


def point_latest(folder: Path) -> None:
    """Let ``folder/../latest`` name this run; replaced atomically so that a reader always finds a run."""
    link, fresh = folder.parent / "latest", folder.parent / f".latest.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.name)
    fresh.replace(link)


def describe_folder(
    folder: Path,
    config: dict[str, Any],
    command: str,
    overrides: list[str],
    classes: Sequence[str],
    machine: dict[str, Any],
) -> list[str]:
    """Write the files that say what the run is, before it starts or goes on.

    ``machine``: what it computes on, as plain data, for ``environment.json``. A run that goes on keeps what it was
    begun with; returns what of that decides the bits of its weights and is another now, in words.
    """
    now = environment(command, overrides) | machine
    begun = (try_json(folder / "environment.json") or {}) if (folder / "checkpoints").exists() else {}
    with recorded(folder, "config.yaml", "environment.json"):
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        kept = {key: begun[key] for key in ("versions", *machine) if key in begun}
        write_json(folder / "environment.json", now | kept)
    write_text(folder / "command.txt", command + "\n")
    write_text(folder / "classes.txt", "".join(f"{_on_one_line(name)}\n" for name in classes))
    return _changed(begun, now)


def _on_one_line(name: str) -> str:
    """A class name as it is, or as a JSON text where it has characters that end or rewrite lines."""
    return name if name.isprintable() else json.dumps(name)


def _changed(begun: dict[str, Any], now: dict[str, Any]) -> list[str]:
    def deciding(facts: dict[str, Any]) -> dict[str, Any]:
        found = facts.get("versions")
        numbered = found if isinstance(found, dict) else {}
        return {name: numbered.get(name) for name in DECIDING} | {name: facts.get(name) for name in COMPUTING}

    before, after = deciding(begun), deciding(now)
    known = [name for name in before if before[name] is not None]
    return [f"{name} {before[name]} -> {after[name]}" for name in known if before[name] != after[name]]


# --- files ---------------------------------------------------------------------------------------------------------


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error of the system say which file could not be written: opening one names it, writing does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one and nothing in between.

    Raises OSError, and leaves nothing else behind, when the disk is full.
    """
    fresh = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        # Names of files that are not valid Unicode reach us as surrogates.
        with _named(path), fresh.open("w", encoding="utf-8", errors="backslashreplace") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    path = folder / "metrics.jsonl"
    with _named(path), path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``; a last line torn by a crash is ignored, and so is what is no row of an epoch.

    They are the history that is drawn. No number of a result rests on them.
    """
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if isinstance(row, dict) and type(row.get("epoch")) is int:
            rows.append(row)
    return rows


def rewind_metrics(folder: Path, epoch: int) -> None:
    """Drop the rows of epochs after ``epoch``: a resumed run writes them again."""
    kept = [row for row in read_metrics(folder) if row["epoch"] <= epoch]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


# --- identity ------------------------------------------------------------------------------------------------------


def fingerprint(content: Any) -> str:
    """16 hexadecimal digits naming plain data: equal content, whatever the order of its keys, gives equal digits."""
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that decide the numbers; nothing is imported."""
    return dict(_versions())


@functools.cache  # the metadata of ten packages are found and parsed anew otherwise, several times in each run
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "distillcli": distillcli.__version__}
    return found | {name: importlib.metadata.version(name) for name in LIBRARIES}


def environment(command: str, overrides: list[str]) -> dict[str, Any]:
    """What is needed to say later on what this run was run. No environment variables: they hold secrets."""
    return {
        "command": command,
        "overrides": overrides,
        "versions": versions(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "git": _git_revision(),
    }


def _git_revision() -> str | None:
    """The commit of the working directory, marked ``+changes`` when the tree is dirty; None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()

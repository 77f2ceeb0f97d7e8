"""The one door to the files of a run: plain data of the kind that is asked for, or one line that names the file.

A file may be gone, torn, damaged, unreadable, of another tool, or hostile. Whatever that does to its reader is a
UserError here, so that a caller with something to fall back to can do so and every other shows the line. Nothing in a
file is executed, interpolated or expanded.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distillcli.config.ranges import check_finite
from distillcli.config.schema import TrainConfig
from distillcli.config.yaml_files import parse_yaml
from distillcli.errors import UserError
from distillcli.runs.checksums import compare

MOST_BYTES = 64 << 20  # of a file of text
SPARE_BYTES = 1 << 20  # what an archive may hold beyond its own size

# What parsers raise for content that they do not expect.
_FAULTS = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
    *(yaml.YAMLError, OmegaConfBaseException, zipfile.BadZipFile, zlib.error, struct.error),
)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within the block, whatever ``path`` does to its reader is a UserError of one line that names the file.

    The block takes the content apart and does nothing else: a bug in it would be called damage.
    """
    try:
        yield
    except _FAULTS as error:
        raise UserError(f"{path.parent}: {path.name} is broken: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"it cannot be read ({error.strerror})"
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]!r} is missing"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def check_unchanged(path: Path) -> None:
    """Raise UserError when ``path`` cannot be read or is not what ``SHA256SUMS`` beside it says."""
    with reading(path):
        compare(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError when there is none."""
    with reading(path):
        return _mapping(json.loads(_text(path)))


def try_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None when there is none that can be used."""
    try:
        return read_json(path)
    except UserError:
        return None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError when there is none, or when it stands for too much."""
    with reading(path):
        return _mapping(parse_yaml(_text(path)))


def read_config(run: Path) -> TrainConfig:
    """The config that a run saved, with values of the right types; whether they make sense is not checked.

    Raises UserError when it cannot be had.
    """
    path = run / "config.yaml"
    content = read_yaml(path)
    with reading(path):
        if "${" in json.dumps(content, default=str):
            raise ValueError("it holds interpolations, which no run writes")
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), content))
        if not isinstance(config, TrainConfig):
            raise TypeError("it is not the config of a run")
    check_finite(dataclasses.asdict(config))
    return config


def check_archive(path: Path) -> None:
    """Compare the checksums in a zip archive, which torch.load does not do.

    Raises UserError when one differs, when it is no archive, or when it would inflate to far more than its size: torch
    stores what it writes as it is.
    """
    size = path.stat().st_size
    with reading(path), zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > size + SPARE_BYTES:
            raise ValueError("it would inflate to more than its size, and torch compresses nothing")
        broken = archive.testzip()
    if broken is not None:
        raise UserError(f"{path}: damaged, the checksum of {broken} does not match; use an older checkpoint")


def _text(path: Path) -> str:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MB")
    compare(path)
    return path.read_text(encoding="utf-8")


def _mapping(content: object) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise TypeError(f"it holds {type(content).__name__}, where names with values are expected")
    return content

"""What the user gave: typed on the command line, or written in a config of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from distillcli.config import search
from distillcli.config.compose import parse_override
from distillcli.config.keys import dotted_keys
from distillcli.config.overrides import split_override
from distillcli.config.primaries import PRIMARIES
from distillcli.config.yaml_files import read_yaml


@dataclass(frozen=True)
class Given:
    """A key that the user set. ``value``: as it was written. ``file``: where, if it was not typed."""

    key: str
    value: str
    file: Path | None = None

    @property
    def where(self) -> str:
        return f"{self.file}: " if self.file else ""


def given_keys(primary: str, overrides: list[str]) -> list[Given]:
    """What the user set with ``overrides``, in their normal spelling, and in the files of theirs that take part."""
    return [*_typed(primary, overrides), *_written(primary, overrides)]


def _typed(primary: str, overrides: list[str]) -> Iterator[Given]:
    known = dotted_keys(PRIMARIES[primary].schema)
    for override in overrides:
        prefix, key, text = split_override(override)
        if prefix == "~" or key.split(".")[0] not in known:
            continue
        value = parse_override(override).value()
        if isinstance(value, dict):
            yield from (Given(f"{key}.{inner}", str(leaf)) for inner, leaf in _leaves(value))
        else:
            yield Given(key, text)


def _written(primary: str, overrides: list[str]) -> Iterator[Given]:
    own = search.folders()[:-1]
    if not own:
        return
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(search.builtin_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parts = loader.compute_defaults_list(primary, overrides, RunMode.RUN).defaults
    for part in parts:
        file = next((file for folder in own if (file := folder / f"{part.config_path}.yaml").is_file()), None)
        content = None if file is None else read_yaml(file)
        if isinstance(content, dict):
            package = f"{part.package}." if part.package else ""
            leaves = _leaves({key: value for key, value in content.items() if key not in ("defaults", "hydra")})
            yield from (Given(package + key, str(value), file) for key, value in leaves)


def _leaves(node: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from ((f"{key}.{inner}", leaf) for inner, leaf in _leaves(value))
        else:
            yield str(key), value

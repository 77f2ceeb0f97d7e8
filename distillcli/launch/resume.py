"""``resume=RUN``: the recorded overrides again, and a refusal of every change that would alter the result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from distillcli.config.compose import parse_override
from distillcli.config.overrides import key_of
from distillcli.config.ranges import nearest_path
from distillcli.config.schema import RunConfig
from distillcli.errors import UserError
from distillcli.runs.reading import read_json, read_yaml, reading

# What may change when a run is resumed: these keys decide whether, where and how fast it computes, never what.
NEUTRAL_KEYS = frozenset(
    {
        "trainer.workers",
        "trainer.device",
        "trainer.threads",
        "trainer.checkpoint_minutes",
        "trainer.keep_optimizer",
        "dataset.root",
        "dataset.labels",
        "dataset.class_map",
        "dataset.path",
        "teacher.cache.dir",
        "teacher.trust",
        "runs",
        "resume",
        "out",
    }
)


def recorded_overrides(run: Path) -> list[str]:
    """The overrides with which ``run`` was started. Raises UserError if it is not a run folder."""
    if not run.is_dir():
        raise UserError(
            f"resume={run}: {'is a file, not a run folder' if run.exists() else 'does not exist'}" + _near(run)
        )
    file = run / "environment.json"
    if not file.exists():
        raise UserError(f"resume={run}: not a run folder: {file.name} is missing")
    content = read_json(file)
    with reading(file):
        overrides = content["overrides"]
        if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
            raise TypeError("its overrides are not a list of words")
        return overrides


def _near(run: Path) -> str:
    return "" if run.exists() else nearest_path(run)


def going_on(overrides: list[str]) -> list[str]:
    """``overrides`` with ``out=RUN`` as ``resume=RUN`` where that run has begun."""
    return [
        f"resume={override.partition('=')[2]}"
        if key_of(override) == "out" and (Path(str(parse_override(override).value())) / "environment.json").exists()
        else override
        for override in overrides
    ]


def merge_overrides(recorded: list[str], typed: list[str]) -> list[str]:
    """``recorded`` without the keys that were typed again, then what was typed."""
    replaced = {key_of(override) for override in typed}
    return [override for override in recorded if key_of(override) not in replaced] + typed


def check_unchanged(run: Path, config: RunConfig) -> list[str]:
    """Compare with the config that ``run`` saved; return the differences that are allowed as ``key: old -> new``.

    Raises UserError listing every other difference.
    """
    old, new = _flatten(read_yaml(run / "config.yaml")), _flatten(dataclasses.asdict(config))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    lines = {key: f"{key}: {_show(old, key)} -> {_show(new, key)}" for key in changed}
    refused = [line for key, line in lines.items() if key not in NEUTRAL_KEYS]
    if refused:
        raise UserError(f"resume={run}: cannot resume with different settings ({'; '.join(refused)}); start a new run")
    return [line for key, line in lines.items() if key not in ("resume", "out")]


def _show(flat: dict[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "(not set)"


def _flatten(node: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {path: node} if path else {}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flatten(value, f"{path}.{key}" if path else str(key))
    return flat

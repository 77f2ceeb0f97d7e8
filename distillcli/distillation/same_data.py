"""``data.json``: which images a run began with, so that a later command can say what has changed since.

Nothing here imports torch: a run whose data has changed is refused before a model is built.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.runs.folder import write_json
from distillcli.runs.reading import try_json
from distillcli.sources.source import Source
from distillcli.sources.stored import pixels_evaluated

NO_LABEL = "(no label)"


def write_data_record(folder: Path, source: Source, dataset: DatasetConfig) -> None:
    """Fingerprint, for each part the number of images of each class, and in which form those evaluated are kept."""
    record = {"fingerprint": source.fingerprint, "images": _counts(source), "pixels": pixels_evaluated(source, dataset)}
    write_json(folder / "data.json", record)


def check_same_data(run: Path, source: Source) -> None:
    """Raise UserError, with the counts, if ``source`` is not what ``run`` began with."""
    changes = data_changes(run, source)
    if changes:
        raise UserError(
            f"resume={run}: the data has changed since the run began ({changes}); restore it, or start a new run"
        )


def data_changes(run: Path, source: Source) -> str:
    """What has changed since ``run`` began, in words; empty where nothing has, or where the run left no record."""
    record = try_json(run / "data.json")
    if record is None or record.get("fingerprint") == source.fingerprint:
        return ""
    before, now = record.get("images"), _counts(source)
    words = []
    for part in ("train", "val", "test"):
        old, new = (Counter(found.get(part, {}) if isinstance(found, dict) else {}) for found in (before, now))
        added, removed = (new - old).total(), (old - new).total()
        if added or removed:
            words.append(f"{part}: {added:,} added, {removed:,} removed")
    return "; ".join(words) or "as many images of each class, but other names, sizes or contents"


def may_be_same_images(run: Path, source: Source) -> bool:
    """Whether ``source``, however it is split, has as many images of each class as ``run`` began with."""
    record = try_json(run / "data.json")
    parts = record.get("images") if record is not None else None
    if not isinstance(parts, dict):
        return False
    before: Counter[str] = sum((Counter(found) for found in parts.values()), Counter())
    return before == sum((Counter(found) for found in _counts(source).values()), Counter())


def _counts(source: Source) -> dict[str, dict[str, int]]:
    """Part -> class -> images."""
    names = [*source.classes, NO_LABEL]  # the last one is that of -1
    return {part: dict(Counter(names[label] for label in split.labels)) for part, split in source.parts.items()}

"""A model as a file for deployment: written beside its place, run on real images by its own runtime, then moved."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillcli.config.schema import DatasetConfig, ExportConfig
from distillcli.distillation.reopening import must_know, open_checkpoint
from distillcli.errors import UserError
from distillcli.evidence.calibration import fitted_temperature
from distillcli.formats.check import Check
from distillcli.formats.deployed import Wanted
from distillcli.formats.formats import FORMATS, export, on_cpu, outputs
from distillcli.models.backbone import Backbone
from distillcli.runs.folder import versions, writable, write_json
from distillcli.runtime import Runtime
from distillcli.sources.source import Source
from distillcli.sources.stored import pixels_evaluated
from distillcli.types import Inputs
from distillcli.views.loader import Loader, open_part

MOST_CHECKED = 1024  # images


@dataclass(frozen=True)
class Exported:
    """``part``: of the data, whose images the check was made on. ``size``: bytes of all files."""

    path: Path
    check: Check
    part: str
    size: int
    temperature: float | None


def export_model(
    config: ExportConfig, run: Path | None, dataset: DatasetConfig, source: Source, runtime: Runtime
) -> Exported:
    """Write ``config.checkpoint`` in ``config.format``, with the check of the file in a JSON beside it.

    ``dataset``, ``source``: whose validation part, or test part if there is none, it is checked on. Raises UserError
    for what cannot be opened or exported, NumericError when the file answers otherwise than the model; then there is
    no file.
    """
    assert config.checkpoint is not None  # the checks of the config refuse None
    what = config.checkpoint if config.epoch is None else f"{config.checkpoint}/checkpoints/{config.epoch}.pt"
    inputs = Inputs(len(source.classes), dataset.image_size, dataset.channels)
    backbone, weights = open_checkpoint(what, config.model, inputs)
    must_know(weights, backbone, source, dataset)
    path = _place(config, run, backbone)
    split = source.val or source.evaluation
    part = next(name for name, known in source.parts.items() if known is split)
    loader = open_part(source, split, dataset, config.trainer.workers, runtime)
    wanted = Wanted(
        classes=weights.classes or source.classes,
        crop_fraction=dataset.crop_fraction,
        preprocess=config.preprocess,
        temperature=_temperature(backbone, loader, source) if config.softmax else None,
        pixels=pixels_evaluated(source, dataset),
        view_size=dataset.image_size,
    )
    with writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent)
    with beside as folder:
        written = Path(folder) / path.name
        check = export(backbone, written, wanted, _batches(_spread(loader)), config.format)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        for entry in Path(folder).iterdir():
            entry.replace(path.parent / entry.name)
    record = {"checkpoint": what, "format": config.format, "part": part, "versions": versions()}
    write_json(path.with_name(f"{path.name}.json"), record | dataclasses.asdict(check))
    return Exported(path, check, part, size, wanted.temperature)


def _place(config: ExportConfig, run: Path | None, backbone: Backbone) -> Path:
    suffix = FORMATS[config.format].suffix
    if config.out is None:
        name = re.sub(r"[^\w.+-]+", "_", backbone.spec.name) + (f"-{config.epoch}" if config.epoch else "")
        path = (run or Path()) / "exports" / f"{name}{suffix or f'-{config.format}'}"
    else:
        path = Path(config.out)
        if path.suffix != suffix and suffix:
            raise UserError(f"out={path}: format={config.format} writes a file named {suffix}; end the name with that")
    if path.is_dir() and (suffix or any(path.iterdir())):
        raise UserError(f"out={path}: a folder of this name exists; name another place, or remove it")
    return path


def _spread(loader: Loader) -> Loader:
    """At most ``MOST_CHECKED`` images, evenly from the whole part: its beginning may hold one class alone."""
    shown = loader.shown
    if len(shown) <= MOST_CHECKED:
        return loader
    return dataclasses.replace(loader, only=shown[np.linspace(0, len(shown) - 1, MOST_CHECKED).astype(np.int64)])


def _batches(loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in loader.plain():
        yield batch.images, batch.targets


def _temperature(backbone: Backbone, loader: Loader, source: Source) -> float:
    """Fitted on the labelled images of val; others would be fitted to what is reported."""
    if source.val is None or not loader.has_labels:
        raise UserError("softmax=true: its temperature is fitted on labelled images of val; leave softmax out")
    if backbone.spec.classes == 0:
        raise UserError("softmax=true: the model has no classifier; leave softmax out")
    model = on_cpu(backbone)
    answers = [(outputs(model, images.cpu()), targets.cpu()) for images, targets in _batches(loader.labelled())]
    logits, labels = (torch.cat(column) for column in zip(*answers, strict=True))
    return fitted_temperature(logits.double().numpy(), labels.numpy())

"""What every run folder says about its run: files that describe it, the exported model, the numbers of its result."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import yaml

from distillcli.config.schema import TrainConfig
from distillcli.export.formats import export
from distillcli.models.backbone import Backbone
from distillcli.models.ensemble import Classifier
from distillcli.runs.folder import environment, versions, write_json, write_text
from distillcli.runtime import Runtime
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.training.checkpoint import read_checkpoint
from distillcli.training.evaluation import evaluate, evaluate_by_class, latency
from distillcli.training.fit import Fit, Fitted
from distillcli.views.loader import Data

CHECKED_IMAGES = 4


def describe_folder(
    folder: Path, config: TrainConfig, command: str, overrides: list[str], classes: tuple[str, ...]
) -> None:
    """Write the files that say what the run is, before it starts."""
    write_text(folder / "config.yaml", yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True))
    write_text(folder / "command.txt", command + "\n")
    write_json(folder / "environment.json", environment(command, overrides))
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in classes))


def export_student(backbone: Backbone, folder: Path, data: Data) -> None:
    """Write a trained model into ``folder`` in timm's format, and check it on some validation images."""
    images = next(data.val.plain()).images[:CHECKED_IMAGES]
    export(backbone, folder, data.source.classes, data.val.config.crop_fraction, images)


def run_facts(fit: Fit, fitted: Fitted, runtime: Runtime, teacher: FrozenTeacher | None = None) -> dict[str, Any]:
    """The part of ``result.json`` that student, teacher and control have in common."""
    config, data, source = fit.config, fit.data, fit.data.source
    student = measure(fitted.backbone, data, runtime, teacher=teacher)
    best_numbers = student
    if fitted.best["epoch"] != fitted.last["epoch"]:
        best = copy.deepcopy(fitted.backbone)
        content = read_checkpoint(fit.folder / "checkpoints" / "best.pt")
        best.net.load_state_dict(content["ema"] or content["student"])
        best_numbers = evaluate(best, data.evaluation, runtime, teacher=teacher)
    return {
        "name": config.name,
        "evaluated_on": source.evaluated_on,
        "student": student,
        "best": _epoch_facts(fitted.best, best_numbers),
        "last": _epoch_facts(fitted.last, student),
        "epochs": config.trainer.epochs,
        "images_per_second": fitted.images_per_second,
        "temperature": config.distill.temperature,
        "alpha": config.distill.alpha,
        "seed": config.seed,
        "channels_last": config.trainer.channels_last,
        "objective": fit.objective.words(),
        "dataset": {
            "name": source.name,
            "classes": len(source.classes),
            "train": len(source.train.labels),
            "labelled": source.train.labelled,
            "val": len(source.val.labels),
            "test": len(source.test.labels) if source.test else 0,
            "skipped": len(source.skipped),
        },
        "versions": versions(),
        "fingerprints": {"data": source.fingerprint, "recipe": fit.fingerprint},
    }


def _epoch_facts(on_val: dict[str, float], numbers: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"epoch": on_val["epoch"]}
    for name in ("top1", "kl_to_teacher"):
        facts |= {f"val_{name}": on_val.get(name), name: numbers.get(name)}
    return facts


def measure(
    backbone: Classifier,
    data: Data,
    runtime: Runtime,
    precision: str = "fp32",
    teacher: FrozenTeacher | None = None,
) -> dict[str, Any]:
    """The numbers of one model as ``result.json`` holds them; those that cannot be known are None."""
    spec = backbone.spec
    numbers: dict[str, Any] = {"model": spec.name, "params": spec.params, "macs": spec.macs}
    numbers |= dict.fromkeys(("top1", "top5", "balanced_accuracy", "nll", "ece", "agreement", "kl_to_teacher"))
    measured, by_class = evaluate_by_class(backbone, data.evaluation, runtime, precision, teacher)
    names = data.source.classes
    numbers |= measured
    numbers["per_class"] = {names[k]: {"top1": top1, "count": count} for k, (top1, count) in by_class.items()} or None
    return numbers | {"latency_ms": latency(backbone, runtime.device)}

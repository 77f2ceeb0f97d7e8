"""Fitted once, found again: teachers and controls as ordinary run folders named by their recipe.

A teacher is a student of the labels, and a control is a student without a teacher: both are a TrainConfig whose
objective has label terms only. The fingerprint of that recipe and of its data names the folder, so a sweep over
temperatures fits each of them once, and parallel jobs wait for the one that got there first.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from distillcli.cached_teacher import with_cache
from distillcli.checkpoint import read_checkpoint
from distillcli.config.schema import CacheConfig, ModelConfig, StudentConfig, TrainConfig
from distillcli.data.loader import Data
from distillcli.engine import Fitted, Session, fit
from distillcli.ensemble import Classifier
from distillcli.evaluation import evaluate, evaluate_by_class, latency
from distillcli.freezing import freeze
from distillcli.models import Backbone, build
from distillcli.objective import Objective, labels_only, needs_teacher
from distillcli.run_folder import (
    environment,
    fingerprint,
    locked,
    read_result,
    versions,
    write_json,
    write_result,
    write_text,
)
from distillcli.runtime import Runtime, any_rank, barrier, resolve_precision, seed_everything
from distillcli.teachers import FrozenTeacher, Teacher, answer_settings
from distillcli.terms.base import Setting
from distillcli.weights import export, knows_classes, load_into, read_weights, weights_fingerprint

# Raise this number when a change of the code changes what the same recipe trains.
RECIPE_VERSION = 2


def teacher_recipe(config: TrainConfig, runtime: Runtime) -> TrainConfig:
    """The run that fits the teacher to the labels, in the teacher's own budget and precision."""
    teacher = config.teacher
    return dataclasses.replace(
        config,
        name=f"teacher {teacher.name}",
        baseline=False,
        student=as_student(teacher),
        distill=labels_only(config.distill),
        teacher=dataclasses.replace(teacher, cache=CacheConfig()),
        optimizer=dataclasses.replace(
            config.optimizer,
            lr=teacher.fit.lr,
            weight_decay=teacher.fit.weight_decay,
            layer_decay=teacher.fit.layer_decay,
        ),
        trainer=dataclasses.replace(
            config.trainer,
            epochs=teacher.fit.epochs,
            precision=resolve_precision(teacher.precision, runtime.device, teacher=True),
        ),
    )


def as_student(model: ModelConfig) -> StudentConfig:
    """A teacher or an assistant in the place of the student, where it is fitted."""
    return StudentConfig(model.name, model.pretrained, model.checkpoint, model.args, model.image_size, model.freeze)


def control_recipe(config: TrainConfig) -> TrainConfig:
    """The same student with the same budget and no teacher.

    The budget is counted in optimizer steps: where only some images are labelled, the control sees these alone, and as
    often as it takes to make as many steps as the student.
    """
    name = f"control {config.student.name}"
    return dataclasses.replace(config, name=name, baseline=False, peers=[], distill=labels_only(config.distill))


def recipe_fingerprint(
    config: TrainConfig,
    data: Data,
    student: Backbone,
    runtime: Runtime,
    teacher: Classifier | None = None,
    rounding: str = "off",
    peers: Sequence[Backbone] = (),
) -> str:
    """Names what ``config`` trains on ``data``, from ``student`` as it is before step 1: all that decides the weights
    afterwards, and nothing else. ``rounding``: the format in which the teacher's answers are cached.
    """
    trainer = config.trainer
    learning = (
        {"peers": [[peer.spec.name, weights_fingerprint(peer.net.state_dict())] for peer in peers]} if peers else {}
    )
    if config.teacher.mean and needs_teacher(config.distill):
        learning["mean_teacher"] = [[config.teacher.precision]]
    return fingerprint(
        {
            **learning,
            "version": RECIPE_VERSION,
            "data": data.source.fingerprint,
            "views": [config.dataset.image_size, config.dataset.crop_fraction, data.train.store.crops],
            "sampling": [config.dataset.balanced, trainer.progressive],
            "model": [config.student.name, config.student.args, student.image_size, config.student.freeze],
            "start": weights_fingerprint(student.net.state_dict()),
            "teacher": None if teacher is None else weights_fingerprint(teacher.state_dict()),
            "teacher_settings": None if teacher is None else answer_settings(config),
            "teacher_arithmetic": None if teacher is None else [config.teacher.precision, rounding],
            "view_cycle": config.teacher.cache.views,
            "objective": dataclasses.asdict(config.distill),
            "optimizer": dataclasses.asdict(config.optimizer),
            "schedule": dataclasses.asdict(config.schedule),
            "augment": dataclasses.asdict(config.augment),
            "budget": [trainer.epochs, trainer.batch_size, trainer.accumulate, trainer.clip_grad, trainer.ema],
            "arithmetic": [resolve_precision(trainer.precision, runtime.device), trainer.channels_last, runtime.world],
            "seed": config.seed,
        }
    )


def new_backbone(config: TrainConfig, model: ModelConfig, data: Data, role: str) -> Backbone:
    """The model to be trained: fresh, pretrained, or from own weights, with a new classifier if the classes differ.

    Control and student start from the same weights: the seed of the initialisation does not depend on their role.
    """
    seed_everything(config.seed, "init", model.name)
    classes = data.source.classes
    backbone = build(model, len(classes), config.dataset.image_size, role)
    if model.checkpoint is not None:
        weights = read_weights(model.checkpoint)
        load_into(backbone, weights, role, new_head=not knows_classes(weights, backbone, classes))
    freeze(backbone, model.freeze, role)
    return backbone


def fit_once(
    config: TrainConfig, role: str, data: Data, session: Session, teacher: FrozenTeacher | None = None
) -> Path:
    """The run folder of this recipe: found if it is complete, else fitted, or continued where it was stopped.

    ``role``: teacher, assistant or control, which names the parent folder. ``teacher``: who teaches an assistant.
    """
    runtime = session.runtime
    student = new_backbone(config, config.student, data, role)
    seed_everything(config.seed, "init", "objective")
    above = None if teacher is None else teacher.backbone.spec
    objective = Objective(config.distill, Setting(student.spec, above, data.source.train.labels, config.trainer.epochs))
    targets: Teacher | None = None
    rounding = "off"
    if teacher is not None:
        teacher = dataclasses.replace(teacher, taps=objective.teacher_taps)
        check_class_maps(objective, student, teacher)
        targets, rounding = open_cache_or_warn(config, data, teacher, session)
    recipe = recipe_fingerprint(config, data, student, runtime, None if teacher is None else teacher.backbone, rounding)
    safe_name = re.sub(r"[^A-Za-z0-9_.-]+", "_", config.student.name)
    folder = Path(config.runs) / f"{role}s" / f"{safe_name}-{recipe[:8]}"
    if runtime.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True) if runtime.is_main else nullcontext():
        result = read_result(folder) if runtime.is_main else None
        if any_rank(result is not None and result["status"] == "ok", runtime):
            session.say(f"{role}: {config.student.name} found in {folder}")
        else:
            whom = "the labels" if teacher is None else teacher.backbone.spec.name
            session.say(f"{role}: fitting {config.student.name} to {whom}, {config.trainer.epochs} epochs")
            started = time.monotonic()
            if runtime.is_main:
                describe_folder(folder, config, session.command, [], data)
            fitted = fit(config, data, student, objective, targets, folder, recipe, role, session)
            outcome = run_facts(config, data, fitted, folder, recipe, objective, runtime) | {
                "status": "ok",
                "error": None,
                "role": role,
                "command": session.command,
                "overrides": [],
                "teacher": None,
                "baseline": None,
                "gap_closed": None,
                "warnings": [],
                "seconds": time.monotonic() - started,
            }
            if runtime.is_main:
                export_student(fitted.backbone, folder / "student", config, data)
                write_result(folder, outcome)
    barrier(runtime)
    return folder


def check_class_maps(objective: Objective, student: Backbone, teacher: FrozenTeacher | None) -> None:
    """Raise UserError if the objective compares class maps and one of the models has none."""
    if teacher is not None and objective.teacher_taps.class_maps:
        for model in (student, teacher.backbone):
            assert isinstance(model, Backbone)  # an ensemble was refused by the objective
            model.check_class_maps()


def open_cache_or_warn(
    config: TrainConfig, data: Data, teacher: FrozenTeacher, session: Session
) -> tuple[Teacher, str]:
    """The teacher, its answers cached where that is possible, and the format of the cache; says which."""
    try:
        targets, rounding, why = with_cache(config, data, teacher, session.runtime)
    except OSError as error:  # costs the cache and no more
        session.warn(f"teacher cache: off, its folder cannot be written ({error.strerror}: {error.filename})")
        return teacher, "off"
    session.say(why)
    return targets, rounding


# --- what every run folder holds ---------------------------------------------------------------------------------


def describe_folder(folder: Path, config: TrainConfig, command: str, overrides: list[str], data: Data) -> None:
    """Write the files that say what the run is, before it starts."""
    write_text(folder / "config.yaml", yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True))
    write_text(folder / "command.txt", command + "\n")
    write_json(folder / "environment.json", environment(command, overrides))
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in data.source.classes))


def export_student(backbone: Backbone, folder: Path, config: TrainConfig, data: Data) -> None:
    """Write a trained model into ``folder`` in timm's format."""
    export(backbone, folder, data.source.classes, config.dataset.crop_fraction)


def run_facts(
    config: TrainConfig,
    data: Data,
    fitted: Fitted,
    folder: Path,
    recipe: str,
    objective: Objective,
    runtime: Runtime,
    teacher: FrozenTeacher | None = None,
) -> dict[str, Any]:
    """The part of ``result.json`` that student, teacher and control have in common."""
    source = data.source
    student = measure(fitted.backbone, data, runtime, teacher=teacher)
    best_numbers = student
    if fitted.best["epoch"] != fitted.last["epoch"]:
        best = copy.deepcopy(fitted.backbone)
        content = read_checkpoint(folder / "checkpoints" / "best.pt")
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
        "objective": objective.words(),
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
        "fingerprints": {"data": source.fingerprint, "recipe": recipe},
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

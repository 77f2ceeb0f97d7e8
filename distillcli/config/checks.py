"""Ranges and cross-checks of a composed config: everything that can be refused before anything heavy is imported.

Every refusal is a UserError of one line: key, value, fix.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from distillcli.config.job import is_main_process
from distillcli.config.model_names import HUB_PREFIXES, SCHEDULES, deprecated_names, model_names, optimizer_names
from distillcli.config.schema import (
    AugmentConfig,
    DatasetConfig,
    DistillConfig,
    EvalConfig,
    MemberConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TeacherConfig,
    TrainConfig,
    TrainerConfig,
)
from distillcli.errors import UserError, did_you_mean

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
AVERAGES = ("probabilities", "logits")
FIT_MODES = ("auto", "never", "always")
POLICIES = ("none", "randaugment", "trivial", "autoaugment_cifar")
CACHE_MODES = ("auto", "off", "float16", "float32", "int8", "topk")
FORMATS = ("table", "json")
ON_ERROR = ("raise", "skip")
# Whose dataset.root must be there: nothing downloads it.
LOCAL_DATASETS = ("folder", "archive", "npz", "webdataset", "unlabeled")
# The data sets that read a key. Others would ignore it without a word.
READERS = {
    "labels": ("folder", "archive"),
    "class_map": ("folder", "archive", "webdataset"),
    "path": ("hf",),
    "image_column": ("hf",),
    "label_column": ("hf",),
}


def check(config: TrainConfig | EvalConfig) -> None:
    """Raise UserError for the first thing in ``config`` that cannot work."""
    _check_finite(dataclasses.asdict(config))
    _check_trainer(config.trainer)
    if isinstance(config, TrainConfig):
        _check_train(config)
    else:
        _check_eval(config)


def _check_train(config: TrainConfig) -> None:
    _check_run_name(config.name)
    _at_least("seed", config.seed, 0)
    _check_distill(config.distill)
    _check_optimizer(config.optimizer)
    check_schedule(config.schedule, config.trainer.epochs)
    _check_augment(config.augment)
    _check_model("student", config.student)
    if not config.teacher.members and not config.teacher.mean and not config.peers:
        _check_model("teacher", config.teacher)
    _check_teacher(config.teacher)
    _check_kinds_of_teachers(config)
    _check_reused_head(config)
    _check_dataset(config.dataset)
    _check_colours(config.augment, config.dataset.channels)
    _check_batches(config)
    _check_folders(config)


def _check_batches(config: TrainConfig) -> None:
    """What batches, views and models ask of each other."""
    trainer, repeats = config.trainer, config.augment.repeats
    if trainer.batch_size % repeats:
        raise UserError(
            f"augment.repeats={repeats}: trainer.batch_size={trainer.batch_size} is not divisible by it; the views "
            "of an image must fit into one batch"
        )
    if trainer.progressive is None:
        return
    _two_shares("trainer.progressive", trainer.progressive)
    if round(trainer.progressive[0] * config.dataset.image_size) < 8:
        raise UserError(
            f"trainer.progressive={list(trainer.progressive)}: views of {config.dataset.image_size} pixels would begin "
            "below 8; raise its first number or dataset.image_size"
        )
    if config.teacher.cache.views:
        raise UserError("trainer.progressive: views that change in size cannot come again; use teacher.cache.views=0")


def _check_eval(config: EvalConfig) -> None:
    if config.checkpoint is None:
        raise UserError("distill eval needs checkpoint=...: a run folder, a checkpoint file or a timm model name")
    _one_of("format", config.format, FORMATS)
    _check_checkpoint("checkpoint", config.checkpoint, model_name_allowed=True)
    if config.dataset is not None:
        _check_dataset(config.dataset)


def _check_run_name(name: str) -> None:
    if not re.fullmatch(r"[\w.+-]+", name, re.ASCII) or name.startswith("."):
        raise UserError(f"name={name!r}: it becomes a folder; use letters, digits and . _ + -")


def _check_distill(config: DistillConfig) -> None:
    if config.temperature <= 0:
        raise UserError(f"distill.temperature={config.temperature}: must be above 0; 1 to 8 is usual")
    if config.temperature_end is not None:
        _above_zero("distill.temperature_end", config.temperature_end)
    if config.alpha is not None and not 0 <= config.alpha <= 1:
        raise UserError(f"distill.alpha={config.alpha}: must be in [0, 1], or null for a plain weighted sum")
    if not config.terms:
        raise UserError("distill.terms is empty: add at least one, e.g. distill.terms.kl.weight=1 (distill show terms)")


def _check_optimizer(config: OptimizerConfig) -> None:
    name = config.name.lower().removeprefix("lookahead_")
    _known("optimizer.name", name, optimizer_names())
    _above_zero("optimizer.lr", config.lr)
    _at_least("optimizer.weight_decay", config.weight_decay, 0)
    _check_layer_decay("optimizer.layer_decay", config.layer_decay)
    if not 0 <= config.momentum < 1:
        raise UserError(f"optimizer.momentum={config.momentum}: must be in [0, 1)")


def _check_layer_decay(key: str, value: float | None) -> None:
    if value is not None and not 0 < value <= 1:
        raise UserError(f"{key}={value}: must be above 0 and at most 1, e.g. 0.75, or null")


def check_schedule(config: ScheduleConfig, epochs: int) -> None:
    """Raise UserError for a schedule that does not fit into ``epochs``: the student's budget, or the teacher's."""
    _known("schedule.name", config.name, SCHEDULES)
    for key in ("warmup_epochs", "warmup_lr", "min_lr"):
        _at_least(f"schedule.{key}", getattr(config, key), 0)
    if config.warmup_epochs >= epochs:
        raise UserError(f"schedule.warmup_epochs={config.warmup_epochs}: must be shorter than the fit, {epochs} epochs")
    _above_zero("schedule.decay_epochs", config.decay_epochs)
    if config.name == "wsd" and config.decay_epochs > epochs - config.warmup_epochs:
        raise UserError(
            f"schedule.decay_epochs={config.decay_epochs}: wsd decays at the end of the {epochs} epochs of the fit, "
            "after its warm-up; make it shorter"
        )
    _above_zero("schedule.decay_rate", config.decay_rate)
    if config.name == "multistep" and not config.milestones:
        raise UserError("schedule.milestones is empty: multistep needs epochs, e.g. schedule.milestones=[6,8]")
    if sorted(set(config.milestones)) != list(config.milestones) or any(epoch < 1 for epoch in config.milestones):
        raise UserError(f"schedule.milestones={config.milestones}: must be ascending epochs from 1")


def _check_augment(config: AugmentConfig) -> None:
    for key in ("flip", "erase", "mix_probability"):
        _share(f"augment.{key}", getattr(config, key))
    for key in ("crop_area", "crop_ratio", "zoom"):
        _ascending(f"augment.{key}", getattr(config, key))
    if config.crop_area[1] > 1:
        raise UserError(f"augment.crop_area={list(config.crop_area)}: a share of the image, at most 1")
    for key in ("translate", "rotate", "shear", "brightness", "contrast", "saturation", "hue", "mixup", "cutmix"):
        _at_least(f"augment.{key}", getattr(config, key), 0)
    for key in ("translate", "brightness", "contrast", "saturation"):
        _share(f"augment.{key}", getattr(config, key))
    if config.shear >= 90:
        raise UserError(f"augment.shear={config.shear}: degrees, must be below 90")
    if config.hue > 0.5:
        raise UserError(f"augment.hue={config.hue}: a share of the colour circle, at most 0.5")
    _one_of("augment.policy", config.policy, POLICIES)
    _at_least("augment.policy_ops", config.policy_ops, 1)
    _at_least("augment.repeats", config.repeats, 1)
    if not 0 <= config.policy_magnitude <= 30:
        raise UserError(f"augment.policy_magnitude={config.policy_magnitude}: must be in [0, 30]; 9 is usual")


def _check_colours(config: AugmentConfig, channels: int) -> None:
    """Some changes of colour are defined for RGB, and for grayscale, which they leave alone."""
    if channels in (1, 3):
        return
    for key, off in (("saturation", 0.0), ("hue", 0.0), ("policy", "none")):
        if getattr(config, key) != off:
            raise UserError(
                f"augment.{key}={getattr(config, key)}: needs images of 1 or 3 channels, dataset.channels={channels}; "
                f"use augment.{key}={off}"
            )


def _check_trainer(config: TrainerConfig) -> None:
    for key in ("epochs", "batch_size", "accumulate"):
        _at_least(f"trainer.{key}", getattr(config, key), 1)
    if config.batch_size % config.accumulate:
        sizes = f"trainer.batch_size={config.batch_size} is not divisible by trainer.accumulate={config.accumulate}"
        raise UserError(f"{sizes}; every micro-batch must have the same size")
    _one_of("trainer.precision", config.precision, PRECISIONS)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        hint = did_you_mean(config.device, ("auto", "cpu", "cuda", "mps"))
        if config.device.lower().startswith("gpu"):
            hint = f"; did you mean '{config.device.lower().replace('gpu', 'cuda')}'?"
        raise UserError(f"trainer.device={config.device!r}: use auto, cpu, cuda, cuda:N or mps{hint}")
    _at_least("trainer.workers", config.workers, 0)
    _above_zero("trainer.checkpoint_minutes", config.checkpoint_minutes)
    if config.threads is not None:
        _at_least("trainer.threads", config.threads, 1)
    if config.clip_grad is not None:
        _above_zero("trainer.clip_grad", config.clip_grad)
    if config.ema is not None and not 0 < config.ema < 1:
        raise UserError(f"trainer.ema={config.ema}: a decay between 0 and 1, e.g. 0.9998, or null")


def _check_model(key: str, config: ModelConfig) -> None:
    if not config.name:
        raise UserError(f"{key}.name is empty: give a timm model name (distill show models)")
    if config.name.startswith("local-dir:"):
        _check_existing(f"{key}.name", config.name.removeprefix("local-dir:"), shown=config.name)
    elif not config.name.startswith(HUB_PREFIXES):
        _known_model(f"{key}.name", config.name)
    if config.image_size is not None:
        _at_least(f"{key}.image_size", config.image_size, 8)
    if config.checkpoint is not None:
        _check_checkpoint(f"{key}.checkpoint", config.checkpoint)
        if config.pretrained:
            raise UserError(f"{key}.pretrained=true and {key}.checkpoint={config.checkpoint}: weights from two places")
    if not re.fullmatch(r"none|backbone|[1-9]\d*", config.freeze):
        raise UserError(f"{key}.freeze={config.freeze}: use none, backbone, or a number of groups of layers from 1")
    if config.freeze != "none" and config.checkpoint is None and not config.pretrained:
        raise UserError(
            f"{key}.freeze={config.freeze}: the frozen layers would stay random; give {key}.checkpoint=PATH or "
            f"{key}.pretrained=true"
        )


def _check_teacher(config: TeacherConfig) -> None:
    if not config.head:
        _check_headless(config)
    _one_of("teacher.average", config.average, AVERAGES)
    for number, member in enumerate(config.members):
        _check_model(f"teacher.members[{number}]", member)
        _above_zero(f"teacher.members[{number}].weight", member.weight)
        _above_zero(f"teacher.members[{number}].temperature", member.temperature)
        _check_class_map(f"teacher.members[{number}]", member, config.fit.mode)
    _check_class_map("teacher", config, config.fit.mode)
    for number, assistant in enumerate(config.assistants):
        _check_model(f"teacher.assistants[{number}]", assistant)
    _one_of("teacher.precision", config.precision, PRECISIONS)
    _one_of("teacher.fit.mode", config.fit.mode, FIT_MODES)
    _at_least("teacher.fit.epochs", config.fit.epochs, 1)
    _above_zero("teacher.fit.lr", config.fit.lr)
    _at_least("teacher.fit.weight_decay", config.fit.weight_decay, 0)
    _check_layer_decay("teacher.fit.layer_decay", config.fit.layer_decay)
    _one_of("teacher.cache.mode", config.cache.mode, CACHE_MODES)
    _at_least("teacher.cache.views", config.cache.views, 0)
    _above_zero("teacher.cache.max_gb", config.cache.max_gb)


def _check_class_map(key: str, config: TeacherConfig | MemberConfig, fit_mode: str) -> None:
    if config.class_map is None:
        return
    _check_existing(f"{key}.class_map", config.class_map)
    if fit_mode == "always" or (config.checkpoint is None and not config.pretrained):
        raise UserError(
            f"{key}.class_map={config.class_map}: a teacher that is fitted has the classes of the data; give "
            f"{key}.checkpoint=PATH or {key}.pretrained=true, and leave teacher.fit.mode=auto"
        )


def _check_kinds_of_teachers(config: TrainConfig) -> None:
    """Peers and the student's own average teach while they learn: nothing is fitted, found or handed down."""
    for number, peer in enumerate(config.peers):
        _check_model(f"peers[{number}]", peer)
    _at_least("generations", config.generations, 1)
    handed_down = [
        key
        for key, given in (
            ("teacher.assistants", bool(config.teacher.assistants)),
            ("generations", config.generations > 1),
            ("teacher.members", bool(config.teacher.members)),
        )
        if given
    ]
    if config.peers and config.teacher.mean:
        raise UserError("peers and teacher.mean=true: two kinds of teacher that learn with the student; choose one")
    if handed_down and (config.peers or config.teacher.mean):
        learning = "peers" if config.peers else "teacher.mean=true"
        raise UserError(f"{learning} and {handed_down[0]}: a teacher that learns with the student is the only one")
    if config.teacher.mean and config.trainer.ema is None:
        raise UserError("teacher.mean=true: the teacher is the moving average of the student; set trainer.ema=0.99")


def _check_reused_head(config: TrainConfig) -> None:
    """SimKD's student ends in the classifier of one teacher that stays as it is."""
    if "simkd" not in config.distill.terms:
        return
    others = {
        "peers": bool(config.peers),
        "teacher.mean=true": config.teacher.mean,
        "teacher.members": bool(config.teacher.members),
        "teacher.assistants": bool(config.teacher.assistants),
        f"generations={config.generations}": config.generations > 1,
        "teacher.head=false": not config.teacher.head,
        f"student.freeze={config.student.freeze}": config.student.freeze != "none",
    }
    for setting, given in others.items():
        if given:
            raise UserError(
                f"distill.terms.simkd and {setting}: the student takes over the head of one teacher, and all else of it"
                " is trained; leave one of them out"
            )


def _check_headless(config: TeacherConfig) -> None:
    if config.members:
        raise UserError("teacher.head=false: an ensemble answers with logits only; use a single teacher, or head=true")
    if config.fit.mode == "always" or not (config.checkpoint or config.pretrained):
        raise UserError(
            "teacher.head=false: without a head it cannot be fitted to labels; give teacher.checkpoint=PATH or "
            "teacher.pretrained=true, with teacher.fit.mode=auto"
        )


def _check_dataset(config: DatasetConfig) -> None:
    _at_least("dataset.image_size", config.image_size, 8)
    _at_least("dataset.channels", config.channels, 1)
    if config.channels not in (1, 3) and config.name != "npz":
        raise UserError(
            f"dataset.channels={config.channels}: dataset={config.name} has images of 1 or 3 channels; others are read "
            "from dataset=npz"
        )
    if not 0 < config.val_fraction < 1:
        raise UserError(f"dataset.val_fraction={config.val_fraction}: must be above 0 and below 1, e.g. 0.1")
    if not 0 < config.crop_fraction <= 1:
        raise UserError(f"dataset.crop_fraction={config.crop_fraction}: must be above 0 and at most 1")
    _share("dataset.labelled", config.labelled)
    _one_of("dataset.on_error", config.on_error, ON_ERROR)
    _at_least("dataset.split_seed", config.split_seed, 0)
    _at_least("dataset.memory_gb", config.memory_gb, 0)
    _at_least("dataset.classes", config.classes, 2)
    _at_least("dataset.samples", config.samples, 2)
    for key, readers in READERS.items():
        if getattr(config, key) is not None and config.name not in readers:
            raise UserError(f"dataset.{key}={getattr(config, key)}: dataset={config.name} does not read it; remove it")
    for key, path in (("root", config.root), ("labels", config.labels), ("class_map", config.class_map)):
        if path is not None and (config.name in LOCAL_DATASETS or key != "root"):
            _check_existing(f"dataset.{key}", path)
    if config.name == "folder":
        _check_image_folder(config)


def _check_image_folder(config: DatasetConfig) -> None:
    root = config.root
    layout = "expected ROOT/train/CLASS/*.jpg with ROOT/val/CLASS/*.jpg, or ROOT/CLASS/*.jpg"
    if root is None:
        raise UserError(f"dataset.root is missing: dataset=folder needs dataset.root=PATH; {layout}")
    if not Path(root).is_dir():
        raise UserError(f"dataset.root={root}: is a file, not a folder; {layout}")
    if config.labels is None and not any(entry.is_dir() for entry in Path(root).iterdir()):
        raise UserError(f"dataset.root={root}: has no class folders; {layout}, or dataset.labels=FILE")


def _check_folders(config: TrainConfig) -> None:
    if config.resume is not None or not is_main_process():  # the main process has claimed the folder by now
        return
    for key, value in (("out", config.out), ("runs", config.runs)):
        if value is not None and Path(value).exists() and not Path(value).is_dir():
            raise UserError(f"{key}={value}: is a file; name a folder")
    if config.out is not None and Path(config.out).is_dir() and any(Path(config.out).iterdir()):
        fix = f"continue it with resume={config.out}, or name another folder"
        raise UserError(f"out={config.out}: the folder exists and is not empty; {fix}")


def _check_checkpoint(key: str, value: str, model_name_allowed: bool = False) -> None:
    if value.startswith("local-dir:"):
        _check_existing(key, value.removeprefix("local-dir:"), shown=value)
    elif not value.startswith(HUB_PREFIXES) and not (model_name_allowed and _is_model(value)):
        _check_existing(key, value, others=model_names() if model_name_allowed else ())


def _check_existing(key: str, value: str, shown: str | None = None, others: Collection[str] = ()) -> None:
    path = Path(value).expanduser()
    if not path.exists():
        raise UserError(f"{key}={shown or value}: does not exist{nearest_path(path, others)}")


def nearest_path(path: Path, others: Collection[str] = ()) -> str:
    """``"; did you mean ...?"`` with the nearest names beside a path that does not exist, or where the path ends."""
    parent = path.parent
    if not parent.is_dir():
        while not parent.is_dir() and parent != parent.parent:
            parent = parent.parent
        return f"; {parent} does" if str(parent) not in (".", "/") else ""
    siblings = {entry.name: str(parent / entry.name) for entry in parent.iterdir()}
    known = {**{name: name for name in others}, **siblings}
    hint = did_you_mean(path.name, known)
    for name, full in siblings.items():
        hint = hint.replace(f"'{name}'", f"'{full}'")
    return hint


def _known_model(key: str, name: str) -> None:
    if not _is_model(name):
        hint = did_you_mean(name.split(".")[0], model_names())
        raise UserError(f"{key}={name}: timm has no such model{hint or '; see distill show models PATTERN'}")


def _is_model(name: str) -> bool:
    """Whether timm knows ``name``, with or without a tag of weights. True when its names cannot be read."""
    known = model_names()
    return not known or name.split(".")[0] in known or name in deprecated_names()


def _check_finite(config: dict[str, Any]) -> None:
    for key, value in _numbers(config):
        if not math.isfinite(value):
            raise UserError(f"{key}={value}: must be a finite number")


def _numbers(node: Any, path: str = "") -> Iterator[tuple[str, float]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(value, float):
            yield inner, value
        else:
            yield from _numbers(value, inner)


def _at_least(key: str, value: float, low: float) -> None:
    if value < low:
        raise UserError(f"{key}={value}: must be at least {low}")


def _above_zero(key: str, value: float) -> None:
    if value <= 0:
        raise UserError(f"{key}={value}: must be above 0")


def _share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{key}={value}: must be in [0, 1]")


def _ascending(key: str, value: list[float]) -> None:
    if len(value) != 2 or not 0 < value[0] <= value[1]:
        raise UserError(f"{key}={list(value)}: must be two ascending positive numbers, [low,high]")


def _two_shares(key: str, value: list[float]) -> None:
    if len(value) != 2 or not all(0 < share <= 1 for share in value):
        raise UserError(f"{key}={list(value)}: must be two shares above 0 and at most 1, e.g. [0.5,0.75]")


def _one_of(key: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value}: must be one of {', '.join(choices)}")


def _known(key: str, value: str, choices: Collection[str]) -> None:
    """Like ``_one_of`` for lists too long to print whole; an empty list means that it could not be read."""
    if choices and value not in choices:
        listed = f"; known: {', '.join(sorted(choices))}" if len(choices) < 15 else ""
        raise UserError(f"{key}={value}: unknown{did_you_mean(value, choices) or listed}")

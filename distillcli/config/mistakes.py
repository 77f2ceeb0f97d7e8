"""What was probably meant: the nearest key, the name that another tool gives it, the group that has such an option."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from distillcli.config import search
from distillcli.config.keys import dotted_keys
from distillcli.config.model_names import HUB_PREFIXES, model_names
from distillcli.config.primaries import PRIMARIES
from distillcli.config.schema import AugmentConfig
from distillcli.config.terms import KNOWN_TERMS
from distillcli.errors import did_you_mean

# How other tools call a key.
_OTHER_NAMES = {
    "distill.temperature": ("T", "t", "tau", "temp", "kd_T", "kd_temperature"),
    "distill": ("loss", "criterion", "method", "objective", "kd", "distiller"),
    "optimizer": ("opt", "optim"),
    "optimizer.lr": ("learning_rate", "base_lr", "max_lr", "init_lr"),
    "optimizer.weight_decay": ("wd", "l2"),
    "schedule": ("sched", "scheduler", "lr_scheduler", "lr_schedule"),
    "schedule.warmup_epochs": ("warmup", "warmup_steps"),
    "trainer.epochs": ("epoch", "max_epochs", "num_epochs", "n_epochs", "max_epoch", "num_train_epochs", "steps"),
    "trainer.batch_size": ("batch", "bs", "b", "train_batch_size", "per_device_train_batch_size"),
    "trainer.workers": ("num_workers", "j", "dataloader_num_workers"),
    "trainer.device": ("gpu", "cuda", "accelerator"),
    "trainer.precision": ("amp", "fp16", "bf16", "half", "mixed_precision"),
    "trainer.clip_grad": ("clip", "grad_clip", "clip_grad_norm", "max_grad_norm", "gradient_clip_val"),
    "trainer.accumulate": ("accumulate_grad_batches", "grad_accum", "gradient_accumulation_steps"),
    "trainer.ema": ("ema_decay", "model_ema", "model_ema_decay"),
    "dataset.image_size": ("img_size", "imgsz", "input_size", "size", "resolution", "crop_size"),
    "dataset.root": ("data", "data_dir", "data_path", "dataset_path", "train_dir"),
    "dataset.val_fraction": ("val_split", "val_ratio", "validation_split"),
    "dataset.labels": ("csv", "label_file", "annotations"),
    "student.name": ("model", "arch", "net", "backbone", "model_name", "student_model", "student_name", "student_arch"),
    "teacher.name": ("teacher_model", "teacher_name", "teacher_arch"),
    "teacher.checkpoint": ("teacher_checkpoint", "teacher_weights", "teacher_path", "teacher_ckpt"),
    "checkpoint": ("ckpt", "weights", "model", "path"),
    "augment": ("aug", "augmentation", "transform", "transforms"),
    "distill.terms.ce.smoothing": ("label_smoothing", "smoothing"),
    "name": ("run_name", "exp_name", "experiment_name", "exp"),
    "out": ("output", "output_dir", "out_dir", "save_dir", "outdir", "log_dir", "logdir", "save_path", "run_dir"),
    "seed": ("random_seed", "manual_seed", "random_state"),
    "resume": ("resume_from", "resume_from_checkpoint", "auto_resume"),
}
_NO_KEY = {
    **dict.fromkeys(
        ("gpus", "num_gpus", "devices", "nproc", "world_size", "n_gpu", "ngpus"),
        "each GPU has a process of its own: torchrun --nproc-per-node=2 -m distillcli train ...; one GPU: "
        "trainer.device=cuda:0",
    ),
    **dict.fromkeys(
        ("num_classes", "n_classes", "nb_classes", "classes"), "the classes are those of the data set; leave it out"
    ),
    **dict.fromkeys(("config", "cfg", "yaml"), "your configs: --config-dir DIR with experiment=NAME"),
}


def unknown_key(key: str, known: Iterable[str], value: str | None = None) -> str:
    """The message for a key that is not in the schema, with the nearest keys at any level."""
    shown = "" if value is None else f"={value}"
    return f"unknown key {key}{shown}; {_instead(key, list(known), shown)}"


def _instead(key: str, known: list[str], shown: str) -> str:
    if "@" in key:
        return "packages (@) are not used here: write group=option or key=value"
    # A nested key typed without its parents is near as well: temperature -> distill.temperature.
    last = re.split(r"[./]", key)[-1].replace("-", "_")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    near = near or sorted((name for name in known if name.rsplit(".", 1)[-1] == last), key=_depth)[:3]
    near = (
        near
        or [name for name, others in _OTHER_NAMES.items() if last in others and (name in known or ".terms." in name)][
            :1
        ]
    )
    if not near and last in _NO_KEY:
        return _NO_KEY[last]
    near = near or difflib.get_close_matches(key, known, n=2, cutoff=0.6)
    near = near or difflib.get_close_matches(last, known, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(name + shown for name in near)}?" if near else "all keys: distill show keys"


def unknown_option(group: str, option: str) -> str:
    """The message for ``group=option`` where the group has no such option."""
    options = sorted(search.groups()[group])
    return f"unknown {group} {option!r}{_other_option(group, option, options)}; available: {', '.join(options)}"


def _other_option(group: str, option: str, options: list[str]) -> str:
    if group in ("teacher", "student") and (option.split(".")[0] in model_names() or option.startswith(HUB_PREFIXES)):
        return f"; for a timm model write {group}.name={option}"
    if group == "distill" and option in KNOWN_TERMS:
        return f"; that is a term: choose an objective and add distill.terms.{option}.weight=1"
    if group == "augment" and option in {field.name for field in dataclasses.fields(AugmentConfig)}:
        return f"; that is a part of a recipe: write augment.{option}=1"
    if group == "dataset" and _is_place(option):
        return f"; for a folder of images write dataset=folder dataset.root={option}"
    if group in ("teacher", "student") and _is_place(option):
        return f"; for weights of your own write {group}.name=MODEL {group}.checkpoint={option}"
    hint = did_you_mean(option, options)
    models = f"; any timm model: {group}.name=NAME" if group in ("teacher", "student") and not hint else ""
    return hint or models


def bare_word(primary: str, words: Sequence[str], place: int) -> str:
    """The message for a word that is neither key=value nor a flag: ``words[place]``, typed after ``primary``."""
    word, following = words[place], words[place + 1 : place + 2]
    spaced: Sequence[str] = ()
    if place and words[place - 1].endswith("="):
        spaced = words[place - 1 : place + 1]
    elif following and following[0].startswith("="):
        spaced = words[place : place + (3 if following == ["="] else 2)]
    if spaced:
        return f"{' '.join(spaced)!r}: no spaces around the equals sign; write {''.join(spaced)}"
    return f"{word!r} is not of the form key=value or group=option; {_word_instead(primary, word)}"


def _word_instead(primary: str, word: str) -> str:
    if primary != "train":
        return f"did you mean checkpoint={word}?"
    if (Path(word) / "config.yaml").is_file():
        return f"to continue a run write resume={word}, to measure it distill eval checkpoint={word}"
    if word.endswith((".yaml", ".yml")):
        return f"put it into a folder as experiment/{Path(word).name} and write --config-dir FOLDER experiment=NAME"
    if word in dotted_keys(PRIMARIES[primary].schema) or word in search.groups():
        return f"write {word}=VALUE"
    found = [f"{group}={word}" for group, options in search.groups().items() if word in options]
    if not found and word in model_names():
        found = [f"student.name={word}", f"teacher.name={word}"]
    if not found and _is_place(word):
        found = [f"dataset=folder dataset.root={word}"]
    return f"did you mean {' or '.join(found)}?" if found else "all keys: distill show keys"


def flag_instead(flag: str, value: str) -> str:
    """``"; write trainer.epochs=10"`` for ``--epochs 10``; empty if no key is meant."""
    name = flag.lstrip("-").replace("-", "_")
    known = ["experiment", *(key for primary in PRIMARIES.values() for key in dotted_keys(primary.schema))]
    near = sorted((key for key in known if key.rsplit(".", 1)[-1] == name or key == name), key=_depth)
    near = near or [key for key, others in _OTHER_NAMES.items() if name in others]
    if not near and name in _NO_KEY:
        return f"; {_NO_KEY[name]}"
    return f"; keys have no dashes: write {near[0]}={value or 'VALUE'}" if near else ""


def _depth(key: str) -> int:
    return key.count(".")


def _is_place(word: str) -> bool:
    """Whether a word looks like a path."""
    return any(mark in word for mark in "/\\~") or word in (".", "..") or Path(word).exists()

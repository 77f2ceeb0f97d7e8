"""Checks of the groups ``student`` and ``teacher``, and of ``peers``.

Every refusal is a UserError of one line: key, value, fix.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from distillcli.config.model_names import HUB_PREFIXES, deprecated_names, model_names
from distillcli.config.ranges import above_zero, at_least, check_existing, one_of
from distillcli.config.schema import MemberConfig, ModelConfig, TeacherConfig, TrainConfig
from distillcli.config.terms import reused_head_options
from distillcli.errors import UserError, did_you_mean

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
AVERAGES = ("probabilities", "logits")
FIT_MODES = ("auto", "never", "always")
CACHE_MODES = ("auto", "off", "float16", "float32", "int8", "topk")


def check_model(key: str, config: ModelConfig) -> None:
    if not config.name:
        raise UserError(f"{key}.name is empty: give a timm model name (distill show models)")
    if config.name.startswith("local-dir:"):
        check_existing(f"{key}.name", config.name.removeprefix("local-dir:"), shown=config.name)
    elif not config.name.startswith(HUB_PREFIXES):
        check_model_name(f"{key}.name", config.name)
    if config.image_size is not None:
        at_least(f"{key}.image_size", config.image_size, 8)
    if config.checkpoint is not None:
        check_checkpoint(f"{key}.checkpoint", config.checkpoint)
        _check_architecture(key, config)
        if config.pretrained:
            raise UserError(
                f"{key}.pretrained=true and {key}.checkpoint={config.checkpoint}: two sources of weights; keep one"
            )
    if not re.fullmatch(r"none|backbone|[1-9]\d*", config.freeze):
        raise UserError(f"{key}.freeze={config.freeze}: use none, backbone, or a number of layer groups, e.g. 1")
    if config.freeze != "none" and config.checkpoint is None and not config.pretrained:
        raise UserError(
            f"{key}.freeze={config.freeze}: the frozen layers would stay random; set {key}.checkpoint=PATH or "
            f"{key}.pretrained=true"
        )


def _check_architecture(key: str, config: ModelConfig) -> None:
    """Weights that name their model belong into that model; its card is read before torch could compare shapes."""
    assert config.checkpoint is not None
    path = Path(config.checkpoint.removeprefix("local-dir:"))
    cards = (
        (path / "student" / "config.json", path / "config.json") if path.is_dir() else (path.parent / "config.json",)
    )
    card = next((card for card in cards if card.is_file()), None)
    wanted = config.name.split(".")[0]
    # Names of folders and of the hub, and old names, stand for a model that only timm can tell.
    if card is None or not re.fullmatch(r"\w+", wanted) or wanted in deprecated_names():
        return
    try:
        named = json.loads(card.read_text("utf-8"))["architecture"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # reading the weights tells what is wrong with the card
    if named not in (wanted, "reused_head"):  # how to use a student with its teacher's head is told later
        raise UserError(
            f"{key}.checkpoint={config.checkpoint}: holds {named}, which does not fit {key}.name={config.name}; set "
            f"{key}.name={named}"
        )


def check_teacher(config: TeacherConfig) -> None:
    if not config.head:
        _check_headless(config)
    one_of("teacher.average", config.average, AVERAGES)
    for number, member in enumerate(config.members):
        check_model(f"teacher.members[{number}]", member)
        above_zero(f"teacher.members[{number}].weight", member.weight)
        above_zero(f"teacher.members[{number}].temperature", member.temperature)
        _check_seed(f"teacher.members[{number}].seed", member.seed)
        _check_class_names(f"teacher.members[{number}]", member, config)
    _check_class_names("teacher", config, config)
    for number, assistant in enumerate(config.assistants):
        check_model(f"teacher.assistants[{number}]", assistant)
        _check_seed(f"teacher.assistants[{number}].seed", assistant.seed)
    one_of("teacher.precision", config.precision, PRECISIONS)
    one_of("teacher.fit.mode", config.fit.mode, FIT_MODES)
    at_least("teacher.fit.epochs", config.fit.epochs, 1)
    above_zero("teacher.fit.lr", config.fit.lr)
    at_least("teacher.fit.weight_decay", config.fit.weight_decay, 0)
    check_layer_decay("teacher.fit.layer_decay", config.fit.layer_decay)
    one_of("teacher.cache.mode", config.cache.mode, CACHE_MODES)
    at_least("teacher.cache.views", config.cache.views, 0)
    above_zero("teacher.cache.max_gb", config.cache.max_gb)


def _check_seed(key: str, seed: int | None) -> None:
    if seed is not None:
        at_least(key, seed, 0)


def _check_class_names(key: str, config: TeacherConfig | MemberConfig, teacher: TeacherConfig) -> None:
    """Files of names are for the classifier of a teacher that is given, not for one that is trained here."""
    for setting, file in (("class_map", config.class_map), ("classes", config.classes)):
        if file is None:
            continue
        check_existing(f"{key}.{setting}", file)
        given = config.checkpoint is not None or (config.pretrained and setting == "class_map")
        if teacher.fit.mode == "always" or not given:
            fixes = f"set {key}.checkpoint=PATH" + (f" or {key}.pretrained=true" if setting == "class_map" else "")
            raise UserError(f"{key}.{setting}={file}: {_OTHERS[setting]}; {fixes}, and keep teacher.fit.mode=auto")
    if config.classes is not None and not teacher.head:
        raise UserError(f"{key}.classes={config.classes}: a teacher without a head has no classes; leave the file out")


_OTHERS = {
    "class_map": "a teacher that is trained here has the classes of the data set",
    "classes": "it names the classes of a checkpoint, which other teachers name themselves",
}


def check_kinds_of_teachers(config: TrainConfig) -> None:
    """Peers and the mean teacher learn together with the student, and exclude every other kind of teacher."""
    for number, peer in enumerate(config.peers):
        check_model(f"peers[{number}]", peer)
    at_least("generations", config.generations, 1)
    others = [
        key
        for key, given in (
            ("teacher.assistants", bool(config.teacher.assistants)),
            ("generations", config.generations > 1),
            ("teacher.members", bool(config.teacher.members)),
        )
        if given
    ]
    if config.peers and config.teacher.mean:
        raise UserError(
            "peers and teacher.mean=true cannot be combined: both learn together with the student; choose one"
        )
    if others and (config.peers or config.teacher.mean):
        learning = "peers" if config.peers else "teacher.mean=true"
        raise UserError(
            f"{learning} and {others[0]} cannot be combined: a teacher that learns together with the student must be "
            "the only one; choose one"
        )
    if config.teacher.mean and config.trainer.ema is None:
        raise UserError(
            "teacher.mean=true: the teacher is the moving average of the student's weights; set e.g. trainer.ema=0.99"
        )


def check_reused_head(config: TrainConfig) -> None:
    """A SimKD student ends in the frozen classifier of a single teacher."""
    if reused_head_options(config.distill) is None:
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
                f"distill.terms.simkd and {setting} cannot be combined: the student reuses the head of a single "
                "teacher and trains everything else; leave one of them out"
            )


def _check_headless(config: TeacherConfig) -> None:
    if config.members:
        raise UserError("teacher.head=false: an ensemble gives logits only; use a single teacher or teacher.head=true")
    if config.fit.mode == "always" or not (config.checkpoint or config.pretrained):
        raise UserError(
            "teacher.head=false: a teacher without a head cannot be trained on labels; set teacher.checkpoint=PATH or "
            "teacher.pretrained=true, and keep teacher.fit.mode=auto"
        )


def check_checkpoint(key: str, value: str, model_name_allowed: bool = False) -> None:
    if value.startswith("local-dir:"):
        check_existing(key, value.removeprefix("local-dir:"), shown=value)
    elif not value.startswith(HUB_PREFIXES) and not (model_name_allowed and _is_model(value)):
        check_existing(key, value, others=model_names() if model_name_allowed else ())


def check_model_name(key: str, name: str) -> None:
    if not _is_model(name):
        hint = did_you_mean(name.split(".")[0], model_names())
        raise UserError(f"{key}={name}: timm has no such model{hint or '; see distill show models PATTERN'}")


def _is_model(name: str) -> bool:
    """Whether timm knows ``name``, with or without the tag of its weights. True if timm's names cannot be read."""
    known = model_names()
    return not known or name.split(".")[0] in known or name in deprecated_names()


def check_layer_decay(key: str, value: float | None) -> None:
    if value is not None and not 0 < value <= 1:
        raise UserError(f"{key}={value}: must be above 0 and at most 1, e.g. 0.75, or null")

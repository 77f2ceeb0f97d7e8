"""Keys that a config sets and that what it chose never reads: ``dataset.root=photos`` beside the built-in digits.

A run that leaves out what the user said is not the run that was asked for. What stands in a shipped config says nothing
of the user; so only what was typed, or stands in a config of the user's own, is looked at (:mod:`origin`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distillcli.config.compose import compose_raw, typed_config
from distillcli.config.datasets import DATASETS
from distillcli.config.model_names import optimizers_without_momentum
from distillcli.config.origin import Given, given_keys
from distillcli.config.overrides import normalise_overrides
from distillcli.config.schema import (
    AugmentConfig,
    DatasetConfig,
    DistillConfig,
    EvalConfig,
    ExportConfig,
    ModelConfig,
    OptimizerConfig,
    PredictConfig,
    ScheduleConfig,
    TeacherConfig,
    TrainConfig,
)
from distillcli.config.search import groups
from distillcli.config.terms import KNOWN_TERMS, SoftOptions, active_terms, needs_teacher, parsed_terms
from distillcli.errors import UserError

_WEIGHTS = ("checkpoint", "pretrained", "class_map")
_MODEL = ("name", "args", "image_size", "freeze", *_WEIGHTS)
_FIT = ("epochs", "lr", "weight_decay", "layer_decay")
# What a schedule of timm reads beside its warm-up.
_SCHEDULES = {
    "cosine": ("min_lr",),
    "tanh": ("min_lr",),
    "poly": ("min_lr", "decay_rate"),
    "wsd": ("min_lr", "decay_epochs"),
    "step": ("decay_epochs", "decay_rate"),
    "multistep": ("milestones", "decay_rate"),
    "constant": (),
}
_COMMANDS = {EvalConfig: "distill eval", ExportConfig: "distill export", PredictConfig: "distill predict"}
_EVAL_READS = ("device", "threads", "workers", "channels_last")


@dataclass(frozen=True)
class Unread:
    """``keys``: not read, nor what is below them. ``why``: in words, with the fix. ``by``: the key that decides."""

    keys: tuple[str, ...]
    why: str
    by: str

    def holds(self, key: str) -> bool:
        return any(key == own or key.startswith(f"{own}.") for own in self.keys)


def check_all_read(jobs: Sequence[tuple[object, Sequence[Given]]]) -> None:
    """Raise UserError for a key that was given and that no job reads.

    ``jobs``: the typed config of each, and what the user gave it. In a sweep it is enough that one job reads a key.
    """
    refusals: dict[str, str] = {}
    read: set[str] = set()
    for config, given in jobs:
        unread = list(_unread(config))
        for one in given:
            _check_label(one)
            reason = next((reason for reason in unread if reason.holds(one.key)), None)
            if reason is None or _is_default(config, one.key) or _is_overruled(one, reason.by, given):
                read.add(one.key)
            else:
                refusals.setdefault(one.key, f"{one.where}{one.key}={one.value}: not used, as {reason.why}")
    for key, refusal in refusals.items():
        if key not in read:
            raise UserError(refusal)


def _check_label(given: Given) -> None:
    """Objectives and recipes have names that only label them: ``distill.name=dkd`` trains no DKD."""
    group, _, rest = given.key.partition(".")
    if not given.file and group in ("distill", "augment") and rest == "name" and given.value in groups()[group]:
        raise UserError(f"{given.key}={given.value}: only a label; to choose it write {group}={given.value}")


def compose_for_user(primary: str, overrides: list[str]) -> object:
    """``compose`` for what a user typed: a key that nothing reads is refused as well."""
    overrides = normalise_overrides(primary, overrides)
    config = typed_config(primary, compose_raw(primary, overrides))
    check_all_read([(config, given_keys(primary, overrides))])
    return config


def _is_overruled(one: Given, by: str, given: Iterable[Given]) -> bool:
    """Whether a file sets a key for a choice that the command line then makes otherwise."""
    if one.file is None:
        return False
    own = Given(one.file.parent.name, one.file.stem)  # schedule=slow chooses schedule/slow.yaml itself
    typed = [other for other in given if other.file is None and other != own]
    return any(other.key == by or other.key.startswith(f"{by}.") for other in typed)


def _is_default(config: object, key: str) -> bool:
    """Whether a key has the value of the schema, which says nothing; False for a group, as in ``teacher=resnet18``."""
    *path, last = key.split(".")
    owner: Any = config
    for part in path:
        owner = getattr(owner, part) if dataclasses.is_dataclass(owner) else None
    if not dataclasses.is_dataclass(owner) or isinstance(owner, type):
        return False
    value = getattr(owner, last)
    return not dataclasses.is_dataclass(value) and bool(value == getattr(type(owner)(), last))


# --- what is not read ---------------------------------------------------------------------------------------------


def _unread(config: object) -> Iterator[Unread]:
    if isinstance(config, TrainConfig):
        yield from _of_dataset(config.dataset)
        yield from _of_teacher(config)
        yield from _of_objective(config.distill)
        yield from _of_optimizer(config.optimizer)
        yield from _of_schedule(config.schedule)
        yield from _of_augment(config.augment, config.dataset.channels)
    elif isinstance(config, (EvalConfig, ExportConfig, PredictConfig)):
        command = _COMMANDS[type(config)]
        reads = " and ".join(f"trainer.{name}" for name in _EVAL_READS)
        others = [field.name for field in dataclasses.fields(config.trainer) if field.name not in _EVAL_READS]
        yield Unread(_below("trainer", others), f"{command} trains nothing and reads {reads}; leave it out", command)
        if not isinstance(config, PredictConfig) and config.dataset is not None:
            yield from _of_dataset(config.dataset)


def _below(group: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{group}.{name}" for name in names)


def _of_dataset(config: DatasetConfig) -> Iterator[Unread]:
    for name in sorted({key for known in DATASETS.values() for key in known.keys}):
        if name in DATASETS[config.name].keys:
            continue
        if name == "split_seed" and (config.labelled < 1 or config.label_noise > 0):
            continue  # it also says which labels are kept, and which are wrong
        readers = [other for other, known in DATASETS.items() if name in known.keys]
        listed = ", ".join(readers[:6]) + (", ..." if len(readers) > 6 else "")
        why = f"dataset={config.name} does not read it; choose dataset={listed}, or leave it out"
        yield Unread((f"dataset.{name}",), why, "dataset")


def _of_teacher(config: TrainConfig) -> Iterator[Unread]:
    teacher = config.teacher
    if not needs_teacher(config.distill):
        why = f"no term of distill={config.distill.name} learns from a teacher; choose e.g. distill=kd, or leave it out"
        yield Unread(("teacher", "peers", "generations"), why, "distill")
    elif config.peers:
        why = "the students of peers teach each other and there is no other teacher; set peers=[] or leave it out"
        yield Unread(("teacher",), why, "peers")
    elif teacher.mean:
        others = [name for name in dataclasses.asdict(teacher) if name not in ("mean", "precision")]
        why = "with teacher.mean=true the student's own average teaches it; choose another teacher, or leave it out"
        yield Unread(_below("teacher", others), why, "teacher")
    else:
        yield from _of_fixed_teacher(teacher)


def _of_fixed_teacher(config: TeacherConfig) -> Iterator[Unread]:
    if config.members:
        why = "the teachers are teacher.members; write it there for each, or set teacher.members=[]"
        yield Unread(_below("teacher", _MODEL), why, "teacher.members")
    else:
        yield Unread(("teacher.average",), "there is one teacher; choose teacher=ensemble, or leave it out", "teacher")
    models: Sequence[ModelConfig] = config.members or [config]
    if config.fit.mode == "never":
        why = "teacher.fit.mode=never fits no teacher; set teacher.fit.mode=auto, or leave it out"
        yield Unread(_below("teacher.fit", _FIT), why, "teacher.fit.mode")
    elif config.fit.mode == "auto" and all(model.checkpoint is not None for model in models):
        why = "teacher.checkpoint serves as it is; set teacher.fit.mode=always to train it further, or leave it out"
        yield Unread((*_below("teacher.fit", _FIT), "teacher.freeze"), why, "teacher.checkpoint")
    if config.cache.mode == "off":
        why = "teacher.cache.mode=off keeps no answers; leave one of them out"
        yield Unread(("teacher.cache.max_gb", "teacher.cache.dir"), why, "teacher.cache.mode")


def _of_objective(config: DistillConfig) -> Iterator[Unread]:
    active = active_terms(config)
    softened = [name for name, term in active.items() if isinstance(term, SoftOptions)]
    if not any(isinstance(term, SoftOptions) and term.temperature is None for term in active.values()):
        terms = ", ".join(f"distill.terms.{name}.temperature" for name in softened)
        soft = ", ".join(name for name, known in KNOWN_TERMS.items() if issubclass(known.options, SoftOptions))
        why = (
            f"{terms} is set; change that, or leave it out"
            if softened
            else f"no term of distill={config.name} has a temperature; add one of {soft}, or leave it out"
        )
        yield Unread(("distill.temperature", "distill.temperature_end"), why, "distill")
    for name, options in parsed_terms(config).items():
        if name not in active:
            others = [field.name for field in dataclasses.fields(options) if field.name != "weight"]
            why = f"{name} has weight 0 in the sum; change distill.terms.{name}.weight or distill.alpha"
            yield Unread(_below(f"distill.terms.{name}", others), why, "distill")


def _of_optimizer(config: OptimizerConfig) -> Iterator[Unread]:
    if config.name.lower().removeprefix("lookahead_") in optimizers_without_momentum():
        why = f"optimizer={config.name} has no momentum; choose e.g. optimizer=sgd, or leave it out"
        yield Unread(("optimizer.momentum",), why, "optimizer")


def _of_schedule(config: ScheduleConfig) -> Iterator[Unread]:
    for name in sorted({key for keys in _SCHEDULES.values() for key in keys} - set(_SCHEDULES[config.name])):
        readers = " or ".join(schedule for schedule, keys in _SCHEDULES.items() if name in keys)
        why = f"schedule.name={config.name} does not read it; {readers} does"
        yield Unread((f"schedule.{name}",), why, "schedule")
    if not config.warmup_epochs:
        why = "schedule.warmup_epochs=0; set that above 0, or leave it out"
        yield Unread(("schedule.warmup_lr",), why, "schedule")


def _of_augment(config: AugmentConfig, channels: int) -> Iterator[Unread]:
    if config.policy != "randaugment":
        why = f"augment.policy={config.policy}; only augment.policy=randaugment reads it"
        yield Unread(("augment.policy_ops", "augment.policy_magnitude"), why, "augment")
    if not config.mixup and not config.cutmix:
        why = "nothing is mixed; set augment.mixup or augment.cutmix above 0"
        yield Unread(("augment.mix_probability",), why, "augment")
    if list(config.crop_area) == [1.0, 1.0]:
        why = "augment.crop_area=[1,1] crops nothing; set e.g. augment.crop_area=[0.35,1]"
        yield Unread(("augment.crop_ratio",), why, "augment")
    if channels == 1:
        why = "dataset.channels=1 has no colours; leave it out"
        yield Unread(("augment.saturation", "augment.hue"), why, "dataset.channels")

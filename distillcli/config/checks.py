"""Ranges and cross-checks of a composed config: everything that can be refused before anything heavy is imported.

Every refusal is a UserError of one line: key, value, fix.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from distillcli.config.check_batches import check_batches
from distillcli.config.check_data import check_augment, check_colours, check_dataset
from distillcli.config.check_models import (
    PRECISIONS,
    check_checkpoint,
    check_kinds_of_teachers,
    check_layer_decay,
    check_model,
    check_model_name,
    check_reused_head,
    check_teacher,
)
from distillcli.config.job import is_main_process, may_be_restarted
from distillcli.config.model_names import SCHEDULES, optimizer_names
from distillcli.config.ranges import above_zero, at_least, check_known, check_two_shares, one_of, path_exists
from distillcli.config.schema import (
    DistillConfig,
    EvalConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
)
from distillcli.config.terms import check_terms
from distillcli.errors import UserError, did_you_mean

SELECTIONS = ("last", "best")
FORMATS = ("table", "json")
LOWEST_TEMPERATURE = 0.01
LONGEST_NAME = 200  # bytes; file systems take 255


def check_train(config: TrainConfig) -> None:
    """Raise UserError for the first thing in ``config`` that cannot work."""
    _check_trainer(config.trainer)
    _check_run_name(config.name)
    at_least("seed", config.seed, 0)
    _check_distill(config.distill)
    _check_optimizer(config.optimizer)
    check_schedule(config.schedule, config.trainer.epochs)
    check_augment(config.augment)
    check_model("student", config.student)
    if not config.teacher.members and not config.teacher.mean and not config.peers:
        check_model("teacher", config.teacher)
    check_teacher(config.teacher)
    check_kinds_of_teachers(config)
    check_reused_head(config)
    check_dataset(config.dataset)
    check_colours(config.augment, config.dataset.channels)
    check_batches(config)
    _check_folders(config)


def check_eval(config: EvalConfig) -> None:
    """Raise UserError for the first thing in ``config`` that cannot work."""
    _check_trainer(config.trainer)
    if config.checkpoint is None:
        raise UserError("distill eval needs checkpoint=...: a run folder, a checkpoint file or a timm model name")
    one_of("format", config.format, FORMATS)
    check_checkpoint("checkpoint", config.checkpoint, model_name_allowed=True)
    if config.model is not None:
        check_model_name("model", config.model)
    if config.dataset is not None:
        check_dataset(config.dataset)


def _check_run_name(name: str) -> None:
    """Letters and digits of any script, with their accents (category M), as what becomes a folder's name."""
    plain = all(char.isalnum() or char in "._+-" or unicodedata.category(char).startswith("M") for char in name)
    if not name or not plain or name.startswith("."):
        raise UserError(f"name={name!r}: becomes a folder name; use letters, digits and . _ + -")
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(f"name={name[:20]}...: becomes a folder name; use at most {LONGEST_NAME} bytes")


def _check_distill(config: DistillConfig) -> None:
    if config.temperature <= 0:
        raise UserError(f"distill.temperature={config.temperature}: must be above 0; 1 to 8 is usual")
    if config.temperature_end is not None:
        above_zero("distill.temperature_end", config.temperature_end)
    for key, value in (("temperature", config.temperature), ("temperature_end", config.temperature_end)):
        if value is not None and value < LOWEST_TEMPERATURE:
            raise UserError(f"distill.{key}={value}: must be at least {LOWEST_TEMPERATURE}, or logits overflow; try 1")
    if config.alpha is not None and not 0 <= config.alpha <= 1:
        raise UserError(f"distill.alpha={config.alpha}: must be in [0, 1], or null for a plain weighted sum")
    if not config.terms:
        raise UserError("distill.terms is empty: add at least one, e.g. distill.terms.kl.weight=1 (distill show terms)")
    check_terms(config)


def _check_optimizer(config: OptimizerConfig) -> None:
    name = config.name.lower().removeprefix("lookahead_")
    check_known("optimizer.name", name, optimizer_names())
    above_zero("optimizer.lr", config.lr)
    at_least("optimizer.weight_decay", config.weight_decay, 0)
    check_layer_decay("optimizer.layer_decay", config.layer_decay)
    if not 0 <= config.momentum < 1:
        raise UserError(f"optimizer.momentum={config.momentum}: must be in [0, 1)")


def check_schedule(config: ScheduleConfig, epochs: int) -> None:
    """Raise UserError for a schedule longer than ``epochs``, the budget of the student or of the teacher."""
    check_known("schedule.name", config.name, SCHEDULES)
    for key in ("warmup_epochs", "warmup_lr", "min_lr"):
        at_least(f"schedule.{key}", getattr(config, key), 0)
    if config.warmup_epochs >= epochs:
        raise UserError(
            f"schedule.warmup_epochs={config.warmup_epochs}: must be less than the {epochs} epochs of training"
        )
    above_zero("schedule.decay_epochs", config.decay_epochs)
    if config.name == "wsd" and config.decay_epochs > epochs - config.warmup_epochs:
        raise UserError(
            f"schedule.decay_epochs={config.decay_epochs}: wsd warms up and decays within {epochs} epochs; "
            "make it shorter"
        )
    above_zero("schedule.decay_rate", config.decay_rate)
    if config.name == "multistep" and not config.milestones:
        raise UserError("schedule.milestones is empty: multistep needs epochs, e.g. schedule.milestones=[6,8]")
    if sorted(set(config.milestones)) != list(config.milestones) or any(epoch < 1 for epoch in config.milestones):
        raise UserError(f"schedule.milestones={config.milestones}: must be ascending epochs from 1")


def _check_trainer(config: TrainerConfig) -> None:
    for key in ("epochs", "batch_size", "accumulate"):
        at_least(f"trainer.{key}", getattr(config, key), 1)
    if config.batch_size % config.accumulate:
        sizes = f"trainer.batch_size={config.batch_size} is not divisible by trainer.accumulate={config.accumulate}"
        raise UserError(f"{sizes}; every micro-batch must have the same size")
    one_of("trainer.precision", config.precision, PRECISIONS)
    one_of("trainer.select", config.select, SELECTIONS)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        hint = did_you_mean(config.device, ("auto", "cpu", "cuda", "mps"))
        if config.device.lower().startswith("gpu"):
            hint = f"; did you mean '{config.device.lower().replace('gpu', 'cuda')}'?"
        raise UserError(f"trainer.device={config.device!r}: use auto, cpu, cuda, cuda:N or mps{hint}")
    at_least("trainer.workers", config.workers, 0)
    above_zero("trainer.checkpoint_minutes", config.checkpoint_minutes)
    if config.threads is not None:
        at_least("trainer.threads", config.threads, 1)
    if config.progressive is not None:
        check_two_shares("trainer.progressive", config.progressive)
    if config.clip_grad is not None:
        above_zero("trainer.clip_grad", config.clip_grad)
    if config.ema is not None and not 0 < config.ema < 1:
        raise UserError(f"trainer.ema={config.ema}: must be a decay between 0 and 1, e.g. 0.9998, or null")


def _check_folders(config: TrainConfig) -> None:
    if config.resume is not None or not is_main_process():  # by now the main process has claimed the folder
        return
    if config.out is None and may_be_restarted():
        raise UserError("torchrun --max-restarts: what is started again must find its run; name a folder, out=FOLDER")
    for key, value in (("out", config.out), ("runs", config.runs)):
        if value is not None and path_exists(value) and not Path(value).is_dir():
            raise UserError(f"{key}={value}: is a file; name a folder")
    if config.out is not None and path_exists(config.out) and any(Path(config.out).iterdir()):
        fix = f"continue it with resume={config.out}, or name another folder"
        raise UserError(f"out={config.out}: the folder exists and is not empty; {fix}")

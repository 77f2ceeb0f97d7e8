"""The engine: fits a model to labels, to a teacher, or to both. Teacher, student and control all come out of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distillcli.config.schema import TrainConfig
from distillcli.errors import Interrupted, UserError
from distillcli.models.backbone import Backbone, place
from distillcli.runtime import (
    Runtime,
    any_rank,
    autocast,
    resolve_precision,
    seed_everything,
    share_buffers,
)
from distillcli.signals import Stop
from distillcli.teachers.frozen import FrozenTeacher, Teacher
from distillcli.terms.objective import Objective
from distillcli.training.evaluation import evaluate
from distillcli.training.learners import Distillation, MutualLearning
from distillcli.training.optim import build_optimizer, build_schedule
from distillcli.training.state import Keeper, State
from distillcli.training.totals import Totals
from distillcli.types import Batch, Output
from distillcli.views.epochs import view_size
from distillcli.views.loader import Data


class Progress(Protocol):
    """Whoever watches a fit."""

    def step(self, loss: float | None) -> None: ...

    def epoch(self, train: dict[str, Any], evaluation: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Session:
    """What all the fits of one command share. ``watch``: (label, epochs, steps per epoch, steps done) -> a watcher."""

    runtime: Runtime
    stop: Stop
    command: str
    watch: Callable[[str, int, int, int], AbstractContextManager[Progress]]
    say: Callable[[str], None]
    warn: Callable[[str], None]


@dataclass(frozen=True)
class Fitted:
    """``best`` and ``last``: epoch and validation numbers; the images a second are those of training alone."""

    backbone: Backbone
    best: dict[str, float]
    last: dict[str, float]
    images_per_second: float | None


def train_step(
    parts: list[Batch],
    teacher: Teacher | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    precision: str,
    clip_grad: float | None,
    epoch: float,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """One optimizer step on a batch given as micro-batches; returns loss, value of each term, norm of the gradient.

    Everything returned stays on the device: reading it here would make the device wait.
    """
    device = parts[0].images.device
    loss, values = torch.zeros((), device=device), dict[str, Tensor]()
    for number, batch in enumerate(parts):
        target = None if teacher is None else teacher(batch)
        last = number == len(parts) - 1
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            with autocast(device, precision):
                part, terms = model(batch, target, epoch)
            scaler.scale(part / len(parts)).backward()
        loss = loss + part.detach() / len(parts)
        for name, value in terms.items():
            values[name] = values.get(name, torch.zeros((), device=device)) + value / len(parts)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf") if clip_grad is None else clip_grad)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss, values, norm


def fit(
    config: TrainConfig,
    data: Data,
    student: Backbone,
    objective: Objective,
    teacher: Teacher | None,
    folder: Path,
    recipe: str,
    label: str,
    session: Session,
    peers: Sequence[Backbone] = (),
) -> Fitted:
    """Train ``student`` as ``config`` says, from the last checkpoint in ``folder`` if there is one.

    Writes ``metrics.jsonl`` and ``checkpoints/``. ``recipe``: the fingerprint of what is trained, kept in the
    checkpoints. ``peers`` learn with the student and teach it. With nobody to teach, only the labelled images are
    shown, for as many steps as all of them would take. Raises Interrupted after saving when ``stop`` was requested,
    NumericError on a non-finite loss, UserError when the folder holds another recipe or the objective does not fit the
    loop.
    """
    runtime, trainer, device = session.runtime, config.trainer, session.runtime.device
    if trainer.accumulate > 1 and objective.whole_batch_terms:
        raise UserError(
            f"trainer.accumulate={trainer.accumulate}: {', '.join(objective.whole_batch_terms)} compares the samples "
            "of a whole batch; use trainer.accumulate=1"
        )
    if runtime.world > 1 and objective.remembering_terms:
        raise UserError(
            f"distill.terms: {', '.join(objective.remembering_terms)} remembers what it saw, and {runtime.world}"
            " processes would remember different images; train in one process"
        )
    if trainer.batch_size % (runtime.world * trainer.accumulate):
        raise UserError(
            f"trainer.batch_size={trainer.batch_size}: not divisible by {runtime.world} processes times "
            f"trainer.accumulate={trainer.accumulate}; images would be left out"
        )
    precision = resolve_precision(trainer.precision, device)
    for backbone in (student, *peers):
        place(backbone, device, trainer.channels_last)
    objective.to(device)
    model = MutualLearning(student, peers, objective) if peers else Distillation(student, objective)
    if config.student.freeze != "none":
        trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
        session.say(
            f"{label}: {trained:,} of its {student.spec.params:,} parameters are trained, the others are frozen"
        )
    optimizer = build_optimizer(config.optimizer, [backbone.net for backbone in (student, *peers)], objective)
    train = data.train if objective.compares_teacher else data.train.labelled()
    steps = train.steps_per_epoch(trainer.batch_size)
    schedule = build_schedule(config.schedule, optimizer, trainer.epochs, steps)
    state = State(
        model=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        ema=None if trainer.ema is None else ModelEmaV3(student, decay=trainer.ema, use_warmup=True),
    )
    if config.teacher.mean and objective.compares_teacher:
        assert state.ema is not None  # the checks of the config ask for trainer.ema
        own_precision = resolve_precision(config.teacher.precision, device, teacher=True)
        teacher = FrozenTeacher(state.deployed, own_precision, objective.teacher_taps)
    keeper = Keeper(config, data, folder, recipe, runtime, state)
    keeper.resume(session.warn)
    if state.step == 0 and teacher is not None:
        for name, term in objective.prepared_terms.items():
            session.say(f"{name}: learns from the teacher before the student does, epochs: {term.prepare_epochs}")
            seed_everything(config.seed, "prepare", name)
            term.prepare(_answers(config, data, teacher, term.prepare_epochs, session))
    if trainer.compile:
        # To launch its kernels one by one takes a small student longer than to run them: a GPU replays them as graphs.
        student.compile(mode="reduce-overhead" if device.type == "cuda" else "default")
    wrapped: nn.Module = model
    if runtime.world > 1:
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)

    seen, seconds = 0, 0.0
    with session.watch(label, trainer.epochs, steps, state.step) as progress:
        while state.step < trainer.epochs * steps:
            epoch, first_step = state.step // steps + 1, state.step % steps
            totals = Totals(device, skips_overflow=state.scaler.is_enabled())
            started = time.perf_counter()
            for parts in train.epoch(
                config.augment,
                config.seed,
                epoch,
                trainer.batch_size,
                trainer.accumulate,
                first_step,
                config.teacher.cache.views,
                view_size(config.dataset.image_size, trainer.progressive, epoch, trainer.epochs),
            ):
                seed_everything(config.seed, "step", state.step, runtime.rank)
                schedule.step_update(state.step)
                loss, values, norm = train_step(
                    parts, teacher, wrapped, optimizer, state.scaler, precision, trainer.clip_grad, state.step / steps
                )
                state.step += 1
                if state.ema is not None:
                    state.ema.update(student, step=state.step)
                totals.add(state.step, loss, values, norm)
                progress.step(None)
                if state.step % steps == 0:
                    continue  # the end of an epoch is saved together with its evaluation
                stopping = any_rank(bool(session.stop.exit_code), runtime)
                if stopping or keeper.is_due():
                    totals.check(config, label, epoch, runtime)
                    keeper.save()
                if stopping:
                    raise Interrupted("interrupted", session.stop.exit_code or 143)
            totals.check(config, label, epoch, runtime)
            elapsed = time.perf_counter() - started
            images = totals.count * min(trainer.batch_size, len(train.shown))
            seen, seconds = seen + images, seconds + elapsed
            row = {"kind": "train", "epoch": epoch, "step": state.step, **totals.means(runtime)}
            row |= {"lr": max(group["lr"] for group in optimizer.param_groups)}
            row |= {"images_per_second": images / elapsed, "seconds": elapsed}
            share_buffers(state.deployed, runtime)
            # Without labels only the teacher can tell how good an epoch is; where there are some, it costs time.
            judge = None if teacher is None or data.val.has_labels else teacher.live
            numbers = evaluate(state.deployed, data.val, runtime, teacher=judge)
            keeper.epoch_done(epoch, row, numbers)
            progress.epoch(row, {"split": "val", **numbers})
            if any_rank(bool(session.stop.exit_code), runtime):
                raise Interrupted("interrupted", session.stop.exit_code or 143)
    return Fitted(state.deployed, state.best, state.last, seen / seconds if seconds else None)


def _answers(config: TrainConfig, data: Data, teacher: Teacher, epochs: int, session: Session) -> Iterator[Output]:
    """What the teacher says to the batches of the first epochs. Raises Interrupted: there is nothing to save yet."""
    for epoch in range(1, epochs + 1):
        batches = data.train.epoch(
            config.augment, config.seed, epoch, config.trainer.batch_size, cycle=config.teacher.cache.views
        )
        for batch in itertools.chain.from_iterable(batches):
            if any_rank(bool(session.stop.exit_code), session.runtime):
                raise Interrupted("interrupted", session.stop.exit_code or 143)
            yield teacher(batch)

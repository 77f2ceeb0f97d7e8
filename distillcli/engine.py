"""The engine: fits a model to labels, to a teacher, or to both. Teacher, student and control all come out of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distillcli.checkpoint import load_last, remove_leftovers, save_checkpoint, save_last
from distillcli.config.schema import TrainConfig
from distillcli.data.epochs import side
from distillcli.data.loader import Data
from distillcli.errors import Interrupted, NumericError, UserError
from distillcli.evaluation import evaluate
from distillcli.models import Backbone, place
from distillcli.objective import Objective
from distillcli.optim import build_optimizer, build_schedule
from distillcli.run_folder import append_metrics, rewind_metrics
from distillcli.runtime import (
    Runtime,
    any_rank,
    autocast,
    resolve_precision,
    seed_everything,
    share_buffers,
    sum_over_ranks,
)
from distillcli.signals import Stop
from distillcli.teachers import FrozenTeacher, Teacher
from distillcli.types import Batch, Output

Numbers = dict[str, float]


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


class MutualLearning(nn.Module):
    """Students that teach each other (deep mutual learning: Zhang et al., CVPR 2018), the first of them the main one.

    The loss is the sum over the students of the mean, over the others, of the objective with that other as teacher.
    All learn in one step from outputs of the same weights; the paper updates them in turn. What is reported as the
    value of each term is the main student's.
    """

    def __init__(self, student: Backbone, peers: Sequence[Backbone], objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.peers = nn.ModuleList(peers)
        self.objective = objective

    def forward(self, batch: Batch, target: None, epoch: float) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = [student(batch.images) for student in (self.student, *self.peers)]
        fixed = [Output(output.logits.detach(), None, {}) for output in outputs]
        lessons = [
            [self.objective(output, other, batch, epoch) for place, other in enumerate(fixed) if place != own]
            for own, output in enumerate(outputs)
        ]
        others = len(self.peers)
        total = torch.stack([loss for lesson in lessons for loss, _ in lesson]).sum() / others
        names = lessons[0][0][1]
        values = {name: torch.stack([values[name] for _, values in lessons[0]]).mean() for name in names}
        return total, values


class Distillation(nn.Module):
    """Student and objective as one module, so that DistributedDataParallel sees every trained parameter."""

    def __init__(self, student: Backbone, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, batch: Batch, target: Output | None, epoch: float) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.student(batch.images, self.objective.student_taps)
        total, values = self.objective(output, target, batch, epoch)
        return total, values


@dataclass
class State:
    """All that changes while training, and all that a checkpoint holds."""

    model: Distillation | MutualLearning
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)  # epoch and numbers of the validation data
    last: dict[str, float] = field(default_factory=dict)

    @property
    def deployed(self) -> Backbone:
        """The weights that are evaluated and exported: the moving average if there is one."""
        backbone = self.model.student if self.ema is None else self.ema.module
        assert isinstance(backbone, Backbone)
        return backbone

    @property
    def peers(self) -> list[Backbone]:
        if isinstance(self.model, Distillation):
            return []
        return [peer for peer in self.model.peers if isinstance(peer, Backbone)]

    def weights(self) -> dict[str, Any]:
        return {
            "student": self.model.student.net.state_dict(),
            "ema": None if self.ema is None else self.ema.module.net.state_dict(),
        }

    def everything(self) -> dict[str, Any]:
        return self.weights() | {
            "objective": self.model.objective.state_dict(),
            "peers": [peer.net.state_dict() for peer in self.peers],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "last": self.last,
        }

    def restore(self, content: dict[str, Any]) -> None:
        self.model.student.net.load_state_dict(content["student"])
        self.model.objective.load_state_dict(content["objective"])
        for peer, weights in zip(self.peers, content["peers"], strict=True):
            peer.net.load_state_dict(weights)
        if self.ema is not None:
            self.ema.module.net.load_state_dict(content["ema"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.step, self.best, self.last = content["step"], content["best"], content["last"]


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
    keeper.resume(session)
    if state.step == 0 and teacher is not None:
        for name, term in objective.prepared_terms.items():
            session.say(f"{name}: learns from the teacher for {term.prepare_epochs} epochs before the student does")
            seed_everything(config.seed, "prepare", name)
            term.prepare(_answers(config, data, teacher, term.prepare_epochs, session))
    if trainer.compile:
        student.compile()
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
                side(config.dataset.image_size, trainer.progressive, epoch, trainer.epochs),
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
                    totals.check(config, epoch, runtime)
                    keeper.save()
                if stopping:
                    raise Interrupted("interrupted", session.stop.exit_code or 143)
            totals.check(config, epoch, runtime)
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


class Keeper:
    """Keeps what a run folder must hold while training: checkpoints, the best epoch, the rows of metrics."""

    def __init__(
        self, config: TrainConfig, data: Data, folder: Path, recipe: str, runtime: Runtime, state: State
    ) -> None:
        self.folder = folder
        self.runtime = runtime
        self.state = state
        self.identity = {
            "model": {"name": config.student.name, "args": config.student.args},
            "classes": list(data.source.classes),
            "image_size": state.model.student.image_size,
            "recipe": recipe,
        }
        self.interval = 60 * config.trainer.checkpoint_minutes
        self.saved_at = time.monotonic()
        self.steps_per_epoch = data.train.steps_per_epoch(config.trainer.batch_size)

    def resume(self, session: Session) -> None:
        if self.runtime.is_main:
            remove_leftovers(self.folder)
        content, warning = load_last(self.folder)
        if warning is not None:
            session.warn(warning)
        if content is None:
            return
        if content["recipe"] != self.identity["recipe"]:
            raise UserError(
                f"{self.folder}: its checkpoint belongs to another recipe (models, data, objective or budget differ); "
                "start a new run"
            )
        self.state.restore(content)
        if self.runtime.is_main:
            rewind_metrics(self.folder, self.state.step // self.steps_per_epoch)

    def is_due(self) -> bool:
        return any_rank(time.monotonic() - self.saved_at > self.interval, self.runtime)

    def save(self) -> None:
        if self.runtime.is_main:
            save_last(self.folder, self.state.everything() | self.identity)
        self.saved_at = time.monotonic()

    def epoch_done(self, epoch: int, train: dict[str, Any], numbers: Numbers) -> None:
        """Record an epoch."""
        state = self.state
        state.last = {"epoch": epoch, **numbers}
        is_best = not state.best or merit(state.last) > merit(state.best)
        state.best = state.last if is_best else state.best
        if self.runtime.is_main:
            if is_best:
                save_checkpoint(self.folder / "checkpoints" / "best.pt", state.weights() | self.identity)
            append_metrics(self.folder, train)
            append_metrics(self.folder, {"kind": "eval", "epoch": epoch, "step": state.step, "split": "val", **numbers})
        self.save()


def merit(numbers: Numbers) -> tuple[float, ...]:
    """Orders epochs: by accuracy, and on equal accuracy the more confident one is better.

    Without labels the epoch closest to the teacher is the best, and where it has no classes to compare, the last.
    """
    if "top1" in numbers:
        return numbers["top1"], -numbers["nll"]
    return (-numbers["kl_to_teacher"],) if "kl_to_teacher" in numbers else (numbers["epoch"],)


class Totals:
    """Sums of an epoch, kept on the device. ``skips_overflow``: steps of a non-finite gradient are not taken."""

    def __init__(self, device: torch.device, skips_overflow: bool) -> None:
        self.count = 0
        self.skips_overflow = skips_overflow
        self.sums: dict[str, Tensor] = {}
        self.first_bad = torch.full((), float("inf"), device=device)

    def add(self, step: int, loss: Tensor, values: dict[str, Tensor], norm: Tensor) -> None:
        self.count += 1
        rows = {"loss": loss, **{f"loss/{name}": value for name, value in values.items()}, "grad_norm": norm}
        for name, value in rows.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        # A gradient that is not finite has already spoilt the weights, even where the loss before was sound.
        sound = torch.isfinite(loss) if self.skips_overflow else torch.isfinite(loss) & torch.isfinite(norm)
        bad = torch.where(sound, float("inf"), float(step))
        self.first_bad = torch.minimum(self.first_bad, bad)

    def check(self, config: TrainConfig, epoch: int, runtime: Runtime) -> None:
        """Raise NumericError if a loss or gradient was not finite; called before anything is saved."""
        first = self.first_bad.item()
        if any_rank(first != float("inf"), runtime):
            raise NumericError(
                f"the loss or its gradient was not finite at step {first:.0f} (epoch {epoch}, "
                f"optimizer.lr={config.optimizer.lr}); the last checkpoint is from before; lower optimizer.lr, set "
                "trainer.clip_grad=1 or trainer.precision=fp32"
            )

    def means(self, runtime: Runtime) -> Numbers:
        count = max(1, self.count) * runtime.world
        return {name: (sum_over_ranks(total, runtime) / count).item() for name, total in self.sums.items()}

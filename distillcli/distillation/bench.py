"""Where the time of a training step goes, against what the device can do."""

from __future__ import annotations

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Iterator

import torch
from torch import nn

from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.config.terms import needs_teacher
from distillcli.distillation.students import student_model
from distillcli.models.backbone import build, describe, place
from distillcli.report.bench import Profile
from distillcli.runtime import PRECISIONS, Runtime, autocast, resolve_precision, seed_everything
from distillcli.teachers.frozen import FrozenTeacher, as_teacher, describe_teacher, members_of
from distillcli.terms.base import Setting
from distillcli.terms.objective import Objective
from distillcli.training.learners import Distillation
from distillcli.training.optim import build_optimizer
from distillcli.types import Batch, Taps
from distillcli.views.loader import Data

PARTS = ("data", "teacher", "forward", "backward", "optimizer")
WARM_UP, STEPS, SECONDS = 3, 30, 15.0


def profile(config: TrainConfig, data: Data, runtime: Runtime) -> Profile:
    """Take some tens of steps of ``config`` apart. Teacher and student have fresh weights: they cost what any do."""
    trainer, device, classes = config.trainer, runtime.device, len(data.source.classes)
    size, channels = config.dataset.image_size, config.dataset.channels
    with_teacher = needs_teacher(config.distill)
    student_config = student_model(config, classes)
    student_spec = describe(student_config, classes, size, "student", channels)
    teacher_spec = describe_teacher(config, classes) if with_teacher else None
    seed_everything(config.seed, "profile")
    setting = Setting(student_spec, teacher_spec, data.source.train.labels, trainer.epochs)
    objective = Objective(config.distill, setting)
    student = build(ModelConfig(student_config.name, args=student_config.args), classes, size, "student", channels)
    model = Distillation(place(student, device, trainer.channels_last), objective.to(device))
    teacher = _fresh_teacher(config, objective.teacher_taps, classes, runtime) if with_teacher else None
    precision = resolve_precision(trainer.precision, device)
    times = step_times(config, data, model, teacher, precision, runtime)

    milliseconds = {part: 1000 * statistics.median(times[part]) for part in PARTS}
    precisions = {precision} | ({teacher.precision} if teacher else set())
    peaks = {name: peak_flops(device, PRECISIONS[name]) for name in sorted(precisions)}

    def share(macs: int, spent: float, of: str) -> float:
        return 2 * macs * trainer.batch_size / (spent / 1000) / peaks[of]

    return Profile(
        batch_size=trainer.batch_size,
        precision=precision,
        teacher_precision=teacher.precision if teacher else None,
        milliseconds=milliseconds,
        peak_flops=peaks,
        student_share=share(3 * student_spec.macs, milliseconds["forward"] + milliseconds["backward"], precision),
        teacher_share=None
        if teacher is None or teacher_spec is None
        else share(teacher_spec.macs, milliseconds["teacher"], teacher.precision),
        memory_bytes=peak_memory(device),
    )


class Clock:
    """Charges the time since the last mark to a part of the step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.last = time.perf_counter()

    def mark(self, part: str) -> None:
        wait_for(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now


def step_times(
    config: TrainConfig,
    data: Data,
    model: Distillation,
    teacher: FrozenTeacher | None,
    precision: str,
    runtime: Runtime,
) -> dict[str, list[float]]:
    """Seconds of each part of step after step, waiting for the device between the parts."""
    trainer, device = config.trainer, runtime.device
    optimizer = build_optimizer(config.optimizer, [model.student.net], model.objective)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    model.train()
    begun, clock = time.perf_counter(), Clock(device)
    for number, parts in enumerate(_batches(config, data)):
        clock.mark("data")
        for batch in parts:
            target = None if teacher is None else teacher(batch)
            clock.mark("teacher")
            with autocast(device, precision):
                loss, _ = model(batch, target, 0.0)
            clock.mark("forward")
            scaler.scale(loss / len(parts)).backward()
            clock.mark("backward")
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), float("inf") if trainer.clip_grad is None else trainer.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        clock.mark("optimizer")
        if number >= WARM_UP:
            for part, seconds in clock.seconds.items():
                times[part].append(seconds)
            if len(times["data"]) == STEPS or time.perf_counter() - begun > SECONDS:
                break
        clock = Clock(device)
    return times


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of two square matrices, the best of five: a peak that can be reached."""
    side = 1024 if device.type == "cpu" else 8192  # GPUs have more to fill
    left, right = torch.rand(2, side, side, device=device).to(dtype)
    times = []
    for _ in range(6):
        wait_for(device)
        started = time.perf_counter()
        left @ right
        wait_for(device)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times[1:])


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _batches(config: TrainConfig, data: Data) -> Iterator[list[Batch]]:
    trainer = config.trainer
    for epoch in itertools.count(1):
        yield from data.train.epoch(config.augment, config.seed, epoch, trainer.batch_size, trainer.accumulate)


def _fresh_teacher(config: TrainConfig, taps: Taps, classes: int, runtime: Runtime) -> FrozenTeacher:
    dataset, layout = config.dataset, config.trainer.channels_last
    models = [ModelConfig(member.teacher.name, args=member.teacher.args) for member in members_of(config)]
    backbones = [
        place(build(model, classes, dataset.image_size, "teacher", dataset.channels), runtime.device, layout)
        for model in models
    ]
    return as_teacher(config, backbones, taps, runtime)

"""Where the time of a training step goes, against what the device can do."""

from __future__ import annotations

import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from distillcli.config.schema import TrainConfig
from distillcli.distillation.kinds import kind_of
from distillcli.distillation.plan import Plan
from distillcli.models.backbone import Backbone, build, fresh, place
from distillcli.report.bench import Profile
from distillcli.runtime import PRECISIONS, Runtime, seed_everything
from distillcli.teachers.frozen import FrozenTeacher, as_teacher, members_of
from distillcli.training.engine import compiled, ready, trained_module
from distillcli.training.fit import Fit
from distillcli.training.step import PARTS, train_step
from distillcli.types import Batch, Inputs, Taps
from distillcli.views.loader import Data

WARM_UP, STEPS, SECONDS = 3, 30, 15.0


def profile(plan: Plan, data: Data, runtime: Runtime) -> Profile:
    """Take some tens of steps of a plan apart. All models have fresh weights: they cost what any do."""
    trainer, device = plan.config.trainer, runtime.device
    wanted = fresh_fit(plan, data, runtime)
    times, precision = step_times(wanted, runtime)
    milliseconds = {part: 1000 * statistics.median(times[part]) for part in PARTS}
    # Peers are students: what they cost is part of the student's forward and backward pass.
    teacher = wanted.teacher if isinstance(wanted.teacher, FrozenTeacher) else None
    precisions = {precision} | ({teacher.precision} if teacher else set())
    peaks = {name: peak_flops(device, PRECISIONS[name]) for name in sorted(precisions)}

    def share(macs: int, spent: float, of: str) -> float:
        return 2 * macs * trainer.batch_size / (spent / 1000) / peaks[of]

    macs = plan.student.macs + sum(peer.spec.macs for peer in wanted.peers)
    return Profile(
        batch_size=trainer.batch_size,
        precision=precision,
        teacher_precision=teacher.precision if teacher else None,
        milliseconds=milliseconds,
        peak_flops=peaks,
        student_share=share(3 * macs, milliseconds["forward"] + milliseconds["backward"], precision),
        teacher_share=None
        if teacher is None
        else share(teacher.backbone.spec.macs, milliseconds["teacher"], teacher.precision),
        memory_bytes=peak_memory(device),
    )


def fresh_fit(plan: Plan, data: Data, runtime: Runtime) -> Fit:
    """The fit of the student without a folder, and with a teacher that was never trained."""
    config = plan.config
    seed_everything(config.seed, "profile")
    student_data = dataclasses.replace(data, source=plan.student_source)
    student = build(fresh(plan.student_run.student), student_data.inputs, "student")
    peers = tuple(build(fresh(peer), plan.inputs, f"peers[{n}]") for n, peer in enumerate(config.peers))
    teacher = None
    if kind_of(config).is_fixed:
        teacher = _fresh_teacher(config, plan.objective.teacher_taps, plan.inputs, runtime)
    return Fit(plan.student_run, student_data, student, plan.objective, Path(), {}, "student", teacher, peers)


def _fresh_teacher(config: TrainConfig, taps: Taps, inputs: Inputs, runtime: Runtime) -> FrozenTeacher:
    if not config.teacher.head:
        inputs = dataclasses.replace(inputs, classes=0)
    backbones: list[Backbone] = [
        place(build(fresh(member.config.teacher), inputs, member.key), runtime.device, config.trainer.channels_last)
        for member in members_of(config)
    ]
    return as_teacher(config, backbones, taps, runtime)


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


def step_times(wanted: Fit, runtime: Runtime) -> tuple[dict[str, list[float]], str]:
    """Seconds of each part of step after step, waiting for the device between the parts; and the precision used."""
    loop = compiled(ready(wanted, runtime), wanted, runtime)
    model, device = trained_module(loop, runtime), runtime.device
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    model.train()
    begun, clock = time.perf_counter(), Clock(device)
    for number, parts in enumerate(_batches(wanted)):
        clock.mark("data")
        train_step(parts, loop.teacher, model, loop.update, 0.0, clock.mark)
        if loop.state.ema is not None:
            loop.state.ema.update(wanted.student, step=number + 1)
            clock.mark("optimizer")
        if number >= WARM_UP:
            for part, seconds in clock.seconds.items():
                times[part].append(seconds)
            if len(times["data"]) == STEPS or time.perf_counter() - begun > SECONDS:
                break
        clock = Clock(device)
    return times, loop.update.precision


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


def _batches(wanted: Fit) -> Iterator[list[Batch]]:
    """Of one epoch after the other, in views of full size."""
    showing = dataclasses.replace(wanted.showing, growth=None)
    epoch = 1
    while True:
        yield from showing.epoch(epoch)
        epoch += 1

"""Where the time of a training step goes, how much of the device it uses, and what to change."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from distillcli.report.format import Grid, byte_count, count, percent

WORDS = {
    "data": "wait for data",
    "teacher": "teacher",
    "forward": "student forward",
    "backward": "student backward",
    "optimizer": "optimizer",
}
# Parts that take less than these shares of a step are not worth mentioning.
DATA_SHARE, TEACHER_SHARE, OPTIMIZER_SHARE, ARITHMETIC_SHARE = 0.2, 0.25, 0.15, 0.25


@dataclass(frozen=True)
class Profile:
    """``milliseconds``: median of each part of a step. ``peak_flops``: FLOP/s of a matrix product, by precision.

    ``teacher_share`` and ``student_share``: the FLOP/s a model reaches as a share of that peak; the student's backward
    pass counts as two forward passes. ``memory_bytes``: peak memory of the process (CPU) or of its tensors (GPU).
    """

    batch_size: int
    precision: str
    teacher_precision: str | None
    milliseconds: dict[str, float]
    peak_flops: dict[str, float]
    student_share: float
    teacher_share: float | None
    memory_bytes: int

    @property
    def step_milliseconds(self) -> float:
        return sum(self.milliseconds.values())

    @property
    def images_per_second(self) -> float:
        return 1000 * self.batch_size / self.step_milliseconds

    @property
    def images_per_second_cached(self) -> float:
        """The rate when the teacher's outputs come from the cache."""
        return 1000 * self.batch_size / (self.step_milliseconds - self.milliseconds["teacher"])


def as_json(found: Profile) -> dict[str, object]:
    rates = {"images_per_second": found.images_per_second, "images_per_second_cached": found.images_per_second_cached}
    return dataclasses.asdict(found) | rates | {"suggestion": suggestion(found)}


def grid(found: Profile) -> Grid:
    """A line for each part of the step, with its share of the time and of the device's measured peak."""
    peaks = {"teacher": found.teacher_share, "backward": found.student_share}
    rows = [["part", "ms", "of the step", "of the peak"]]
    for part, spent in found.milliseconds.items():
        peak = peaks.get(part)
        share = 100 * spent / found.step_milliseconds
        rows.append([WORDS[part], f"{spent:.1f}", percent(share), "" if peak is None else percent(100 * peak)])
    return [*rows, ["step", f"{found.step_milliseconds:.1f}", percent(100.0), ""]]


def summary(found: Profile) -> list[str]:
    peaks = ", ".join(f"{count(flops)}FLOP/s in {name}" for name, flops in found.peak_flops.items())
    rates = f"{found.images_per_second:.0f} images/s"
    if found.teacher_precision is not None:
        rates += f", {found.images_per_second_cached:.0f} once the teacher's outputs are cached"
    return [
        f"{rates}.",
        f"Peak memory: {byte_count(found.memory_bytes)}. A large matrix product reaches {peaks}; the student's share "
        "of that peak covers its forward and backward pass.",
        suggestion(found),
    ]


def suggestion(found: Profile) -> str:
    """The bottleneck of this step, and the key to change."""
    step, spent = found.step_milliseconds, found.milliseconds
    if spent["data"] > DATA_SHARE * step:
        return (
            "Loading data is the bottleneck: raise dataset.memory_gb so that decoded images stay in memory, or "
            "trainer.workers if they do not fit."
        )
    if spent["teacher"] > TEACHER_SHARE * step:
        return (
            "The teacher is the bottleneck: with teacher.cache.views=K it runs in the first K epochs only, and later "
            "runs on the same views do not run it at all."
        )
    if spent["optimizer"] > OPTIMIZER_SHARE * step:
        return "The optimizer is the bottleneck: larger batches (trainer.batch_size) need fewer optimizer steps."
    if found.student_share < ARITHMETIC_SHARE:
        return (
            "The student is the bottleneck, through memory traffic and overhead rather than arithmetic: larger batches "
            "(trainer.batch_size) use the device better."
        )
    return "The student's arithmetic is the bottleneck: only a smaller student or smaller images are faster."

"""``distill bench``: where the time of a step goes, for the same config as ``distill train``; nothing is kept."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from distillcli.config import search
from distillcli.config.arguments import parse
from distillcli.config.compose import compose
from distillcli.config.schema import TrainConfig
from distillcli.data.open import open_source
from distillcli.errors import UserError
from distillcli.report.console import print_grid, say, sentence
from distillcli.report.format import Grid, count, percent

if TYPE_CHECKING:
    from distillcli.profiling import Profile

JSON_FLAG = "--json"
WORDS = {
    "data": "wait for data",
    "teacher": "teacher",
    "forward": "student forward",
    "backward": "student backward",
    "optimizer": "optimizer",
}
# Below these shares of a step a part is not worth a word.
DATA_SHARE, TEACHER_SHARE, OPTIMIZER_SHARE, ARITHMETIC_SHARE = 0.2, 0.25, 0.15, 0.25


def run(arguments: list[str]) -> None:
    """Profile some steps of a config. Raises UserError for what makes no sense of one run."""
    parsed = parse([word for word in arguments if word != JSON_FLAG])
    if parsed.multirun or parsed.inspect:
        raise UserError("distill bench times one config: no -m, --cfg or --info")
    search.use(parsed.config_folders)
    config = compose("train", parsed.overrides)
    assert isinstance(config, TrainConfig)
    if config.resume is not None:
        raise UserError("resume= continues a training; distill bench takes the config alone")
    source = open_source(config.dataset)

    from distillcli.data.loader import open_data
    from distillcli.layout import settle_layout
    from distillcli.objective import check_terms
    from distillcli.profiling import profile
    from distillcli.runtime import start

    check_terms(config.distill)
    with start(config.trainer) as runtime:
        config = settle_layout(config, len(source.classes), runtime)
        found = profile(config, open_data(source, config.dataset, config.trainer.workers, runtime), runtime)
    if JSON_FLAG in arguments:
        say(json.dumps(as_json(found)))
        return
    sentence(
        f"{config.student.name} on {source.name}, {config.dataset.image_size} px, batch {found.batch_size}", "bold"
    )
    print_grid(grid(found))
    for line in summary(found):
        sentence(line)


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
        rates += f", {found.images_per_second_cached:.0f} once the teacher's answers are cached"
    return [
        f"{rates}.",
        f"Peak memory {count(found.memory_bytes)}B; peak of a matrix product {peaks}; the student's share of it counts "
        "forward and backward.",
        suggestion(found),
    ]


def suggestion(found: Profile) -> str:
    """What holds this step back most, and the key that changes it."""
    step, spent = found.step_milliseconds, found.milliseconds
    if spent["data"] > DATA_SHARE * step:
        return (
            "The data is what holds the step back: raise dataset.memory_gb so that images stay decoded in memory, or "
            "trainer.workers if they do not fit."
        )
    if spent["teacher"] > TEACHER_SHARE * step:
        return (
            "The teacher is what holds the step back: with teacher.cache.views=K only the first K epochs ask it, and "
            "later runs on the same views do not ask it at all."
        )
    if spent["optimizer"] > OPTIMIZER_SHARE * step:
        return "The optimizer is what holds the step back: larger batches (trainer.batch_size) need fewer of its steps."
    if found.student_share < ARITHMETIC_SHARE:
        return (
            "The student is what holds the step back, by memory traffic and overhead more than by arithmetic: larger "
            "batches (trainer.batch_size) use the device better."
        )
    return "The student's own arithmetic is what holds the step back: a smaller student or smaller images."

"""The jobs of a sweep: what they measured, how their settings differ, and how they vary over seeds."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distillcli.report.format import clean
from distillcli.report.models import MODELS, model_of
from distillcli.runs.result import Measured, Result, read_result, top1_of


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep; its result knows nothing when it left none."""

    name: str
    result: Result
    overrides: Mapping[str, str]

    @property
    def status(self) -> str:
        return self.result.status or "no result"

    def top1(self, name: str = "student") -> float | None:
        """Of the model ``name``, a key of MODELS, in percent."""
        return top1_of(model_of(self.result, name))


@dataclass(frozen=True)
class Spread:
    """``mean`` and ``std`` (of a sample, with n - 1; None for one value) in percent of ``n`` values."""

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class SeedSummary:
    """Top-1 over the seeds for one combination of the other varying keys, which ``overrides`` gives."""

    overrides: dict[str, str]
    spreads: dict[str, Spread]  # by the keys of MODELS


def parse_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """``["+experiment=x", "distill.temperature=2"]`` by key, without Hydra's leading plus signs and the quotes."""
    parsed = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        parsed[clean(key.lstrip("+"))] = clean(value)
    return parsed


def _in_natural_order(folder: Path) -> tuple[list[tuple[float, str]], str]:
    """Sorts names by the numbers in them, numbers before letters."""
    pieces = re.findall(r"([0-9]*)([^0-9]*)", folder.name)
    return [(int(digits) if digits else math.inf, words) for digits, words in pieces], folder.name


def read_jobs(folder: Path) -> list[SweepJob]:
    """Every job folder of a sweep in the order of the jobs, 2 before 10."""
    if not folder.is_dir():
        return []
    # A link such as "latest" is a second name for a job that is listed already.
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink() and path.name[0] != "."]
    jobs = []
    for path in sorted(inside, key=_in_natural_order):
        result = read_result(path) or Result()
        jobs.append(SweepJob(path.name, result, parse_overrides(result.overrides)))
    return jobs


def varying_keys(jobs: Sequence[SweepJob]) -> list[str]:
    """The overrides that differ between jobs or that some jobs lack, in the order they were given."""
    known = [job.overrides for job in jobs if job.result.status is not None]
    keys = dict.fromkeys(key for overrides in known for key in overrides)
    return [key for key in keys if len({overrides.get(key) for overrides in known}) > 1]


def value_of(job: SweepJob, key: str) -> str:
    return job.overrides.get(key, "")


def chosen_by(job: SweepJob) -> float:
    """What orders the jobs: the student on validation data, so that the test data choose nothing.

    Without labels the one closest to its teacher is the best. Without validation data only the reported numbers are
    left.
    """
    on_val, student = job.result.student_numbers, job.result.student or Measured()
    for merit in (on_val.val_top1, _negative(on_val.val_kl_to_teacher), student.top1, _negative(student.kl_to_teacher)):
        if merit is not None:
            return merit
    return -math.inf


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def best_first(jobs: Sequence[SweepJob]) -> list[SweepJob]:
    return sorted(jobs, key=chosen_by, reverse=True)


def differs(jobs: Sequence[SweepJob], name: str) -> bool:
    """Whether the jobs were measured against different teachers or controls."""
    measured = [model for job in jobs if (model := model_of(job.result, name)) is not None]
    return len({(model.model, model.top1) for model in measured}) > 1


def seed_summary(jobs: Sequence[SweepJob], keys: Sequence[str]) -> list[SeedSummary]:
    """One entry for each combination of the varying keys other than the seed, the best on validation data first.

    Empty unless the seed varies. Only jobs that finished are counted.
    """
    if "seed" not in keys:
        return []
    groups: dict[tuple[str, ...], list[SweepJob]] = {}
    others = [key for key in keys if key != "seed"]
    for job in jobs:
        if job.result.finished:
            groups.setdefault(tuple(value_of(job, key) for key in others), []).append(job)
    merits = {values: statistics.fmean(map(chosen_by, members)) for values, members in groups.items()}
    return [
        SeedSummary(dict(zip(others, values, strict=True)), {name: _spread(groups[values], name) for name in MODELS})
        for values in sorted(groups, key=merits.__getitem__, reverse=True)
    ]


def _spread(jobs: Sequence[SweepJob], name: str) -> Spread:
    top1 = [value for job in jobs if (value := job.top1(name)) is not None]
    mean = statistics.fmean(top1) if top1 else None
    return Spread(mean, statistics.stdev(top1) if len(top1) > 1 else None, len(top1))

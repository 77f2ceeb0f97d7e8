"""The jobs of a sweep as they were left: what they measured, where they differ, and their spread over seeds."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillcli.report.format import MODELS, clean, number, part, text, texts
from distillcli.runs.folder import read_result


@dataclass(frozen=True)
class Job:
    """One job of a sweep; ``result`` is empty when it left none."""

    name: str
    result: Mapping[str, Any]
    overrides: Mapping[str, str]

    @property
    def status(self) -> str:
        return text(self.result, "status") or "no result"

    @property
    def top1(self) -> float | None:
        """The student's, in percent."""
        return number(self.result, "student", "top1")


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


def read_jobs(folder: Path) -> list[Job]:
    """Every job folder of a sweep in the order of the jobs, 2 before 10."""
    if not folder.is_dir():
        return []
    # A link such as "latest" is a second name for a job that is listed already.
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink() and path.name[0] != "."]
    jobs = []
    for path in sorted(inside, key=_in_natural_order):
        result = read_result(path) or {}
        jobs.append(Job(path.name, result, parse_overrides(texts(result, "overrides"))))
    return jobs


def varying_keys(jobs: Sequence[Job]) -> list[str]:
    """The overrides whose value is not the same in all jobs, or that some jobs lack, in the order they were given."""
    known = [job.overrides for job in jobs if job.result]
    keys = dict.fromkeys(key for overrides in known for key in overrides)
    return [key for key in keys if len({overrides.get(key) for overrides in known}) > 1]


def value_of(job: Job, key: str) -> str:
    return job.overrides.get(key, "")


def by_accuracy(jobs: Sequence[Job]) -> list[Job]:
    """The most accurate student first; without labels the one closest to its teacher."""

    def merit(job: Job) -> float:
        divergence = number(job.result, "student", "kl_to_teacher")
        return job.top1 if job.top1 is not None else -math.inf if divergence is None else -divergence

    return sorted(jobs, key=merit, reverse=True)


def differs(jobs: Sequence[Job], name: str) -> bool:
    """Whether the jobs were measured against different teachers or controls."""
    seen = {
        (text(job.result, name, "model"), number(job.result, name, "top1")) for job in jobs if part(job.result, name)
    }
    return len(seen) > 1


def seed_summary(jobs: Sequence[Job], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Top-1 over the seeds for each combination of the other varying keys; empty unless the seed varies.

    Each entry has ``overrides`` and, for student, teacher and baseline, ``mean`` and ``std`` (of a sample, with n - 1;
    null for one seed), in percent, and ``n``. Only jobs that finished are counted.
    """
    if "seed" not in keys:
        return []
    groups: dict[tuple[str, ...], list[Job]] = {}
    others = [key for key in keys if key != "seed"]
    for job in jobs:
        if job.status == "ok":
            groups.setdefault(tuple(value_of(job, key) for key in others), []).append(job)
    summary = []
    for values, members in groups.items():
        entry: dict[str, Any] = {"overrides": dict(zip(others, values, strict=True))}
        for name in MODELS:
            top1 = [value for job in members if (value := number(job.result, name, "top1")) is not None]
            entry[name] = {
                "mean": statistics.fmean(top1) if top1 else None,
                "std": statistics.stdev(top1) if len(top1) > 1 else None,
                "n": len(top1),
            }
        summary.append(entry)
    return sorted(summary, key=lambda entry: -(entry["student"]["mean"] or -math.inf))

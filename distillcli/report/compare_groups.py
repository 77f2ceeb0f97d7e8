"""Runs that differ in nothing but their seed are one group; groups are compared with each other and with controls."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distillcli.evidence.groups import GroupDifference, SeedVariance, compare_groups, holm, seed_variance
from distillcli.evidence.paired import Hits
from distillcli.report.sweep_jobs import SweepJob, chosen_by, parse_overrides, value_of, varying_keys
from distillcli.runs.inventory import Run
from distillcli.runs.predictions import Predictions, read_predictions
from distillcli.runs.result import DatasetFacts, Measured, Result

# They name a run and change nothing in it; seeds are what groups are made of.
_NAMES = ("seed", "out", "name", "resume", "runs")


@dataclass(frozen=True)
class Tested:
    """A difference, and its p-value adjusted for all that it was compared together with."""

    found: GroupDifference
    adjusted: float


@dataclass(frozen=True)
class Group:
    """``settings``: what tells it from the others. ``jobs``: its runs, named by their folders.

    ``to_control``, ``to_best``: None without predictions for the same images; the best is not compared with itself.
    """

    settings: dict[str, str]
    jobs: tuple[SweepJob, ...]
    to_control: Tested | None = None
    to_best: Tested | None = None

    @property
    def label(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items() if value) or "as shipped"

    @property
    def student(self) -> Measured:
        """Its size and cost, which no seed changes."""
        return self.jobs[0].result.student or Measured()

    def mean(self, of: Callable[[SweepJob], float | None]) -> float | None:
        values = [value for job in self.jobs if (value := of(job)) is not None]
        return statistics.fmean(values) if values else None


def jobs_of(runs: Sequence[Run]) -> list[SweepJob]:
    return [SweepJob(str(run.folder), run.result, parse_overrides(run.result.overrides)) for run in runs]


def grouped(jobs: Sequence[SweepJob]) -> list[Group]:
    """The groups, tested, the best on validation data first. Only jobs that finished are counted."""
    done = [job for job in jobs if job.result.finished]
    settings = _settings(done)
    members: dict[tuple[str, ...], list[SweepJob]] = {}
    for job, values in zip(done, settings, strict=True):
        members.setdefault(tuple(values.values()), []).append(job)
    keys = list(settings[0]) if settings else []
    groups = [Group(dict(zip(keys, values, strict=True)), tuple(found)) for values, found in members.items()]
    groups.sort(key=lambda group: statistics.fmean(map(chosen_by, group.jobs)), reverse=True)
    return _tested(groups)


def _settings(jobs: Sequence[SweepJob]) -> list[dict[str, str]]:
    """For each job what it was told otherwise than others, and facts where that does not tell them apart."""
    keys = [key for key in varying_keys(jobs) if key not in _NAMES]
    settings = [{key: value_of(job, key) for key in keys} for job in jobs]
    for name, fact in _FACTS.items():
        finer = [{**values, name: fact(job.result)} for values, job in zip(settings, jobs, strict=True)]
        if len({tuple(values.values()) for values in finer}) > len({tuple(values.values()) for values in settings}):
            settings = finer
    return settings


_FACTS: dict[str, Callable[[Result], str]] = {
    "data": lambda result: (result.dataset or DatasetFacts()).name or "",
    "student": lambda result: (result.student or Measured()).model or "",
    "teacher": lambda result: (result.teacher or Measured()).model or "",
    "objective": lambda result: result.objective or "",
    "epochs": lambda result: str(result.epochs or ""),
}


def _tested(groups: Sequence[Group]) -> list[Group]:
    """The groups with their tests, as far as all of them have predictions for the same labelled images."""
    students = [_hits([Path(job.name) for job in group.jobs], groups) for group in groups]
    controls = [_hits(_control_folders(group), groups) for group in groups]
    if not groups or any(found is None for found in students):
        return list(groups)
    hits = [found for found in students if found is not None]
    seeds = seed_variance(hits)
    to_control = _family([(own, control) for own, control in zip(hits, controls, strict=True)], seeds)
    to_best = [None, *_family([(own, hits[0]) for own in hits[1:]], seeds)]
    return [
        Group(group.settings, group.jobs, control, best)
        for group, control, best in zip(groups, to_control, to_best, strict=True)
    ]


def _family(pairs: Sequence[tuple[list[Hits], list[Hits] | None]], seeds: SeedVariance | None) -> list[Tested | None]:
    """Comparisons whose p-values are adjusted together."""
    found = [None if second is None else compare_groups(first, second, seeds) for first, second in pairs]
    adjusted = iter(holm([one.p_value for one in found if one is not None]))
    return [None if one is None else Tested(one, next(adjusted)) for one in found]


def _control_folders(group: Group) -> list[Path]:
    runs = [job.result.baseline.run if job.result.baseline else None for job in group.jobs]
    return [Path(run) for run in dict.fromkeys(runs) if run]


def _hits(folders: Sequence[Path], groups: Sequence[Group]) -> list[Hits] | None:
    """Which labelled images each run gets right; None unless all of them are for the images of the first run."""
    wanted = read_predictions(Path(groups[0].jobs[0].name))
    found = [read_predictions(folder) for folder in folders]
    if wanted is None or not found or not len(wanted.hits):
        return None
    same = [one.hits for one in found if one is not None and _same_images(one, wanted)]
    return same if len(same) == len(found) else None


def _same_images(one: Predictions, other: Predictions) -> bool:
    return np.array_equal(one.labels, other.labels)

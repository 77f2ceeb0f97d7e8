"""Runs side by side: a table of groups over seeds, what of it is beyond chance, a map, accuracy against cost."""

from __future__ import annotations

import csv
import functools
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distillcli.report.blocks import Bullets, Interval, Picture, Section, Sentence, Table, known, section
from distillcli.report.compare_groups import Group, Tested
from distillcli.report.format import DASH, Grid, byte_count, count, fixed, significant
from distillcli.report.grids import file_size
from distillcli.report.pareto import Point, differing, pareto_figures
from distillcli.report.sentences import LEVEL
from distillcli.report.sweep_csv import csv_cell
from distillcli.report.sweep_jobs import SweepJob
from distillcli.report.sweep_plot import drawn_keys, sweep_figure
from distillcli.runs.result import Measured, top1_of

LEVEL_OF_TESTS = 0.05
INTERVALS = ("95 %, to\ncontrol", "95 %, to\nbest")
# What a narrow terminal leaves out, in this order.
SPARE = (*INTERVALS, "gap\nclosed", "control\n%", "val\n%")


def comparison_sections(groups: Sequence[Group], jobs: Sequence[SweepJob]) -> list[Section]:
    """``groups``: of those of ``jobs`` that finished; the others are only named."""
    keys = len(groups[0].settings)
    done = [job for group in groups for job in group.jobs]
    settings = list(groups[0].settings)
    # A map over what was set would mix runs that something else tells apart.
    swept = drawn_keys(done, settings) if all(any(key in job.overrides for job in done) for key in settings) else []
    left = tuple(f"{job.name}: {job.status}, not compared" for job in jobs if not job.result.finished)
    over = None
    if swept:
        over = Picture(f"Top-1 over {' and '.join(swept)}", lambda: [sweep_figure(done, swept)])
    points = pareto_points(groups)
    against = Picture("Top-1 against cost", functools.partial(pareto_figures, points)) if differing(points) else None
    return known(
        [
            section("", Sentence(_counts(groups, done), "strong"), _verdict(groups[0]), brief=True),
            section(
                "Settings", Table(comparison_grid(groups), 1 + keys, SPARE), *map(Sentence, _words(groups)), brief=True
            ),
            section("", Bullets(left), brief=True),
            section("Over the settings", over),
            section("Accuracy and cost", against, Table(cost_grid(groups), 1 + keys)),
            section("Runs", Table(runs_grid(groups), 2)),
        ]
    )


def _counts(groups: Sequence[Group], jobs: Sequence[SweepJob]) -> str:
    def words(number: int, name: str) -> str:
        return f"{number} {name}" if number == 1 else f"{number} {name}s"

    seeds = sorted({len(group.jobs) for group in groups})
    each = words(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return f"{words(len(jobs), 'run')}: {words(len(groups), 'setting')} with {each} each"


def _verdict(best: Group) -> Interval | None:
    """What distilling is worth where it was best on validation data, which the test data did not choose."""
    if best.to_control is None:
        return None
    found = best.to_control.found
    numbers = f"{found.difference:+.1f} points to its control, {LEVEL} interval {found.low:+.1f} to {found.high:+.1f}"
    p_value = significant(best.to_control.adjusted, 2)
    words = f"{numbers} (p = {p_value}, adjusted for all settings)."
    return Interval(f"Best on val: {best.label}", words, found.difference, found.low, found.high)


def comparison_grid(groups: Sequence[Group]) -> Grid:
    """A row for each group, the best on validation data first."""
    keys = list(groups[0].settings)
    tests = ["to its\ncontrol", INTERVALS[0], "p, to\ncontrol", "to the\nbest", INTERVALS[1], "p, to\nbest"]
    grid = [["#", *keys, "seeds", "val\n%", "top-1\n%", "control\n%", "gap\nclosed", *tests]]
    for number, group in enumerate(groups, 1):
        gap = group.mean(lambda job: job.result.gap_closed)
        grid.append(
            [
                *(str(number), *(value or DASH for value in group.settings.values()), str(len(group.jobs))),
                *(fixed(group.mean(_val_top1)), _spread([job.top1() for job in group.jobs])),
                *(fixed(group.mean(lambda job: job.top1("baseline"))), DASH if gap is None else f"{100 * gap:.0f} %"),
                *(*_tested(group.to_control), *_tested(group.to_best)),
            ]
        )
    empty = [at for at in range(1 + len(keys), len(grid[0])) if all(row[at] == DASH for row in grid[1:])]
    return [[cell for at, cell in enumerate(row) if at not in empty] for row in grid]


def _val_top1(job: SweepJob) -> float | None:
    return job.result.student_numbers.val_top1


def _spread(values: Sequence[float | None]) -> str:
    """``93.5 ± 0.3``, the second the standard deviation over seeds."""
    top1 = [value for value in values if value is not None]
    if not top1:
        return DASH
    return f"{statistics.fmean(top1):.1f}" + (f" ± {statistics.stdev(top1):.1f}" if len(top1) > 1 else "")


def _tested(test: Tested | None) -> list[str]:
    """The difference, its interval and its p-value."""
    if test is None:
        return [DASH] * 3
    found = test.found
    return [f"{found.difference:+.1f}", f"{found.low:+.1f} to {found.high:+.1f}", significant(test.adjusted, 2)]


def _words(groups: Sequence[Group]) -> list[str]:
    """How the table is to be read, and what in it is beyond chance."""
    words = [
        "Ordered by accuracy on val, so that the test data choose nothing. ± is the standard deviation over seeds."
    ]
    if groups[0].to_control is None and all(group.to_best is None for group in groups):
        return [*words, "Nothing is tested: not all of these runs keep predictions for the same images."]
    several = any(len(group.jobs) > 1 for group in groups)
    over = "images and seeds (their variance is pooled over all settings)" if several else "images, not over seeds"
    words.append(f"Differences in points with {LEVEL} intervals over {over}; p is adjusted down each column (Holm).")
    others = [group.to_best for group in groups if group.to_best is not None]
    if others:
        worse = sum(test.found.difference < 0 and test.adjusted < LEVEL_OF_TESTS for test in others)
        words.append(f"{worse} of {len(others)} other settings are worse than the best beyond chance.")
    helped = [group.to_control for group in groups if group.to_control is not None]
    if helped:
        better = sum(test.found.difference > 0 and test.adjusted < LEVEL_OF_TESTS for test in helped)
        words.append(f"{better} of {len(helped)} settings beat their control beyond chance.")
    return words


def _costs(model: Measured, folder: Path | None) -> dict[str, float | None]:
    """By the names that plots give them."""
    size = None if folder is None else file_size(folder)
    return {"latency, ms": model.latency_ms, "MACs": model.macs, "file size, bytes": size}


def pareto_points(groups: Sequence[Group]) -> list[Point]:
    """Each group, and each different teacher and control, with the mean of its top-1."""
    found: dict[tuple[str, str], list[tuple[float, Measured, Path | None]]] = {}
    for number, group in enumerate(groups, 1):
        for job in group.jobs:
            result = job.result
            teacher = "" if result.teacher is None else result.teacher.model or "teacher"
            control = "control" if result.baseline is None else f"{result.baseline.model}, no teacher"
            models = (("student", f"#{number}", result.student), ("teacher", teacher, result.teacher))
            for kind, name, model in (*models, ("baseline", control, result.baseline)):
                top1, run = top1_of(model), Path(job.name) if kind == "student" else None
                if model is not None and top1 is not None:
                    run = Path(model.run) if run is None and model.run else run
                    found.setdefault((kind, name), []).append((top1, model, run))
    return [
        Point(kind, name, statistics.fmean(top1 for top1, _, _ in rows), _costs(*rows[0][1:]))
        for (kind, name), rows in found.items()
    ]


def cost_grid(groups: Sequence[Group]) -> Grid:
    """What the students cost; a header alone where all cost the same."""
    keys = list(groups[0].settings)
    grid = [["#", *keys, "params", "MACs", "latency\nms", "file"]]
    for number, group in enumerate(groups, 1):
        student, size = group.student, file_size(Path(group.jobs[0].name))
        costs = [count(student.params), count(student.macs), fixed(student.latency_ms)]
        settings = (value or DASH for value in group.settings.values())
        grid.append([str(number), *settings, *costs, DASH if size is None else byte_count(size)])
    return grid if len({tuple(row[1 + len(keys) :]) for row in grid[1:]}) > 1 else grid[:1]


def runs_grid(groups: Sequence[Group]) -> Grid:
    """Which runs are in which group."""
    rows = [
        [str(number), job.name, fixed(job.result.seed, 0), fixed(job.top1(), 2)]
        for number, group in enumerate(groups, 1)
        for job in group.jobs
    ]
    return [["#", "run", "seed", "top-1\n%"], *rows]


def comparison_json(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The same as plain data, unrounded."""
    return [
        {
            "settings": group.settings,
            "runs": [job.name for job in group.jobs],
            "seeds": [job.result.seed for job in group.jobs],
            "top1": [job.top1() for job in group.jobs],
            "mean_top1": group.mean(lambda job: job.top1()),
            "mean_val_top1": group.mean(_val_top1),
            "mean_control_top1": group.mean(lambda job: job.top1("baseline")),
            "mean_gap_closed": group.mean(lambda job: job.result.gap_closed),
            "params": group.student.params,
            "macs": group.student.macs,
            "latency_ms": group.student.latency_ms,
            "file_bytes": file_size(Path(group.jobs[0].name)),
            "to_control": None if group.to_control is None else _flat(group.to_control),
            "to_best": None if group.to_best is None else _flat(group.to_best),
        }
        for group in groups
    ]


def _flat(test: Tested) -> dict[str, float]:
    return {**asdict(test.found), "adjusted_p_value": test.adjusted}


def comparison_csv(groups: Sequence[Group]) -> str:
    """One line for each group, with all its numbers."""
    rows = []
    for entry in comparison_json(groups):
        tests = {
            f"{name}_{key}": value
            for name in ("to_control", "to_best")
            for key, value in (entry.pop(name) or {}).items()
        }
        lists = {key: " ".join(map(str, entry.pop(key))) for key in ("runs", "seeds", "top1")}
        rows.append({**entry.pop("settings"), **entry, **lists, **tests})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow(map(csv_cell, columns))
    writer.writerows([csv_cell(row.get(column)) for column in columns] for row in rows)
    return handle.getvalue()

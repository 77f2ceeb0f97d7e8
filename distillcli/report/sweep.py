"""The end of a sweep: its jobs in one table, on screen, as CSV, JSON and Markdown, and as a picture.

Any job may have failed, been interrupted, or left no result at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len

from distillcli.report.blocks import Block, Bullets, Code, Picture, Section, Sentence, Table, known, section
from distillcli.report.console import CONSOLE, grid_width, print_grid, say, sentence, stacked
from distillcli.report.documents import write_documents
from distillcli.report.figures import save
from distillcli.report.format import DASH, Grid, count, fixed, percent, seconds, without_column
from distillcli.report.models import MODELS, model_of
from distillcli.report.sweep_csv import sweep_csv
from distillcli.report.sweep_jobs import (
    SeedSummary,
    Spread,
    SweepJob,
    best_first,
    differs,
    read_jobs,
    seed_summary,
    value_of,
    varying_keys,
)
from distillcli.report.sweep_plot import drawn_keys, sweep_figure
from distillcli.runs.folder import write_json, write_text
from distillcli.runs.result import EpochNumbers, Measured, to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Columns a narrow terminal leaves out, in this order; the files have them all.
_LEAST_IMPORTANT = ["ECE", "NLL", "top-5\n%", "seconds", "best\n%", "agreement\n%"]
_LONGEST_VALUE = 28  # columns of the terminal for one overridden value


def _jobs(size: int) -> str:
    return "1 job" if size == 1 else f"{size} jobs"


def _elide(words: str) -> str:
    while cell_len(words) > _LONGEST_VALUE:
        words = words[:-2] + "…"
    return words


def _table(jobs: Sequence[SweepJob], keys: Sequence[str]) -> Grid:
    """Header and one row per job, the best on validation data first.

    Teacher and control are columns only where they differ.
    """
    others = [name for name in ("teacher", "baseline") if differs(jobs, name)]
    short = {"teacher": "teacher\n%", "baseline": "control\n%"}
    grid = [
        [
            "job",
            *keys,
            *("val\n%", "top-1\n%", "top-5\n%", "agreement\n%", "best\n%"),
            *(short[name] for name in others),
            *("NLL", "ECE", "seconds", "status"),
        ]
    ]
    for job in best_first(jobs):
        student, on_val = job.result.student or Measured(), job.result.student_numbers
        best = job.result.best or EpochNumbers()
        grid.append(
            [
                job.name,
                *(value_of(job, key) or DASH for key in keys),
                *(
                    fixed(share)
                    for share in (on_val.val_top1, student.top1, student.top5, student.agreement, best.top1)
                ),
                *(fixed(job.top1(name)) for name in others),
                *(fixed(student.nll, 3), fixed(student.ece, 3)),
                *(fixed(job.result.seconds, 0), job.status),
            ]
        )
    return grid


def _fitted(grid: Grid, keys: int) -> tuple[Grid, list[str]]:
    """The grid as it fits the terminal, and the names of the columns left out."""
    grid = [stacked(grid[0]), *([row[0], *map(_elide, row[1 : 1 + keys]), *row[1 + keys :]] for row in grid[1:])]
    dropped = []
    for column in _LEAST_IMPORTANT:
        if grid_width(grid) <= CONSOLE.width:
            break
        grid = without_column(grid, column)
        dropped.append(column.split("\n")[0])
    return grid, dropped


def _notes(jobs: Sequence[SweepJob]) -> list[str]:
    """Teacher and control where they are the same for every job, how "best" was chosen, and what went wrong."""
    notes = []
    for name in ("teacher", "baseline"):
        measured = [model for job in jobs if (model := model_of(job.result, name)) is not None]
        if measured and not differs(jobs, name):
            model = measured[0]
            numbers = f"top-1 {percent(model.top1)}, top-5 {percent(model.top5)}, {count(model.params)} parameters"
            notes.append(f"{MODELS[name]}: {model.model}, {numbers}, the same for every job")
    parts = sorted({job.result.evaluated_on for job in jobs if job.result.evaluated_on})
    if parts == ["val"]:
        notes.append('accuracies are on val, which also chose the "best" epoch and the order of the jobs: optimistic')
    elif parts:
        where = " and ".join(parts)
        on_val = [job.result.student_numbers for job in jobs]
        if any(one.val_top1 is not None or one.val_kl_to_teacher is not None for one in on_val):
            notes.append(f'accuracies are on {where}; val chose the order of the jobs and "best", the best epoch')
        else:
            notes.append(f"accuracies are on {where}, which also orders the jobs, as there is no val part: optimistic")
    for job in jobs:
        if not job.result.finished:
            notes.append(f"job {job.name}: {job.status}" + (f", {job.result.error}" if job.result.error else ""))
    return notes


def _spread(spread: Spread) -> str:
    """``93.5 ± 0.3 (3)``."""
    if spread.mean is None:
        return DASH
    deviation = "" if spread.std is None else f" ± {spread.std:.2f}"
    return f"{spread.mean:.2f}{deviation} ({spread.n})"


def _summary_grid(summary: Sequence[SeedSummary]) -> Grid:
    keys, shown = list(summary[0].overrides), ("student", "baseline", "teacher")
    rows = [
        [*(entry.overrides[key] or DASH for key in keys), *(_spread(entry.spreads[name]) for name in shown)]
        for entry in summary
    ]
    return [[*keys, *(MODELS[name] for name in shown)], *rows]


_SUMMARY_WORDS = "Top-1 in percent over seeds, mean ± standard deviation (number of seeds)"


def _sweep_json(
    folder: Path, jobs: Sequence[SweepJob], keys: Sequence[str], summary: Sequence[SeedSummary]
) -> dict[str, object]:
    spreads = [{name: asdict(spread) for name, spread in entry.spreads.items()} for entry in summary]
    return {
        "folder": str(folder),
        "varying": keys,
        "results": [{"job": job.name, **to_json(job.result), "status": job.status} for job in jobs],
        "summary": [{"overrides": entry.overrides, **models} for entry, models in zip(summary, spreads, strict=True)],
    }


def _sections(
    folder: Path, jobs: Sequence[SweepJob], keys: Sequence[str], summary: Sequence[SeedSummary], figure: Figure | None
) -> list[Section]:
    commands = [job.result.command for job in jobs if job.result.command]
    failed = sum(not job.result.finished for job in jobs)
    picture = None
    if figure is not None:
        shows = f"Top-1 over {' and '.join(drawn_keys(jobs, keys))}"
        picture = Picture(shows, lambda: [figure], folder / "sweep.png")
    return known(
        [
            section("", Code(commands[0] if commands else "", "sh")),
            section("", Sentence(_jobs(len(jobs)) + (f", {failed} of them not finished" if failed else "") + ".")),
            section("Jobs", Table(_table(jobs, keys), numbers_from=1 + len(keys)), Bullets(tuple(_notes(jobs)))),
            section("Over seeds", *_seeds(summary, len(keys) - 1)),
            section("Over the swept values", picture),
            section(
                "", Sentence("Every job folder holds a report of its own; sweep.csv and sweep.json hold all numbers.")
            ),
        ]
    )


def _seeds(summary: Sequence[SeedSummary], keys: int) -> list[Block]:
    return [Sentence(f"{_SUMMARY_WORDS}."), Table(_summary_grid(summary), keys)] if summary else []


def close_sweep(folder: Path) -> None:
    """Print the table of a sweep and write ``sweep.csv``, ``sweep.json``, ``report.md``, ``report.html`` and, where it
    makes sense, ``sweep.png``. Returns quietly when no job ran."""
    jobs = read_jobs(folder)
    if not jobs:
        return
    keys = varying_keys(jobs)
    summary = seed_summary(jobs, keys)
    drawn = drawn_keys(jobs, keys)
    CONSOLE.print()
    sentence(f"Sweep of {_jobs(len(jobs))}", "bold")
    CONSOLE.print()
    grid, dropped = _fitted(_table(jobs, keys), len(keys))
    print_grid(grid, numbers_from=1 + len(keys))
    CONSOLE.print()
    for note in _notes(jobs):
        sentence(note)
    spent = [job.result.seconds for job in jobs if job.result.seconds is not None]
    sentence(f"time of all jobs together: {seconds(sum(spent))}" if spent else "")
    if summary:
        CONSOLE.print()
        sentence(_SUMMARY_WORDS, "bold")
        CONSOLE.print()
        grid = _summary_grid(summary)
        print_grid([stacked(grid[0]), *grid[1:]], numbers_from=len(keys) - 1)
        CONSOLE.print()

    write_text(folder / "sweep.csv", sweep_csv(jobs, keys))
    write_json(folder / "sweep.json", _sweep_json(folder, jobs, keys, summary))
    figure = sweep_figure(jobs, drawn) if drawn else None
    if figure is not None:
        save(figure, folder / "sweep.png")
    write_documents(folder, f"Sweep {folder.name}", _sections(folder, jobs, keys, summary, figure))
    if dropped:
        sentence(f"No room here for {', '.join(dropped)}: see sweep.csv.")
    say(f"All numbers: {folder / 'sweep.csv'}")

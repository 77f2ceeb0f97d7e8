"""The end of a sweep: one table over its jobs on screen, as CSV, as JSON and as Markdown, and a picture.

It is called whatever became of the jobs, so a job may have failed, been interrupted, or left no result at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from distillcli.report.console import CONSOLE, grid_width, print_grid, say, sentence
from distillcli.report.format import DASH, MODELS, Grid, clean, count, fixed, number, part, percent, seconds, text
from distillcli.report.jobs import Job, by_accuracy, differs, read_jobs, seed_summary, value_of, varying_keys
from distillcli.report.markdown import escaped, fenced, markdown_table
from distillcli.report.sweep_csv import sweep_csv
from distillcli.report.sweep_plot import draw_sweep, swept_number
from distillcli.runs.folder import write_json, write_text

# On a narrow terminal these columns go first; the files always have them.
_LEAST_IMPORTANT = ["ECE", "NLL", "top-5\n%", "seconds", "best\n%", "agreement\n%"]
_LONGEST_VALUE = 28  # columns of the terminal for one overridden value


def _jobs(size: int) -> str:
    return "1 job" if size == 1 else f"{size} jobs"


def _elide(words: str) -> str:
    while cell_len(words) > _LONGEST_VALUE:
        words = words[:-2] + "…"
    return words


def _table(jobs: Sequence[Job], keys: Sequence[str]) -> Grid:
    """Header and one row per job, the best student first. Teacher and control are columns only where they differ."""
    others = [name for name in ("teacher", "baseline") if differs(jobs, name)]
    short = {"teacher": "teacher\n%", "baseline": "control\n%"}
    grid = [
        [
            "job",
            *keys,
            *("top-1\n%", "top-5\n%", "agreement\n%", "best\n%"),
            *(short[name] for name in others),
            *("NLL", "ECE", "seconds", "status"),
        ]
    ]
    for job in by_accuracy(jobs):
        grid.append(
            [
                clean(job.name),
                *(value_of(job, key) or DASH for key in keys),
                *(fixed(number(job.result, "student", name)) for name in ("top1", "top5", "agreement")),
                fixed(number(job.result, "best", "top1")),
                *(fixed(number(job.result, name, "top1")) for name in others),
                *(fixed(number(job.result, "student", name), 3) for name in ("nll", "ece")),
                fixed(number(job.result, "seconds"), 0),
                job.status,
            ]
        )
    return grid


def _stacked(header: Sequence[str]) -> list[str]:
    """Dotted keys over several lines: their values are much shorter."""
    return [name.replace(".", ".\n") for name in header]


def _without(grid: Grid, column: str) -> Grid:
    if column not in grid[0]:
        return grid
    at = grid[0].index(column)
    return [row[:at] + row[at + 1 :] for row in grid]


def _fitted(grid: Grid, keys: int) -> tuple[Grid, list[str]]:
    """The grid for the terminal's width, and the names of the columns that had no room."""
    grid = [_stacked(grid[0]), *([row[0], *map(_elide, row[1 : 1 + keys]), *row[1 + keys :]] for row in grid[1:])]
    dropped = []
    for column in _LEAST_IMPORTANT:
        if grid_width(grid) <= CONSOLE.width:
            break
        grid = _without(grid, column)
        dropped.append(column.split("\n")[0])
    return grid, dropped


def _notes(jobs: Sequence[Job]) -> list[str]:
    """Teacher and control where they are the same for every job, how "best" was chosen, and what went wrong."""
    notes = []
    for name in ("teacher", "baseline"):
        measured = [part(job.result, name) for job in jobs if part(job.result, name)]
        if measured and not differs(jobs, name):
            model = measured[0]
            numbers = f"top-1 {percent(number(model, 'top1'))}, top-5 {percent(number(model, 'top5'))}"
            size = f"{count(number(model, 'params'))} parameters"
            notes.append(f"{MODELS[name]}: {text(model, 'model')}, {numbers}, {size}, the same for every job")
    splits = sorted({text(job.result, "evaluated_on") for job in jobs} - {""})
    if splits == ["val"]:
        notes.append('accuracies are on val; "best" was chosen on the same data, and so is the order of the jobs')
    elif splits:
        notes.append(f'accuracies are on {" and ".join(splits)}; "best" is the best epoch, chosen on val')
    for job in jobs:
        error = text(job.result, "error")
        if job.status != "ok":
            notes.append(f"job {clean(job.name)}: {job.status}" + (f", {error}" if error else ""))
    return notes


def _spread(entry: Mapping[str, Any]) -> str:
    """``93.5 ± 0.3 (3)``."""
    if entry["mean"] is None:
        return DASH
    deviation = "" if entry["std"] is None else f" ± {entry['std']:.2f}"
    return f"{entry['mean']:.2f}{deviation} ({entry['n']})"


def _summary_grid(summary: Sequence[Mapping[str, Any]]) -> Grid:
    keys = list(summary[0]["overrides"])
    header = [*keys, "student\ndistilled", "student\nwithout teacher", "teacher"]
    rows = []
    for entry in summary:
        names = [entry["overrides"][key] or DASH for key in keys]
        rows.append([*names, *(_spread(entry[name]) for name in ("student", "baseline", "teacher"))])
    return [header, *rows]


_SUMMARY_WORDS = "Top-1 in percent over seeds, mean ± standard deviation (number of seeds)"


def _as_json(value: Any) -> Any:
    """The same without NaN, infinities and lone surrogates, none of which belongs in a JSON file."""
    if isinstance(value, dict):
        return {_as_json(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _report(folder: Path, jobs: Sequence[Job], keys: Sequence[str], summary: Sequence[Any], picture: bool) -> str:
    blocks = [f"# Sweep {escaped(folder.name)}"]
    commands = [text(job.result, "command") for job in jobs if text(job.result, "command")]
    if commands:
        blocks.append(fenced(commands[0], "sh"))
    failed = sum(job.status != "ok" for job in jobs)
    blocks.append(_jobs(len(jobs)) + (f", {failed} of them not finished" if failed else "") + ".")
    blocks.append(markdown_table(_table(jobs, keys), numbers_from=1 + len(keys)))
    notes = _notes(jobs)
    if notes:
        blocks.append("\n".join(f"- {escaped(note)}" for note in notes))
    if summary:
        blocks += ["## Over seeds", f"{_SUMMARY_WORDS}.", markdown_table(_summary_grid(summary), len(keys) - 1)]
    if picture:
        blocks.append("![Top-1 over the swept value](sweep.png)")
    blocks.append("Every job folder holds its own `report.md`; `sweep.csv` and `sweep.json` hold all numbers.")
    return "\n\n".join(blocks) + "\n"


def close_sweep(folder: Path) -> None:
    """Print the table of a sweep and write ``sweep.csv``, ``sweep.json``, ``report.md`` and, where it makes sense,
    ``sweep.png``. Returns quietly when no job ran."""
    jobs = read_jobs(folder)
    if not jobs:
        return
    keys = varying_keys(jobs)
    summary = seed_summary(jobs, keys)
    key = swept_number(jobs, keys)
    CONSOLE.print()
    sentence(f"Sweep of {_jobs(len(jobs))}", "bold")
    CONSOLE.print()
    grid, dropped = _fitted(_table(jobs, keys), len(keys))
    print_grid(grid, numbers_from=1 + len(keys))
    CONSOLE.print()
    for note in _notes(jobs):
        sentence(note)
    total = [value for job in jobs if (value := number(job.result, "seconds")) is not None]
    sentence(f"students' time: {seconds(sum(total))}" if total else "")
    if summary:
        CONSOLE.print()
        sentence(_SUMMARY_WORDS, "bold")
        CONSOLE.print()
        grid = _summary_grid(summary)
        print_grid([_stacked(grid[0]), *grid[1:]], numbers_from=len(keys) - 1)
        CONSOLE.print()

    write_text(folder / "sweep.csv", sweep_csv(jobs, keys))
    results = [{"job": job.name, **(job.result or {"status": "no result"})} for job in jobs]
    content = {"folder": str(folder), "varying": keys, "results": results, "summary": summary}
    write_json(folder / "sweep.json", _as_json(content))
    if key is not None:
        draw_sweep(jobs, key, folder / "sweep.png")
    write_text(folder / "report.md", _report(folder, jobs, keys, summary, picture=key is not None))
    if dropped:
        sentence(f"No room here for {', '.join(dropped)}: in sweep.csv.")
    say(f"All numbers: {folder / 'sweep.csv'}")

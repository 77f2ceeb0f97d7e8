"""The end of a sweep: one table over its jobs on screen, as CSV, as JSON and as Markdown, and a picture.

It is called whatever became of the jobs, so a job may have failed, been interrupted, or left no result at all.
"""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from distillcli.report.console import CONSOLE, grid_width, print_grid, say, sentence
from distillcli.report.curves import COLOURS, DPI, plot_text, save, tidy
from distillcli.report.format import (
    DASH,
    MODELS,
    Grid,
    clean,
    count,
    fixed,
    number,
    part,
    percent,
    seconds,
    text,
    texts,
)
from distillcli.report.markdown import escaped, fenced, markdown_table
from distillcli.run_folder import read_result, write_json, write_text

# On a narrow terminal these columns go first; the files always have them.
_LEAST_IMPORTANT = ["ECE", "NLL", "top-5\n%", "seconds", "best\n%", "agreement\n%"]
_LONGEST_VALUE = 28  # columns of the terminal for one overridden value


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


def _jobs(size: int) -> str:
    return "1 job" if size == 1 else f"{size} jobs"


def _value(job: Job, key: str) -> str:
    return job.overrides.get(key, "")


def _by_accuracy(jobs: Sequence[Job]) -> list[Job]:
    """The most accurate student first; without labels the one closest to its teacher."""

    def merit(job: Job) -> float:
        divergence = number(job.result, "student", "kl_to_teacher")
        return job.top1 if job.top1 is not None else -math.inf if divergence is None else -divergence

    return sorted(jobs, key=merit, reverse=True)


def _differs(jobs: Sequence[Job], name: str) -> bool:
    """Whether the jobs were measured against different teachers or controls."""
    seen = {
        (text(job.result, name, "model"), number(job.result, name, "top1")) for job in jobs if part(job.result, name)
    }
    return len(seen) > 1


def _elide(words: str) -> str:
    while cell_len(words) > _LONGEST_VALUE:
        words = words[:-2] + "…"
    return words


def _table(jobs: Sequence[Job], keys: Sequence[str]) -> Grid:
    """Header and one row per job, the best student first. Teacher and control are columns only where they differ."""
    others = [name for name in ("teacher", "baseline") if _differs(jobs, name)]
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
    for job in _by_accuracy(jobs):
        grid.append(
            [
                clean(job.name),
                *(_value(job, key) or DASH for key in keys),
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
        if measured and not _differs(jobs, name):
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


# --- several seeds ---------------------------------------------------------------------------------------------------


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
            groups.setdefault(tuple(_value(job, key) for key in others), []).append(job)
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


# --- files -----------------------------------------------------------------------------------------------------------


_FORMULA = set("=+-@\uff1d\uff0b\uff0d\uff20")  # the last four are their full-width forms, which Excel accepts too


def csv_cell(value: Any) -> Any:
    """A cell that a spreadsheet does not run as a formula; numbers stay numbers."""
    if isinstance(value, bool) or not isinstance(value, str):
        return "" if value is None else value
    plain = clean(value)
    try:
        float(plain)
    except ValueError:
        dangerous = plain.lstrip()[:1] in _FORMULA
        return f"'{plain}" if dangerous else plain
    return plain


def _csv(jobs: Sequence[Job], keys: Sequence[str]) -> str:
    numbers = [
        *((name, key) for name in ("student", "teacher", "baseline") for key in _METRICS),
        *((name, key) for name in ("best", "last") for key in ("epoch", "top1", "val_top1")),
        *((key,) for key in ("gap_closed", "epochs", "seconds", "images_per_second", "temperature", "alpha", "seed")),
    ]
    columns = [path for path in numbers if "_".join(path) not in keys]  # a swept seed has its column already
    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    names = ["student_model", "teacher_model", "error"]
    writer.writerow(map(csv_cell, ["job", "status", *keys, *("_".join(path) for path in columns), *names]))
    for job in _by_accuracy(jobs):
        cells: list[Any] = [job.name, job.status, *(_value(job, key) for key in keys)]
        cells += [number(job.result, *path) for path in columns]
        cells += [text(job.result, name, "model") for name in ("student", "teacher")]
        writer.writerow(map(csv_cell, [*cells, text(job.result, "error")]))
    return handle.getvalue()


_METRICS = (
    *("top1", "top5", "balanced_accuracy", "nll", "ece", "agreement", "kl_to_teacher", "knn_top1", "probe_top1"),
    *("params", "macs", "latency_ms"),
)


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


def _numeric(words: str) -> float | None:
    try:
        value = float(words)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def swept_number(jobs: Sequence[Job], keys: Sequence[str]) -> str | None:
    """The one key besides the seed that varies (or the seed, when it alone does) if all its values are numbers."""
    candidates = [key for key in keys if key != "seed"] or list(keys)
    shown = [job for job in jobs if job.top1 is not None]
    if len(candidates) != 1 or not shown:
        return None
    numeric = all(_numeric(_value(job, candidates[0])) is not None for job in shown)
    return candidates[0] if numeric else None


def _draw(jobs: Sequence[Job], key: str, path: Path) -> None:
    """Top-1 over the swept value: a point per job, a line through the means, control and teacher beside it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(7.5, 4.8), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    tidy(axes)
    styles = {"teacher": (":", None), "student": ("-", "o"), "baseline": ("--", "s")}
    for name in MODELS:
        found: dict[float, list[float]] = {}
        for job in jobs:
            value, top1 = _numeric(_value(job, key)), number(job.result, name, "top1")
            if value is not None and top1 is not None:
                found.setdefault(value, []).append(top1)
        if not found:
            continue
        line, marker = styles[name]
        values = sorted(found)
        if name != "student" and not _differs(jobs, name):
            level = found[values[0]][0]
            label = f"{MODELS[name]} {fixed(level)} %"
            axes.axhline(level, color=COLOURS[name], linestyle=line, linewidth=1.5, label=label)
            continue
        means = [statistics.fmean(found[value]) for value in values]
        several = any(len(found[value]) > 1 for value in values)
        label = MODELS[name] + (", mean" if several else "")
        axes.plot(values, means, color=COLOURS[name], linestyle=line, linewidth=2, marker=marker, label=label)
        if several:
            pairs = [(value, top1) for value in values for top1 in found[value]]
            axes.plot(*zip(*pairs, strict=True), "x", color=COLOURS[name], alpha=0.6, markersize=6, linestyle="none")
    measured = [job for job in jobs if job.top1 is not None]
    swept = sorted({value for job in measured if (value := _numeric(_value(job, key))) is not None})
    if swept[0] > 0 and swept[-1] / swept[0] >= 8:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if len(swept) <= 12:
        axes.set_xticks(swept, [f"{value:g}" for value in swept])
    axes.set_xlabel(plot_text(key))
    axes.set_ylabel("top-1, %")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    save(figure, path)


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

    write_text(folder / "sweep.csv", _csv(jobs, keys))
    results = [{"job": job.name, **(job.result or {"status": "no result"})} for job in jobs]
    content = {"folder": str(folder), "varying": keys, "results": results, "summary": summary}
    write_json(folder / "sweep.json", _as_json(content))
    if key is not None:
        _draw(jobs, key, folder / "sweep.png")
    write_text(folder / "report.md", _report(folder, jobs, keys, summary, picture=key is not None))
    if dropped:
        sentence(f"No room here for {', '.join(dropped)}: in sweep.csv.")
    say(f"All numbers: {folder / 'sweep.csv'}")

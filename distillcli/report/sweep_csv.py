"""``sweep.csv``: one line per job, with all its numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from distillcli.report.format import clean
from distillcli.report.sweep_jobs import SweepJob, best_first, value_of
from distillcli.runs.result import Result, to_json

_FORMULA = set("=+-@\uff1d\uff0b\uff0d\uff20")  # the last four are full-width forms, which Excel takes too


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


_METRICS = (
    *("top1", "top5", "balanced_accuracy", "nll", "ece", "agreement", "kl_to_teacher", "knn_top1", "probe_top1"),
    *("params", "macs", "latency_ms"),
)
_COLUMNS = (
    *(f"{name}_{key}" for name in ("student", "teacher", "baseline") for key in _METRICS),
    *(f"{name}_{key}" for name in ("best", "last") for key in ("epoch", "top1", "val_top1")),
    *("gap_closed", "epochs", "seconds", "images_per_second", "temperature", "alpha", "seed"),
    *("student_model", "teacher_model", "error"),
)


def sweep_csv(jobs: Sequence[SweepJob], keys: Sequence[str]) -> str:
    columns = [column for column in _COLUMNS if column not in keys]  # a swept seed has its column already
    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow(map(csv_cell, ["job", "status", *keys, *columns]))
    for job in best_first(jobs):
        known = _flat(job.result)
        cells: list[Any] = [job.name, job.status, *(value_of(job, key) for key in keys)]
        writer.writerow(map(csv_cell, [*cells, *(known.get(column) for column in columns)]))
    return handle.getvalue()


def _flat(result: Result) -> dict[str, Any]:
    """``student: {top1: 93.5}`` as ``student_top1: 93.5``."""
    flat: dict[str, Any] = {}
    for name, value in to_json(result).items():
        flat |= {f"{name}_{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat

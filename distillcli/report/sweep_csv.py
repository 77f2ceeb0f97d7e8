"""A sweep as CSV: a line per job and every number of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from distillcli.report.format import clean, number, text
from distillcli.report.jobs import Job, by_accuracy, value_of

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


def sweep_csv(jobs: Sequence[Job], keys: Sequence[str]) -> str:
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
    for job in by_accuracy(jobs):
        cells: list[Any] = [job.name, job.status, *(value_of(job, key) for key in keys)]
        cells += [number(job.result, *path) for path in columns]
        cells += [text(job.result, name, "model") for name in ("student", "teacher")]
        writer.writerow(map(csv_cell, [*cells, text(job.result, "error")]))
    return handle.getvalue()


_METRICS = (
    *("top1", "top5", "balanced_accuracy", "nll", "ece", "agreement", "kl_to_teacher", "knn_top1", "probe_top1"),
    *("params", "macs", "latency_ms"),
)

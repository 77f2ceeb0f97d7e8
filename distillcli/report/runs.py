"""One line, or one object, for each run of a list."""

from __future__ import annotations

from typing import Any

from distillcli.config.overrides import key_of
from distillcli.report.format import byte_count, fixed, share
from distillcli.runs.inventory import Run
from distillcli.runs.result import Measured, top1_of

HEADERS = (
    *("run", "state", "student", "top-1", "control", "teacher", "its top-1", "gap closed"),
    *("data", "seed", "last change", "size", "set"),
)
# What the other columns say already.
_TOLD = {"seed", "out", "name", "resume"}


def row_of(run: Run) -> tuple[str, ...]:
    """The cells under HEADERS; accuracies in percent."""
    result = run.result
    student, teacher = result.student or Measured(), result.teacher or Measured()
    return (
        str(run.folder),
        run.state,
        student.model or "",
        fixed(student.top1, 2),
        fixed(top1_of(result.baseline), 2),
        teacher.model or "",
        fixed(teacher.top1, 2),
        "" if result.gap_closed is None else share(result.gap_closed),
        (result.dataset.name if result.dataset else None) or "",
        "" if result.seed is None else str(result.seed),
        f"{run.changed:%Y-%m-%d %H:%M}",
        f"{byte_count(run.size)}",
        " ".join(override for override in result.overrides if key_of(override) not in _TOLD),
    )


def object_of(run: Run) -> dict[str, Any]:
    """The same as plain data, with sizes in bytes and the time in ISO 8601."""
    result = run.result
    student, teacher = result.student or Measured(), result.teacher or Measured()
    return {
        "run": str(run.folder),
        "state": run.state,
        "role": result.role,
        "name": result.name,
        "student": student.model,
        "top1": student.top1,
        "control_top1": top1_of(result.baseline),
        "teacher": teacher.model,
        "teacher_top1": teacher.top1,
        "gap_closed": result.gap_closed,
        "dataset": result.dataset.name if result.dataset else None,
        "seed": result.seed,
        "changed": run.changed.isoformat(timespec="seconds"),
        "bytes": run.size,
        "overrides": list(result.overrides),
    }

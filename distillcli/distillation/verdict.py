"""Whether distilling helped: student against control, image by image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from distillcli.evidence.paired import compare, compare_by_class, gap_interval
from distillcli.runs.predictions import Predictions
from distillcli.runs.result import ClassVerdict, Verdict


def verdict_of(
    student: Predictions | None, control: Predictions | None, teacher: Predictions | None, classes: Sequence[str]
) -> Verdict | None:
    """The verdict on a student; None without predictions of both it and its control for the same labelled images."""
    if student is None or control is None or not _same_images(student, control) or not len(student.hits):
        return None
    found = compare(student.hits, control.hits)
    gap = None
    if teacher is not None and _same_images(student, teacher):
        gap = gap_interval(student.hits, control.hits, teacher.hits)
    return Verdict(
        conclusion="not settled" if not found.settled else "helps" if found.difference > 0 else "hurts",
        images_to_settle=found.images_to_settle,
        gap_low=None if gap is None else gap[0],
        gap_high=None if gap is None else gap[1],
        by_class=_by_class(student, control, classes),
        **dataclasses.asdict(found),
    )


def _by_class(student: Predictions, control: Predictions, classes: Sequence[str]) -> dict[str, ClassVerdict]:
    labels = student.labels[student.labels >= 0]
    found = compare_by_class(student.hits, control.hits, labels)
    return {
        classes[label]: ClassVerdict(one.difference, one.gained, one.lost, one.images, one.p_value, adjusted)
        for label, (one, adjusted) in found.items()
    }


def _same_images(one: Predictions, other: Predictions) -> bool:
    """A control that was fitted once serves runs on the same data alone, but its file may be of another version."""
    return np.array_equal(one.labels, other.labels)

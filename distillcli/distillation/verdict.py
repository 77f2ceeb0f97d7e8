"""Whether distilling helped: student against control, image by image."""

from __future__ import annotations

import dataclasses

import numpy as np

from distillcli.evidence.paired import compare, gap_interval
from distillcli.runs.predictions import Predictions
from distillcli.runs.result import Verdict


def verdict_of(student: Predictions | None, control: Predictions | None, teacher: Predictions | None) -> Verdict | None:
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
        **dataclasses.asdict(found),
    )


def _same_images(one: Predictions, other: Predictions) -> bool:
    """A control that was fitted once serves runs on the same data alone, but its file may be of another version."""
    return np.array_equal(one.labels, other.labels)

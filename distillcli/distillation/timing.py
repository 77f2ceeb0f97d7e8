"""The latency of the models of a run, timed together when all of them are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distillcli.distillation.teaching import Teaching
from distillcli.models.backbone import Backbone
from distillcli.models.ensemble import Classifier
from distillcli.runs.result import Measured, Result
from distillcli.runtime import Runtime
from distillcli.training.latency import architecture, time_together


def with_latency(
    result: Result, teaching: Teaching, trained: Sequence[Backbone], control: Backbone, runtime: Runtime
) -> Result:
    """``result`` with the latency of all its models.

    ``trained``: the student, then its peers. ``control``: any model of the control's architecture; read only if there
    is a control. Raises Interrupted.
    """
    student, *peers = trained
    teacher = None if teaching.teacher is None else teaching.teacher.backbone
    found = time_together([*([teacher] if teacher else []), *teaching.assistants, *trained, control], runtime)

    def timed(model: Classifier, numbers: Measured) -> Measured:
        return found[architecture(model)].of(numbers)

    return dataclasses.replace(
        result,
        student=result.student and timed(student, result.student),
        teacher=None if teacher is None or result.teacher is None else timed(teacher, result.teacher),
        chain=tuple(timed(*pair) for pair in zip(teaching.assistants, result.chain, strict=True)),
        peers=tuple(timed(*pair) for pair in zip(peers, result.peers, strict=True)),
        baseline=result.baseline and timed(control, result.baseline),
    )

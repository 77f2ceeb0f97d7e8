"""A fit before its first step and after its last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillcli.config.schema import TrainConfig
from distillcli.models.backbone import Backbone
from distillcli.runs.folder import fingerprint
from distillcli.teachers.frozen import Teacher
from distillcli.terms.objective import Objective
from distillcli.views.loader import Data
from distillcli.views.showing import Showing, showing


@dataclass(frozen=True)
class Fit:
    """All that is decided before step 1: train ``student`` as ``config`` says, in ``folder``.

    ``ingredients``: plain data, by name, of all that decides the weights afterwards. ``role``: student, teacher,
    assistant or control. ``teacher``: gives the targets; None without one, or where the moving average of the student
    will. ``peers`` learn with the student and teach it.
    """

    config: TrainConfig
    data: Data
    student: Backbone
    objective: Objective
    folder: Path
    ingredients: Mapping[str, Any]
    role: str
    teacher: Teacher | None = None
    peers: tuple[Backbone, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Names what is trained; kept in the checkpoints and in the result."""
        return fingerprint(self.ingredients)

    @property
    def showing(self) -> Showing:
        """Without a teacher only the labelled images are shown, for as many steps as all images would take."""
        train = self.data.train
        return showing(self.config, train if self.objective.compares_teacher else train.labelled())


@dataclass(frozen=True)
class Fitted:
    """``backbone``: the student, of ``epoch``, the last or the best one. ``other``: the model of the other one.

    ``other`` is None where both are one epoch, where none is the best, or where its weights are lost. ``best`` and
    ``last``: epoch and validation numbers; without validation data ``best`` is empty. The images a second are those of
    training alone.
    """

    backbone: Backbone
    epoch: int
    other: Backbone | None
    best: dict[str, float]
    last: dict[str, float]
    images_per_second: float | None

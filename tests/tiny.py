"""Tiny runs inside the test process: two small models on made-up images, silent, on one CPU thread."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillcli.config.compose import compose
from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.config.terms import needs_teacher
from distillcli.distillation.recipes import Above, ingredients
from distillcli.distillation.students import new_backbone
from distillcli.models.backbone import build, describe, place
from distillcli.runtime import Runtime, seed_everything
from distillcli.signals import Stop
from distillcli.sources.open import open_source
from distillcli.teachers.frozen import FrozenTeacher, Teacher
from distillcli.terms.base import Setting
from distillcli.terms.objective import Objective
from distillcli.training.checkpoint import read_checkpoint
from distillcli.training.engine import fit
from distillcli.training.fit import Fit, Fitted
from distillcli.training.session import Session
from distillcli.types import Inputs, Spec
from distillcli.views.loader import Data, open_data

STEPS = 4  # per epoch: 64 images in batches of 16
CPU = Runtime(torch.device("cpu"))


def tiny(*overrides: str) -> TrainConfig:
    """test_resnet teaches test_efficientnet: 2 epochs of 4 steps, with random crops, flips and colours."""
    torch.set_num_threads(1)
    defaults = [
        "experiment=smoke",
        "trainer.device=cpu",
        "dataset.samples=64",
        "trainer.batch_size=16",
        "trainer.epochs=2",
    ]
    config = compose("train", [*defaults, *overrides])
    assert isinstance(config, TrainConfig)
    return config


@dataclass
class Watch:
    """A silent session that counts and can ask to stop; ``labels``: what was fitted, in order."""

    stop_after: int | None = None  # steps of one fit
    exit_code: int = 130
    after_epoch: Callable[[], None] = lambda: None
    runtime: Runtime = CPU
    labels: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    signal: Stop = field(default_factory=Stop)
    steps: int = 0
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runtime = replace(self.runtime, stop=self.signal)

    @property
    def session(self) -> Session:
        def saved(_folder: Path) -> None: ...

        return Session(self.runtime, "distill train", self._watch, self.said.append, self.warnings.append, saved)

    @contextmanager
    def _watch(self, label: str, _epochs: int, _steps: int, _done: int) -> Iterator[Watch]:
        self.labels.append(label)
        yield self

    def step(self, _loss: float | None) -> None:
        self.steps += 1
        if self.steps == self.stop_after:
            self.signal.exit_code = self.exit_code

    def epoch(self, train: dict[str, Any], evaluation: dict[str, Any]) -> None:
        self.rows.append((train, evaluation))
        self.after_epoch()


def open_tiny(config: TrainConfig, runtime: Runtime = CPU) -> Data:
    return open_data(open_source(config.dataset), config.dataset, config.trainer.workers, runtime)


def setting(student: Spec, teacher: Spec | None, images: int = 64, epochs: int = 10) -> Setting:
    """A setting with ``images`` training images, their classes in turn."""
    return Setting(student, teacher, np.arange(images) % student.classes, epochs)


def some_teacher(config: TrainConfig, objective: Objective, classes: int) -> FrozenTeacher:
    """A teacher with fixed random weights: what it says matters to no test, only that it always says the same."""
    seed_everything(0, "some teacher")
    backbone = build(ModelConfig(config.teacher.name), Inputs(classes, config.dataset.image_size), "teacher")
    return FrozenTeacher(place(backbone, CPU.device, config.trainer.channels_last), "fp32", objective.teacher_taps)


def train(
    config: TrainConfig,
    folder: Path,
    watch: Watch | None = None,
    keep: Callable[[FrozenTeacher | None, Objective, Data], None] = lambda *_: None,
    swap: Callable[[FrozenTeacher | None], Teacher | None] = lambda teacher: teacher,
) -> Fitted:
    """One fit of the student in ``folder``, begun or continued.

    ``keep`` sees teacher, objective and data before; ``swap`` may put another teacher in the place of the frozen one.
    """
    if not folder.exists():
        folder.mkdir()
    watch = watch or Watch()
    data = open_tiny(config, watch.runtime)
    student = new_backbone(config, data, "student")
    with_teacher = needs_teacher(config.distill)
    expert = describe(config.teacher, data.inputs, "teacher") if with_teacher else None
    objective = Objective(
        config.distill, Setting(student.spec, expert, data.source.train.labels, config.trainer.epochs)
    )
    teacher = some_teacher(config, objective, len(data.source.classes)) if with_teacher else None
    keep(teacher, objective, data)
    above = Above(teacher.backbone, "off") if teacher else None
    recipe = ingredients(config, data, student, watch.runtime, above)
    return fit(Fit(config, data, student, objective, folder, recipe, "student", swap(teacher)), watch.session)


def last(folder: Path) -> dict[str, Any]:
    return read_checkpoint(folder / "checkpoints" / "last.pt")


def digest(content: Any) -> str:
    """Names nested tensors and plain values bit by bit."""
    found = hashlib.sha256()

    def walk(node: Any) -> None:
        if isinstance(node, torch.Tensor):
            found.update(str((node.dtype, tuple(node.shape))).encode())
            found.update(node.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(node, dict):
            for key, value in node.items():
                found.update(repr(key).encode())
                walk(value)
        elif isinstance(node, (list, tuple)):
            for value in node:
                walk(value)
        else:
            found.update(repr(node).encode())

    walk(content)
    return found.hexdigest()


def files(folder: Path) -> dict[str, str]:
    """Relative path -> hash of the content, of every file below ``folder``."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

"""Evaluation against float64 NumPy on random logits."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from distillcli.runtime import Runtime
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.training.calibration import TRIED, best_temperature, fitted_temperature
from distillcli.training.evaluation import evaluate, evaluate_by_class
from distillcli.types import LOGITS_ONLY, Batch, Output, Spec, Taps

CPU = torch.device("cpu")


class Echo(nn.Module):
    """A model whose images are its logits: the first K values for the student, the next K for the teacher."""

    def __init__(self, classes: int, offset: int = 0) -> None:
        super().__init__()
        self.spec = Spec("echo", classes, 1, (), 0, 0)
        self.image_size = 8
        self.offset = offset
        self.modes: list[bool] = []
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))

    def forward(self, images: Tensor, taps: Taps = LOGITS_ONLY) -> Output:
        self.modes.append(self.training)
        return Output(images.flatten(1)[:, self.offset : self.offset + self.spec.classes], None, {})


def measured(
    student: NDArray[np.float32],
    labels: NDArray[np.int64],
    teacher: NDArray[np.float32] | None = None,
    size: int = 17,
    temperature: float | None = None,
) -> dict[str, float]:
    """``evaluate`` on these logits in batches of ``size``, the last one smaller."""
    classes = student.shape[1]
    values = torch.from_numpy(np.concatenate([student, student if teacher is None else teacher], axis=1))
    batches = [
        Batch(
            values[start : start + size, None, None],
            torch.from_numpy(labels[start : start + size]),
            torch.arange(len(labels))[start : start + size],
        )
        for start in range(0, len(labels), size)
    ]
    frozen = None if teacher is None else FrozenTeacher(Echo(classes, classes), "fp32", LOGITS_ONLY)  # type: ignore[arg-type]
    loader: Any = SimpleNamespace(
        plain=lambda: iter(batches),
        labels=torch.from_numpy(labels),
        shown=np.arange(len(labels)),
        has_labels=bool((labels >= 0).any()),
        runtime=Runtime(CPU),
    )
    return evaluate_by_class(Echo(classes), loader, "fp32", frozen, temperature).numbers  # type: ignore[arg-type]


def logits(count: int, classes: int, seed: int = 0, scale: float = 3.0) -> NDArray[np.float32]:
    return (scale * np.random.RandomState(seed).randn(count, classes)).astype(np.float32)


def labels_for(student: NDArray[np.float32], seed: int = 1) -> NDArray[np.int64]:
    """Half of the labels random, half what the model says."""
    random = np.random.RandomState(seed)
    guess = random.randint(0, student.shape[1], len(student))
    return np.where(random.rand(len(student)) < 0.5, student.argmax(axis=1), guess).astype(np.int64)


def log_softmax(values: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = values.astype(np.float64) - values.max(axis=1, keepdims=True).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def calibration_error(student: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Expected calibration error (Guo et al., ICML 2017) of 15 equal bins, each open at its lower end."""
    confidence = np.exp(log_softmax(student)).max(axis=1)
    correct = student.argmax(axis=1) == labels
    edges, error = np.linspace(0, 1, 16), 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 50])
@pytest.mark.parametrize("count", [1, 200])
def test_numbers_of_a_model_are_their_formulas(classes: int, count: int) -> None:
    student = logits(count, classes)
    labels = labels_for(student)
    numbers = measured(student, labels)
    ranks = (student > student[np.arange(count), labels][:, None]).sum(axis=1)  # how many classes come before the label
    assert numbers.keys() == {"top1", "top5", "balanced_accuracy", "nll", "ece", "brier"}
    assert numbers["top1"] == pytest.approx(100 * (ranks < 1).mean(), rel=1e-6)
    right = student.argmax(axis=1) == labels
    of_class = [right[labels == label].mean() for label in np.unique(labels)]
    assert numbers["balanced_accuracy"] == pytest.approx(100 * np.mean(of_class), rel=1e-5)
    assert numbers["top5"] == pytest.approx(100 * (ranks < 5).mean(), rel=1e-6)
    assert numbers["nll"] == pytest.approx(-log_softmax(student)[np.arange(count), labels].mean(), rel=1e-5, abs=1e-7)
    assert numbers["ece"] == pytest.approx(calibration_error(student, labels), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_top5_of_at_most_five_classes_is_always_right(classes: int) -> None:
    student = logits(50, classes)
    assert measured(student, labels_for(student))["top5"] == 100


@pytest.mark.parametrize("classes", [2, 10])
def test_fidelity_to_the_teacher_is_its_formula(classes: int) -> None:
    student, teacher = logits(200, classes), logits(200, classes, seed=5)
    numbers = measured(student, labels_for(student), teacher)
    log_s, log_t = log_softmax(student), log_softmax(teacher)
    alike = student.argmax(axis=1) == teacher.argmax(axis=1)
    assert 0 < alike.mean() < 1
    assert numbers["agreement"] == pytest.approx(100 * alike.mean(), rel=1e-6)
    divergence = (np.exp(log_t) * (log_t - log_s)).sum(axis=1).mean()
    assert numbers["kl_to_teacher"] == pytest.approx(divergence, rel=1e-5)


def test_a_model_agrees_with_itself_wholly() -> None:
    student = logits(50, 4)
    numbers = measured(student, labels_for(student), student)
    assert (numbers["agreement"], numbers["kl_to_teacher"]) == (100, 0)


def test_images_without_a_label_count_for_the_teacher_alone() -> None:
    student, teacher = logits(200, 7), logits(200, 7, seed=5)
    labels = labels_for(student)
    known = np.arange(200) % 3 > 0
    some = measured(student, np.where(known, labels, -1), teacher)
    of_known, of_all = measured(student[known], labels[known]), measured(student, labels, teacher)
    assert {name: some[name] for name in of_known} == pytest.approx(of_known, rel=1e-5)
    assert some["agreement"] == pytest.approx(of_all["agreement"])
    none = measured(student, np.full(200, -1), teacher)
    assert none == pytest.approx({name: of_all[name] for name in ("agreement", "kl_to_teacher")})
    assert measured(student, np.full(200, -1)) == {}


def test_numbers_do_not_depend_on_the_batches() -> None:
    student, teacher = logits(100, 7), logits(100, 7, seed=5)
    labels = labels_for(student)
    whole = measured(student, labels, teacher, size=100)
    for size in (1, 33, 64):
        assert measured(student, labels, teacher, size=size) == pytest.approx(whole, rel=1e-5)


def test_a_confident_model_is_right_or_wrong_without_limit() -> None:
    student = np.array([[100.0, 0.0], [100.0, 0.0]], np.float32)
    numbers = measured(student, np.array([0, 1]))
    assert numbers == {"top1": 50, "top5": 100, "balanced_accuracy": 50, "nll": 50, "ece": 0.5, "brier": 1}


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_in_eval_mode_and_returns_to_its_own(training: bool) -> None:
    model, images = Echo(3).train(training), torch.from_numpy(logits(4, 3))[:, None, None]
    loader: Any = SimpleNamespace(
        plain=lambda: iter([Batch(images, torch.zeros(4, dtype=torch.long), torch.arange(4))]),
        labels=torch.zeros(4, dtype=torch.long),
        shown=np.arange(4),
        has_labels=True,
        runtime=Runtime(CPU),
    )
    evaluate(model, loader)  # type: ignore[arg-type]
    assert model.modes == [False]
    assert model.training == training


def test_evaluation_makes_no_graph() -> None:
    model = Echo(3)
    images = torch.from_numpy(logits(4, 3))[:, None, None].requires_grad_()
    seen: list[bool] = []
    model.register_forward_hook(lambda *call: seen.append(call[2].logits.requires_grad))
    loader: Any = SimpleNamespace(
        plain=lambda: iter([Batch(images, torch.zeros(4, dtype=torch.long), torch.arange(4))]),
        labels=torch.zeros(4, dtype=torch.long),
        shown=np.arange(4),
        has_labels=True,
        runtime=Runtime(CPU),
    )
    evaluate(model, loader)  # type: ignore[arg-type]
    assert seen == [False]


def validation(values: NDArray[np.float32], labels: NDArray[np.int64], part: str = "test") -> Any:
    """Data whose validation images are ``values``."""
    batch = Batch(torch.from_numpy(values[:, None, None]), torch.from_numpy(labels), torch.arange(len(labels)))
    loader = SimpleNamespace(plain=lambda: iter([batch]), has_labels=bool((labels >= 0).any()), runtime=Runtime(CPU))
    loader.labelled = lambda: loader
    return SimpleNamespace(val=loader, source=SimpleNamespace(evaluated_on=part))


@pytest.mark.parametrize("truth", [0.3, 1.0, 5.0])
def test_the_temperature_is_that_of_the_greatest_likelihood(truth: float) -> None:
    """Labels drawn from the logits divided by the truth; the reference minimises in float64."""
    values = (truth * logits(4000, 5, scale=2.0)).astype(np.float32)
    chances = np.exp(log_softmax(values / np.float32(truth)))
    draws = np.random.RandomState(1).rand(4000, 1)
    labels = (draws > chances.cumsum(axis=1)).sum(axis=1).clip(max=4).astype(np.int64)

    def loss(temperature: float) -> float:
        return float(-log_softmax(values / np.float32(temperature))[np.arange(4000), labels].mean())

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-6}).x
    found = fitted_temperature(Echo(5), validation(values, labels), "fp32")  # type: ignore[arg-type]
    assert found == pytest.approx(best, rel=5e-3)
    assert found == pytest.approx(truth, rel=0.1)


def test_no_temperature_is_fitted_on_what_is_reported_or_on_nothing() -> None:
    values = logits(50, 3)
    labels = labels_for(values)
    for data in (validation(values, labels, "val"), validation(values, labels * 0 - 1), SimpleNamespace(val=None)):
        assert fitted_temperature(Echo(3), data, "fp32") is None  # type: ignore[arg-type]
    assert best_temperature(torch.full((len(TRIED),), float("nan"))) is None


def test_the_limits_stand_for_all_beyond() -> None:
    values = logits(50, 3)
    for labels, limit in ((values.argmax(axis=1), 1 / 16), (values.argmin(axis=1), 16)):
        assert fitted_temperature(Echo(3), validation(values, labels), "fp32") == pytest.approx(limit)  # type: ignore[arg-type]


def test_numbers_after_calibration_are_those_of_the_divided_logits() -> None:
    student = logits(200, 5)
    labels = labels_for(student)
    plain, scaled = measured(student, labels, temperature=2.5), measured(student / np.float32(2.5), labels)
    assert {f"calibrated_{key}" for key in ("nll", "ece", "brier")} <= plain.keys()
    for key in ("nll", "ece", "brier"):
        assert plain[f"calibrated_{key}"] == pytest.approx(scaled[key], rel=1e-5)
    one_hot = np.eye(5)[labels]
    assert plain["brier"] == pytest.approx(((np.exp(log_softmax(student)) - one_hot) ** 2).sum(axis=1).mean(), rel=1e-5)

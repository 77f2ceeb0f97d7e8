"""The terms on logits: values and gradients against float64 NumPy references written from the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillcli.config.compose import compose
from distillcli.config.schema import DistillConfig, TrainConfig
from distillcli.config.terms import KNOWN_TERMS, StandardizeOptions, labels_only, needs_teacher, parse_options
from distillcli.errors import UserError
from distillcli.terms import TERMS
from distillcli.terms.base import FLAT, standardized
from distillcli.terms.labelled import (
    hand_made_logits,
    label_of,
    nkd,
    other_kl,
    sample_weights,
    target_kl,
    weighted_soft_labels,
    without_label,
)
from distillcli.terms.logit import (
    batch_correlation,
    class_correlation,
    dist_parts,
    jensen_shannon,
    kl_divergence,
    pearson,
    reverse_kl,
    symmetric_kl,
)
from distillcli.terms.objective import Objective
from distillcli.types import Output
from tests import builders
from tests.builders import batch_of, seeded, spec
from tests.tiny import setting

Array = NDArray[np.float64]

T = 3.0
OPTIONS: dict[str, dict[str, Any]] = {
    "kl": {},
    "reverse_kl": {},
    "symmetric_kl": {"rho": 0.3},
    "js": {},
    "dkd": {"alpha": 0.7, "beta": 6.0},
    "nkd": {"gamma": 1.5},
    "dist": {"beta": 0.8, "gamma": 1.7},
    "wsld": {},
    "multi_kl": {"temperatures": [1.0, 3.5]},
    "class_correlation": {},
    "batch_correlation": {},
    "logit_mse": {},
    "tfkd": {"confidence": 0.9, "form": "paper"},
}
ALL = list(OPTIONS)
BATCHWISE = ["dist", "class_correlation", "batch_correlation"]
SINGLE = [name for name in ALL if name not in BATCHWISE]
WITH_TEACHER = [name for name in ALL if name != "tfkd"]
ZERO = ["kl", "reverse_kl", "symmetric_kl", "js", "dkd", "multi_kl", "class_correlation", "batch_correlation"]


def labels_of(count: int, classes: int) -> Tensor:
    return torch.arange(count) % classes


def value_of(name: str, student: Tensor, teacher: Tensor, targets: Tensor | None = None, **options: Any) -> Tensor:
    """The term itself, in the precision of its inputs."""
    classes = student.shape[1]
    term = TERMS[name](parse_options(name, {**OPTIONS[name], **options}), setting(spec(classes), spec(classes)))
    targets = labels_of(len(student), classes) if targets is None else targets
    temperature = options.get("temperature", T)
    value: Tensor = term(
        Output(student, None, {}), Output(teacher, None, {}), batch_of(len(targets), targets=targets), temperature
    )
    return value


def gradient_of(name: str, student: Tensor, teacher: Tensor, targets: Tensor | None = None, **options: Any) -> Tensor:
    student = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value_of(name, student, teacher, targets, **options), student)
    return gradient


def gradient(function: Callable[[Tensor], Tensor], student: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(student), student)
    return found


# --- references ---------------------------------------------------------------------------------------------------


def log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def softmax(z: Array) -> Array:
    return np.exp(log_softmax(z))


def kl_rows(log_p: Array, log_q: Array) -> Array:
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))


def split(z: Array, y: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """log p(y), log(1 - p(y)), and the log-softmax of the other classes, each row by itself."""
    hit, miss, others = [], [], []
    for row, label in zip(z, y, strict=True):
        rest = np.delete(row, label)
        highest = rest.max()
        gap = row[label] - (highest + np.log(np.exp(rest - highest).sum()))
        hit.append(-np.logaddexp(0, -gap))
        miss.append(-np.logaddexp(0, gap))
        others.append(log_softmax(rest))
    return np.array(hit), np.array(miss), np.array(others)


def np_parts(s: Array, t: Array, y: NDArray[np.int64], temperature: float) -> tuple[Array, Array]:
    """KL of the two events, and KL among the other classes, of each sample; no T^2."""
    (hit_s, miss_s, others_s), (hit_t, miss_t, others_t) = (split(z / temperature, y) for z in (s, t))
    events_s, events_t = np.stack([hit_s, miss_s], axis=1), np.stack([hit_t, miss_t], axis=1)
    return kl_rows(events_t, events_s), kl_rows(others_t, others_s)


def np_pearson(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b) + 1e-8))


def np_value(name: str, s: Array, t: Array, targets: NDArray[Any]) -> float:
    """The value with the options above. ``targets``: class numbers or distributions."""
    count, classes = s.shape
    y = targets if targets.ndim == 1 else targets.argmax(axis=1)
    log_s, log_t = log_softmax(s / T), log_softmax(t / T)
    if name == "kl":
        return float(T**2 * kl_rows(log_t, log_s).mean())
    if name == "logit_mse":
        return float(((s - t) ** 2).mean())
    if name == "reverse_kl":
        return float(T**2 * kl_rows(log_s, log_t).mean())
    if name == "symmetric_kl":
        return float(T**2 * (0.3 * kl_rows(log_t, log_s) + 0.7 * kl_rows(log_s, log_t)).mean())
    if name == "js":
        middle = np.logaddexp(log_s, log_t) - np.log(2)
        return float(T**2 * (kl_rows(log_t, middle) + kl_rows(log_s, middle)).mean() / 2)
    if name == "dkd":
        events, others = np_parts(s, t, y, T)
        return float(T**2 * (0.7 * events + 6.0 * others).mean())
    if name == "nkd":
        rows = np.arange(count)
        hit = np.exp(log_softmax(t)[rows, y]) * log_softmax(s)[rows, y]
        others_s, others_t = split(s / T, y)[2], split(t / T, y)[2]
        return float(-hit.mean() - 1.5 * T**2 * (np.exp(others_t) * others_s).sum(axis=1).mean())
    if name == "dist":
        p_s, p_t = softmax(s / T), softmax(t / T)
        inter = 1 - np.mean([np_pearson(p_s[row], p_t[row]) for row in range(count)])
        intra = 1 - np.mean([np_pearson(p_s[:, column], p_t[:, column]) for column in range(classes)])
        return float(T**2 * (0.8 * inter + 1.7 * intra))
    if name == "wsld":
        q = np.eye(classes)[y] if targets.ndim == 1 else targets
        loss_s, loss_t = (-(q * log_softmax(z)).sum(axis=1) for z in (s, t))
        weight = 1 - np.exp(-loss_s / (loss_t + 1e-7))
        return float(T**2 * (weight * -(np.exp(log_t) * log_s).sum(axis=1)).mean())
    if name == "multi_kl":
        return float(sum(a**2 * kl_rows(log_softmax(t / a), log_softmax(s / a)).mean() for a in (1.0, 3.5)))
    if name in ("class_correlation", "batch_correlation"):
        total = 0.0
        for a in (2, 3, 4, 5, 6):
            p_s, p_t = softmax(s / a), softmax(t / a)
            if name == "batch_correlation":
                p_s, p_t = p_s.T, p_t.T
            total += np.linalg.norm(p_t.T @ p_t - p_s.T @ p_s, "fro") ** 2 / p_s.shape[1]
        return float(total)
    assert name == "tfkd"
    made = np.full((count, classes), (1 - 0.9) / (classes - 1))
    made[np.arange(count), y] = 0.9
    return float(T**2 * kl_rows(log_softmax(np.log(made) / T), log_s).mean())


def np_weights(s: Array, t: Array, targets: NDArray[Any]) -> Array:
    q = np.eye(s.shape[1])[targets] if targets.ndim == 1 else targets
    loss_s, loss_t = (-(q * log_softmax(z)).sum(axis=1) for z in (s, t))
    return np.asarray(1 - np.exp(-loss_s / (loss_t + 1e-7)))


def np_gradient(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Central differences."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        high, low = at.copy(), at.copy()
        high[place] += step
        low[place] -= step
        found[place] = (function(high) - function(low)) / (2 * step)
    return found


# --- values and gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "classes"), [(7, 5), (1, 5), (2, 5), (6, 2), (1, 2), (3, 12)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("name", ALL)
def test_a_term_is_its_formula(name: str, scale: float, count: int, classes: int) -> None:
    student, teacher = scale * seeded(count, classes), scale * seeded(count, classes, seed=1)
    labels = labels_of(count, classes)
    expected = np_value(name, student.numpy(), teacher.numpy(), labels.numpy())
    assert value_of(name, student, teacher).item() == pytest.approx(expected, rel=1e-8, abs=1e-13)


@pytest.mark.parametrize(("count", "classes"), [(6, 5), (1, 5), (4, 2)])
@pytest.mark.parametrize("name", ALL)
def test_a_gradient_is_that_of_the_formula(name: str, count: int, classes: int) -> None:
    student, teacher = 2 * seeded(count, classes), 2 * seeded(count, classes, seed=1)
    labels = labels_of(count, classes).numpy()
    expected = np_gradient(lambda s: np_value(name, s, teacher.numpy(), labels), student.numpy())
    if name == "wsld":  # its weights have no gradient
        soft = [softmax(z.numpy() / T) for z in (student, teacher)]
        weight = np_weights(student.numpy(), teacher.numpy(), labels)
        expected = T * weight[:, None] / count * (soft[0] - soft[1])
    np.testing.assert_allclose(gradient_of(name, student, teacher).numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", [name for name in WITH_TEACHER if name != "wsld"])
def test_gradcheck(name: str, standardize: bool) -> None:
    student, teacher = seeded(4, 5).requires_grad_(), seeded(4, 5, seed=4)
    assert torch.autograd.gradcheck(lambda z: value_of(name, z, teacher, standardize=standardize), [student])


def test_gradcheck_of_terms_apart() -> None:
    student, teacher, labels = seeded(4, 5).requires_grad_(), seeded(4, 5, seed=4), labels_of(4, 5)
    assert torch.autograd.gradcheck(lambda z: value_of("tfkd", z, teacher), [student])
    weight = sample_weights(student, teacher, labels)
    soft = (teacher / T).softmax(dim=1)

    def fixed(logits: Tensor) -> Tensor:
        return T**2 * (weight * -(soft * (logits / T).log_softmax(dim=1)).sum(dim=1)).mean()

    torch.testing.assert_close(gradient_of("wsld", student.detach(), teacher), gradient(fixed, student.detach()))


# --- every term ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_soft_targets_are_understood(name: str) -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    q = (3 * seeded(6, 5, seed=2)).softmax(dim=1)
    expected = np_value(name, student.numpy(), teacher.numpy(), q.numpy())
    assert value_of(name, student, teacher, q).item() == pytest.approx(expected, rel=1e-9)
    labels = labels_of(6, 5)
    onehot = nn.functional.one_hot(labels, 5).double()
    torch.testing.assert_close(value_of(name, student, teacher, onehot), value_of(name, student, teacher, labels))


def test_the_label_of_a_distribution_is_its_largest_share() -> None:
    assert label_of(torch.tensor([[0.3, 0.7], [0.6, 0.4]])).tolist() == [1, 0]
    assert label_of(torch.tensor([3, 1])).tolist() == [3, 1]
    values = torch.arange(12).reshape(3, 4)
    assert without_label(values, torch.tensor([0, 2, 3])).tolist() == [[1, 2, 3], [4, 5, 7], [8, 9, 10]]


@pytest.mark.parametrize("label", [5, -1])
@pytest.mark.parametrize("name", ["dkd", "nkd", "wsld", "tfkd"])
def test_a_label_that_is_no_class_raises(name: str, label: int) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        value_of(name, seeded(2, 5), seeded(2, 5, seed=1), torch.tensor([0, label]))


@pytest.mark.parametrize("name", [name for name in ALL if name != "logit_mse"])  # no softmax
def test_a_shift_of_each_row_changes_nothing(name: str) -> None:
    student, teacher, shift = seeded(6, 5), seeded(6, 5, seed=1), 10 * seeded(6, 1, seed=2)
    expected = value_of(name, student, teacher)
    torch.testing.assert_close(value_of(name, student + shift, teacher), expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(value_of(name, student, teacher + shift), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", SINGLE)
def test_a_mean_over_samples_is_the_mean_of_its_halves_and_ignores_duplication(name: str) -> None:
    student, teacher, labels = seeded(6, 5), seeded(6, 5, seed=1), labels_of(6, 5)
    assert not KNOWN_TERMS[name].whole_batch
    whole = value_of(name, student, teacher, labels)
    halves = [value_of(name, student[rows], teacher[rows], labels[rows]) for rows in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(sum(halves) / 2, whole, rtol=1e-12, atol=0)
    twice = value_of(name, student.repeat(2, 1), teacher.repeat(2, 1), labels.repeat(2))
    torch.testing.assert_close(twice, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", BATCHWISE)
def test_a_batchwise_term_depends_on_which_samples_share_a_batch(name: str) -> None:
    student, teacher = 3 * seeded(6, 5), 3 * seeded(6, 5, seed=1)
    assert KNOWN_TERMS[name].whole_batch
    whole = value_of(name, student, teacher)
    halves = (value_of(name, student[:3], teacher[:3]) + value_of(name, student[3:], teacher[3:])) / 2
    assert abs(halves - whole) > 0.02 * whole


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_the_samples_does_not_matter(name: str) -> None:
    student, teacher, labels, order = seeded(6, 5), seeded(6, 5, seed=1), labels_of(6, 5), [4, 0, 5, 2, 1, 3]
    mixed = value_of(name, student[order], teacher[order], labels[order])
    torch.testing.assert_close(mixed, value_of(name, student, teacher, labels), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_the_order_of_the_classes_does_not_matter(name: str) -> None:
    student, teacher, labels, order = seeded(6, 5), seeded(6, 5, seed=1), labels_of(6, 5), [3, 1, 4, 0, 2]
    renamed = torch.tensor(order).argsort()[labels]
    mixed = value_of(name, student[:, order], teacher[:, order], renamed)
    torch.testing.assert_close(mixed, value_of(name, student, teacher, labels), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ZERO)
def test_zero_and_least_where_student_equals_teacher(name: str) -> None:
    teacher = seeded(6, 5)
    assert value_of(name, teacher.clone(), teacher).item() == pytest.approx(0, abs=1e-15)
    for seed in range(10):
        assert value_of(name, teacher + 1e-3 * seeded(6, 5, seed=10 + seed), teacher).item() > 1e-12


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", WITH_TEACHER)
def test_the_student_gets_the_gradient_and_the_teacher_none(name: str, standardize: bool) -> None:
    """The teacher's outputs arrive without graph; a term makes none of its own and changes neither input."""
    student, teacher = seeded(6, 5).requires_grad_(), seeded(6, 5, seed=1)
    copies = student.detach().clone(), teacher.clone()
    value_of(name, student, teacher, standardize=standardize).backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 1e-6
    assert not teacher.requires_grad
    assert teacher.grad is None
    assert torch.equal(student.detach(), copies[0])
    assert torch.equal(teacher, copies[1])


@pytest.mark.parametrize(("count", "classes"), [(6, 5), (1, 5), (6, 2)])
def test_logit_mse_is_its_formula_and_half_of_it_the_limit_of_kl(count: int, classes: int) -> None:
    student, teacher = seeded(count, classes), seeded(count, classes, seed=1)
    value = value_of("logit_mse", student, teacher)
    assert value.item() == pytest.approx(((student - teacher).numpy() ** 2).mean(), rel=1e-12)
    found = gradient_of("logit_mse", student, teacher)
    torch.testing.assert_close(found, 2 * (student - teacher) / student.numel(), rtol=1e-12, atol=0)
    centred = [side - side.mean(dim=1, keepdim=True) for side in (student, teacher)]
    torch.testing.assert_close(kl_divergence(*centred, 1e4), value_of("logit_mse", *centred) / 2, rtol=1e-3, atol=0)


def objective(name: str, classes: int, **options: Any) -> Objective:
    return builders.objective({name: {**OPTIONS[name], **options}}, spec(classes), spec(classes), temperature=T)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_outputs_through_the_objective(name: str, dtype: torch.dtype, standardize: bool) -> None:
    options = {"standardize": True} if standardize and name in WITH_TEACHER else {}
    student, teacher = (3 * seeded(64, 10, seed=seed, dtype=torch.float32) for seed in (0, 1))
    batch, terms = batch_of(64, targets=labels_of(64, 10)), objective(name, 10, **options)
    full, _ = terms(Output(student, None, {}), Output(teacher, None, {}), batch, 0)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = terms(Output(student.to(dtype), None, {}), Output(teacher.to(dtype), None, {}), batch, 0)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("count", "classes"), [(1, 5), (2, 5), (1, 2), (6, 2), (6, 5)])
@pytest.mark.parametrize("name", ALL)
def test_logits_of_ten_thousand_are_finite(name: str, count: int, classes: int, dtype: torch.dtype) -> None:
    student = torch.full((count, classes), -1e4)
    student[:, 0] = 1e4
    teacher = student.flip(1).to(dtype)
    student = student.to(dtype).requires_grad_()
    for labels in (torch.zeros(count).long(), torch.full((count,), classes - 1)):
        total, _ = objective(name, classes)(
            Output(student, None, {}), Output(teacher, None, {}), batch_of(len(labels), targets=labels), 0
        )
        (found,) = torch.autograd.grad(total, student)
        assert torch.isfinite(total)
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", WITH_TEACHER)
def test_constant_rows_are_finite(name: str, standardize: bool) -> None:
    student, teacher = torch.zeros(3, 5, requires_grad=True), torch.full((3, 5), 2.0)
    terms, batch = objective(name, 5, standardize=standardize), batch_of(3)
    total, _ = terms(Output(student, None, {}), Output(teacher, None, {}), batch, 0)
    total.backward()
    assert torch.isfinite(total)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", ALL)
def test_inputs_need_not_be_contiguous(name: str) -> None:
    student, teacher = seeded(5, 6).T, seeded(6, 10, seed=1)[:, ::2]
    copies = student.contiguous(), teacher.contiguous()
    torch.testing.assert_close(value_of(name, student, teacher), value_of(name, *copies), rtol=1e-13, atol=0)


# --- reverse, symmetric, Jensen-Shannon ---------------------------------------------------------------------------


def test_gradient_of_reverse_kl_is_its_closed_form() -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    log_s, log_t = ((z / T).log_softmax(dim=1) for z in (student, teacher))
    kl = (log_s.exp() * (log_s - log_t)).sum(dim=1, keepdim=True)
    expected = T / 6 * log_s.exp() * (log_s - log_t - kl)
    found = gradient(lambda z: reverse_kl(z, teacher, T), student)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_gradient_of_jensen_shannon_is_its_closed_form() -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    log_s, log_t = ((z / T).log_softmax(dim=1) for z in (student, teacher))
    log_m = ((log_s.exp() + log_t.exp()) / 2).log()
    kl = (log_s.exp() * (log_s - log_m)).sum(dim=1, keepdim=True)
    expected = T / 12 * log_s.exp() * (log_s - log_m - kl)
    found = gradient(lambda z: jensen_shannon(z, teacher, T), student)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 1e4])
def test_jensen_shannon_is_symmetric_and_bounded(scale: float) -> None:
    student, teacher = scale * seeded(6, 5), scale * seeded(6, 5, seed=1)
    value = jensen_shannon(student, teacher, T)
    torch.testing.assert_close(jensen_shannon(teacher, student, T), value, rtol=1e-12, atol=0)
    assert 0 < value.item() <= T**2 * np.log(2)
    apart = jensen_shannon(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]]), T)
    assert apart.item() == pytest.approx(T**2 * np.log(2), rel=1e-6)


def test_symmetric_kl_is_symmetric_at_one_half_and_each_divergence_at_the_ends() -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    half = symmetric_kl(student, teacher, T, 0.5)
    torch.testing.assert_close(half, symmetric_kl(teacher, student, T, 0.5), rtol=1e-13, atol=0)
    assert symmetric_kl(student, teacher, T, 1.0) == kl_divergence(student, teacher, T)
    assert symmetric_kl(student, teacher, T, 0.0) == reverse_kl(student, teacher, T)
    assert abs(kl_divergence(student, teacher, T) - reverse_kl(student, teacher, T)) > 1e-3


# --- DKD ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("classes", [2, 5, 30])
def test_kd_decouples(temperature: float, classes: int) -> None:
    """KL = T^2 mean [KL of the two events + (1 - p_t(y)) KL among the others], part by part, sample by sample."""
    labels = labels_of(7, classes)
    student, teacher = 3 * seeded(7, classes), 3 * seeded(7, classes, seed=1)
    expected = torch.zeros((), dtype=torch.float64)
    for row in range(7):
        one = student[row : row + 1], teacher[row : row + 1], labels[row : row + 1], temperature
        sure = (teacher[row] / temperature).softmax(dim=0)[labels[row]]
        expected += (target_kl(*one) + (1 - sure) * other_kl(*one)) / 7
    torch.testing.assert_close(kl_divergence(student, teacher, temperature), expected, rtol=1e-11, atol=0)


def test_dkd_gradient_at_the_label_is_that_of_its_first_part_alone() -> None:
    student, teacher, labels = seeded(6, 5), seeded(6, 5, seed=1), labels_of(6, 5)
    at = torch.arange(6), labels
    assert not gradient(lambda z: other_kl(z, teacher, labels, T), student)[at].any()
    p_s, p_t = ((z / T).softmax(dim=1)[at] for z in (student, teacher))
    found = gradient_of("dkd", student, teacher)[at]
    torch.testing.assert_close(found, 0.7 * T * (p_s - p_t) / 6, rtol=1e-11, atol=0)


def test_of_two_classes_dkd_is_its_first_part() -> None:
    student, teacher, labels = seeded(6, 2), seeded(6, 2, seed=1), labels_of(6, 2)
    assert other_kl(student, teacher, labels, T).item() == 0
    torch.testing.assert_close(target_kl(student, teacher, labels, T), kl_divergence(student, teacher, T))
    torch.testing.assert_close(value_of("dkd", student, teacher), 0.7 * kl_divergence(student, teacher, T))


@pytest.mark.parametrize("gap", [50.0, 1e4])
def test_dkd_of_a_confident_student_is_finite_in_float32(gap: float) -> None:
    student, teacher = torch.zeros(2, 5), torch.zeros(2, 5)
    student[:, 0], teacher[:, 1] = gap, gap
    for labels in (torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([2, 2])):
        leaf = student.clone().requires_grad_()
        value = target_kl(leaf, teacher, labels, 1.0) + other_kl(leaf, teacher, labels, 1.0)
        value.backward()
        assert torch.isfinite(value)
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
    exact = target_kl(student, teacher, torch.tensor([1, 1]), 1.0).item()
    assert exact == pytest.approx(gap + np.log(1 + 4 * np.exp(-gap)), rel=1e-5)


# --- NKD ----------------------------------------------------------------------------------------------------------


def test_nkd_where_student_equals_teacher_is_its_entropies() -> None:
    logits, labels = seeded(6, 5), labels_of(6, 5)
    p = logits.softmax(dim=1)[torch.arange(6), labels]
    others = (without_label(logits, labels) / T).softmax(dim=1)
    entropy = -(others * others.log()).sum(dim=1).mean()
    expected = -(p * p.log()).mean() + 3.5 * T**2 * entropy
    torch.testing.assert_close(nkd(logits, logits, labels, T, 3.5), expected, rtol=1e-12, atol=0)


def test_gradient_of_the_parts_of_nkd() -> None:
    student, teacher, labels = seeded(6, 5), seeded(6, 5, seed=1), labels_of(6, 5)
    first = gradient(lambda z: nkd(z, teacher, labels, T, 0.0), student)
    sure = teacher.softmax(dim=1)[torch.arange(6), labels]
    onehot = nn.functional.one_hot(labels, 5)
    torch.testing.assert_close(first, sure[:, None] * (student.softmax(dim=1) - onehot) / 6, rtol=1e-11, atol=1e-15)
    second = gradient(lambda z: nkd(z, teacher, labels, T, 3.5), student) - first
    expected = 3.5 * gradient(lambda z: other_kl(z, teacher, labels, T), student)
    torch.testing.assert_close(second, expected, rtol=1e-10, atol=1e-14)


def test_nkd_of_two_classes_is_its_first_part() -> None:
    student, teacher, labels = seeded(6, 2), seeded(6, 2, seed=1), labels_of(6, 2)
    assert nkd(student, teacher, labels, T, 3.5) == nkd(student, teacher, labels, T, 0.0)


# --- DIST ---------------------------------------------------------------------------------------------------------


def test_dist_where_student_equals_teacher_is_its_closed_form() -> None:
    """1e-8 / (n^2 + 1e-8) of each row and column, n its norm: near 0 where spread, near 1 where nearly constant."""
    logits = seeded(6, 5)
    logits[:, 0] = -15  # a class that does not occur: its column of probabilities is nearly constant
    p = logits.softmax(dim=1)
    for dim, part in ((1, dist_parts(logits, logits, 1.0)[0]), (0, dist_parts(logits, logits, 1.0)[1])):
        squared = (p - p.mean(dim=dim, keepdim=True)).square().sum(dim=dim)
        torch.testing.assert_close(part, (1e-8 / (squared + 1e-8)).mean(), rtol=1e-7, atol=1e-15)
    assert dist_parts(logits, logits, 1.0)[0] < 1e-6
    assert dist_parts(logits, logits, 1.0)[1] == pytest.approx(1 / 5, rel=1e-3)


def test_pearson_adds_its_epsilon_to_the_product_of_the_norms() -> None:
    column = 1e-3 * seeded(8)
    other = 1e-3 * seeded(8, seed=1) + 5 * column
    assert pearson(column, 7 * column + 3, dim=0).item() == pytest.approx(1, abs=1e-2)
    expected = np_pearson(column.numpy(), other.numpy())
    assert pearson(column, other, dim=0).item() == pytest.approx(expected, rel=1e-9)
    assert expected != pytest.approx(np.corrcoef(column.numpy(), other.numpy())[0, 1], rel=1e-6)


def test_parts_of_dist_ignore_affine_maps_of_probabilities_and_stay_in_range() -> None:
    student, teacher = seeded(6, 5).softmax(dim=1), seeded(6, 5, seed=1).softmax(dim=1)
    for dim, factor in ((1, seeded(6, 1, seed=2).exp()), (0, seeded(1, 5, seed=2).exp())):
        mapped = pearson(factor * student + factor, teacher, dim=dim)
        torch.testing.assert_close(mapped, pearson(student, teacher, dim=dim), rtol=1e-5, atol=1e-6)
    for seed in range(20):
        for part in dist_parts(20 * seeded(6, 5, seed=seed), 20 * seeded(6, 5, seed=seed + 50), 1.0):
            assert 0 <= part <= 2


def test_the_batchwise_part_of_dist_is_the_one_of_columns() -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    halves = [dist_parts(student[rows], teacher[rows], T) for rows in (slice(0, 3), slice(3, 6))]
    inter, intra = dist_parts(student, teacher, T)
    torch.testing.assert_close((halves[0][0] + halves[1][0]) / 2, inter, rtol=1e-12, atol=0)
    assert abs((halves[0][1] + halves[1][1]) / 2 - intra) > 1e-2


def test_dist_of_one_sample_and_of_two_classes_has_no_gradient_in_one_part() -> None:
    one, teacher = seeded(1, 5).requires_grad_(), seeded(1, 5, seed=1)
    intra = dist_parts(one, teacher, T)[1]
    assert intra.item() == 1
    assert not torch.autograd.grad(intra, one)[0].any()
    two = seeded(6, 2).requires_grad_()
    inter = dist_parts(two, seeded(6, 2, seed=1), T)[0]
    assert torch.autograd.grad(inter, two)[0].abs().max() < 1e-5


def test_dist_without_the_square_of_the_temperature() -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    plain = value_of("dist", student, teacher, squared=False)
    torch.testing.assert_close(value_of("dist", student, teacher), T**2 * plain, rtol=1e-13, atol=0)


# --- MLKD ---------------------------------------------------------------------------------------------------------


def test_correlations_ignore_the_permutation_of_their_own_side() -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    samples, classes = [4, 0, 5, 2, 1, 3], [3, 1, 4, 0, 2]
    assert class_correlation(student[samples], teacher, T).item() == pytest.approx(
        class_correlation(student, teacher, T).item(), rel=1e-12
    )
    assert batch_correlation(student[:, classes], teacher, T).item() == pytest.approx(
        batch_correlation(student, teacher, T).item(), rel=1e-12
    )
    for function, other in (
        (class_correlation, student[:, classes]),
        (batch_correlation, student[samples]),
    ):
        value = function(student, teacher, T)
        assert abs(function(other, teacher, T) - value) > 0.01 * value


def test_batch_correlation_of_one_sample_compares_the_norms() -> None:
    student, teacher = seeded(1, 5), seeded(1, 5, seed=1)
    norms = [((z / T).softmax(dim=1) ** 2).sum() for z in (student, teacher)]
    torch.testing.assert_close(batch_correlation(student, teacher, T), (norms[0] - norms[1]) ** 2)


def test_class_correlation_of_a_duplicated_batch_is_four_times_as_large() -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    twice = class_correlation(student.repeat(2, 1), teacher.repeat(2, 1), T)
    torch.testing.assert_close(twice, 4 * class_correlation(student, teacher, T))


@pytest.mark.parametrize("name", ["multi_kl", "class_correlation", "batch_correlation"])
def test_temperatures_add_up_and_the_common_one_is_not_used(name: str) -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    parts = [value_of(name, student, teacher, temperatures=[number]) for number in (2.0, 7.0)]
    torch.testing.assert_close(value_of(name, student, teacher, temperatures=[2, 7]), parts[0] + parts[1])


# --- WSLD ---------------------------------------------------------------------------------------------------------


def test_wsld_weighs_a_student_like_its_teacher_with_one_minus_one_over_e() -> None:
    logits, labels = seeded(6, 5), labels_of(6, 5)
    weight = sample_weights(logits, logits, labels)
    torch.testing.assert_close(weight, torch.full_like(weight, 1 - np.exp(-1)), rtol=0, atol=1e-6)
    assert weight[0].item() == pytest.approx(0.6321, abs=5e-5)
    p = (logits / T).softmax(dim=1)
    entropy = -(p * p.log()).sum(dim=1)
    torch.testing.assert_close(weighted_soft_labels(logits, logits, labels, T), T**2 * (weight * entropy).mean())


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4])
def test_weights_of_wsld_lie_between_0_and_1_and_have_no_gradient(scale: float) -> None:
    student, teacher = (scale * seeded(50, 5)).requires_grad_(), scale * seeded(50, 5, seed=1)
    weight = sample_weights(student, teacher, labels_of(50, 5))
    assert not weight.requires_grad
    assert (weight >= 0).all()
    assert (weight <= 1).all()


# --- teacher-free -------------------------------------------------------------------------------------------------


def test_tfkd_at_temperature_1_is_label_smoothing_less_its_floor() -> None:
    student, labels = seeded(6, 5), labels_of(6, 5)
    made = hand_made_logits(student, labels, 0.9)
    torch.testing.assert_close(made.exp().sum(dim=1), torch.ones(6).double())
    torch.testing.assert_close(made.exp()[torch.arange(6), labels], torch.full((6,), 0.9).double())
    smoothed = nn.functional.cross_entropy(student, labels, label_smoothing=0.1 * 5 / 4)
    floor = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1 / 4))
    value = value_of("tfkd", student, student, temperature=1.0)
    torch.testing.assert_close(value, smoothed - floor, rtol=1e-12, atol=0)


@pytest.mark.fault("F8.4")
def test_tfkd_in_the_form_of_the_published_code_softens_the_probabilities_as_if_they_were_logits() -> None:
    """And the student not at all: KL(softmax(p / T) || softmax(z)), summed over the classes, mean over the batch."""
    student, labels = seeded(6, 5), labels_of(6, 5)
    made = np.full((6, 5), 0.1 / 4)
    made[np.arange(6), labels.numpy()] = 0.9
    expected = kl_rows(log_softmax(made / T), log_softmax(student.numpy())).mean()
    assert value_of("tfkd", student, student, form="code").item() == pytest.approx(expected, rel=1e-10)
    target = torch.from_numpy(softmax(made / T))
    found = gradient_of("tfkd", student, student, form="code")
    torch.testing.assert_close(found, (student.softmax(dim=1) - target) / 6, rtol=1e-9, atol=1e-14)


@pytest.mark.fault("F8.7")
def test_dist_of_two_classes_says_what_is_not_learned() -> None:
    two = setting(spec(2), spec(2))
    (doubt,) = TERMS["dist"](parse_options("dist", {}), two).doubts
    assert doubt.startswith("distill.terms.dist.beta=1: with two classes")
    assert TERMS["dist"](parse_options("dist", {"beta": 0.0}), two).doubts == ()
    assert TERMS["dist"](parse_options("dist", {}), setting(spec(3), spec(3))).doubts == ()
    with pytest.raises(UserError, match=r"^distill\.terms\.dist\.gamma=0: with two classes .*distill=kd$"):
        TERMS["dist"](parse_options("dist", {"gamma": 0.0}), two)


def test_tfkd_needs_no_teacher_and_is_least_at_its_hand_made_one() -> None:
    config = DistillConfig(name="test", temperature=T, alpha=None, terms={"ce": {}, "tfkd": {"form": "paper"}})
    assert not needs_teacher(config)
    assert labels_only(config).terms == config.terms
    labels = labels_of(6, 5)
    made = hand_made_logits(torch.zeros(6, 5), labels, 0.99)
    terms = Objective(config, setting(spec(5), None))
    assert terms(Output(made, None, {}), None, batch_of(), 0)[1]["tfkd"].item() == pytest.approx(0, abs=1e-6)
    assert value_of("tfkd", made.double(), made, confidence=0.99).item() == pytest.approx(0, abs=1e-12)
    for seed in range(5):
        nearby = made.double() + 1e-2 * seeded(6, 5, seed=seed)
        assert value_of("tfkd", nearby, made, confidence=0.99).item() > 1e-8


# --- standardisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_standardisation_is_the_term_on_standardised_logits(name: str) -> None:
    student, teacher = 3 * seeded(6, 5) + 4, seeded(6, 5, seed=1)
    rows = [
        (z - z.mean(axis=1, keepdims=True)) / (1e-7 + z.std(axis=1, ddof=1, keepdims=True))
        for z in (student.numpy(), teacher.numpy())
    ]
    expected = np_value(name, *rows, labels_of(6, 5).numpy())
    assert value_of(name, student, teacher, standardize=True).item() == pytest.approx(expected, rel=1e-9)
    assert value_of(name, student, teacher).item() != pytest.approx(expected, rel=1e-3)
    assert value_of(name, student, teacher, standardize=False) == value_of(name, student, teacher)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_standardised_rows_forget_scale_and_shift_of_either_side(name: str) -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    scale, shift = seeded(6, 1, seed=2).exp(), 10 * seeded(6, 1, seed=3)
    expected = value_of(name, student, teacher, standardize=True)
    for pair in ((scale * student + shift, teacher), (student, scale * teacher + shift)):
        torch.testing.assert_close(value_of(name, *pair, standardize=True), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_the_gradient_of_a_standardised_term_is_orthogonal_to_scale_and_shift(name: str) -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    found = gradient_of(name, student, teacher, standardize=True)
    centred = student - student.mean(dim=1, keepdim=True)
    size = found.norm()
    assert size > 1e-6
    assert found.sum(dim=1).abs().max() < 1e-10 * size
    assert (found * centred).sum(dim=1).abs().max() < 1e-6 * size  # up to the 1e-7 beside the standard deviation


def test_a_standardised_row_has_mean_0_and_spread_1_and_a_bounded_peak() -> None:
    row = standardized(5 * seeded(6, 9) + 3)
    torch.testing.assert_close(row.mean(dim=1), torch.zeros(6).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(row.std(dim=1), torch.ones(6).double(), rtol=0, atol=1e-6)
    peak = standardized(nn.functional.one_hot(torch.tensor([0]), 1000).double()).max().item()
    assert peak == pytest.approx(999 / np.sqrt(1000), rel=1e-5)


def test_every_term_that_compares_logits_can_standardise_and_no_other() -> None:
    able = {name for name, term in KNOWN_TERMS.items() if issubclass(term.options, StandardizeOptions)}
    assert able == set(WITH_TEACHER)
    for name in ("ce", "tfkd", "hard"):
        with pytest.raises(UserError, match=rf"distill\.terms\.{name}\.standardize"):
            parse_options(name, {"standardize": True})


def test_cross_entropy_does_not_see_the_switch() -> None:
    student, teacher = seeded(6, 5).float(), seeded(6, 5, seed=1).float()
    values = []
    for standardize in (False, True):
        terms = {"ce": {}, "kl": {"standardize": standardize}}
        built = builders.objective(terms, spec(5), spec(5))
        values.append(built(Output(student, None, {}), Output(teacher, None, {}), batch_of(), 0)[1])
    assert values[0]["ce"] == values[1]["ce"]
    assert values[0]["kl"] != values[1]["kl"]


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("symmetric_kl", {"rho": 1.5}, ["distill.terms.symmetric_kl.rho=1.5", "at most 1"]),
        ("dkd", {"beta": -1.0}, ["distill.terms.dkd.beta=-1", "0 or more"]),
        ("tfkd", {"confidence": 1.0}, ["distill.terms.tfkd.confidence=1.0", "between 0 and 1"]),
        ("tfkd", {"confidence": 0.0}, ["distill.terms.tfkd.confidence=0.0", "between 0 and 1"]),
        ("tfkd", {"temperature": 0.0}, ["distill.terms.tfkd.temperature=0", "above 0"]),
        ("multi_kl", {"temperatures": []}, ["distill.terms.multi_kl.temperatures=[]", "one"]),
        ("multi_kl", {"temperatures": ["warm"]}, ["distill.terms.multi_kl.temperatures=['warm']", "list[float]"]),
        ("class_correlation", {"temperatures": [0.0]}, ["distill.terms.class_correlation.temperatures", "above 0"]),
        ("batch_correlation", {"temperatures": [-1]}, ["distill.terms.batch_correlation.temperatures", "above 0"]),
        ("class_correlation", {"temperature": 4}, ["distill.terms.class_correlation.temperature", "'temperatures'"]),
        ("kl", {"standardize": "often"}, ["distill.terms.kl.standardize=often", "bool"]),
    ],
)
def test_a_wrong_option_is_one_helpful_line(name: str, options: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        objective(name, 5, **options)
    assert "\n" not in str(caught.value)
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_two_classes_are_refused_by_standardisation(name: str) -> None:
    with pytest.raises(UserError, match=r"standardize=true: with 2 classes"):
        objective(name, 2, standardize=True)


def test_options_are_told_in_words() -> None:
    terms = {
        "kl": {"weight": 9.0, "standardize": True},
        "dkd": {"beta": 2.0},
        "dist": {"squared": False},
        "multi_kl": {},
        "batch_correlation": {"temperatures": [2, 4.5]},
    }
    built = builders.objective(terms, spec(5), spec(5), temperature=2.0)
    assert built.words() == (
        "9·kl(standardize=true, T=2) + 1·dkd(T=2, beta=2) + 1·dist(T=2, squared=false) + 1·multi_kl"
        " + 1·batch_correlation(temperatures=2/4.5)"
    )
    assert built.whole_batch_terms == ["dist", "batch_correlation"]


def test_every_logit_term_has_a_preset() -> None:
    folder = Path(__file__).resolve().parent.parent / "configs" / "distill"
    presets = "\n".join(file.read_text("utf-8") for file in folder.glob("*.yaml"))
    assert [name for name in ALL if f"\n  {name}: " not in presets] == []


# --- students that begin with equal logits -------------------------------------------------------------------------


def np_length(length: float, usual: float) -> float:
    """1 / length falls linearly from its value at FLAT times the usual length to 1 / usual at 0."""
    least = FLAT * usual
    return length if length >= least else 1 / (1 / usual + length / least * (1 / least - 1 / usual))


@pytest.mark.fault("F1.10")
@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-4, 5e-3, 0.02, 1.0])
def test_rows_are_standardized_by_their_deviation_or_by_more_where_they_are_flat(size: float) -> None:
    logits = size * seeded(6, 5) + 3
    centred = logits.numpy() - logits.numpy().mean(axis=1, keepdims=True)
    expected = np.stack([row / np_length(1e-7 + row.std(ddof=1), 1.0) for row in centred])
    np.testing.assert_allclose(standardized(logits).numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.fault("F1.10")
@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-4, 5e-3, 0.03, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_divides_by_more_where_the_student_is_flat(size: float, temperature: float) -> None:
    student, teacher = size * seeded(6, 5), 3 * seeded(6, 5, seed=1)
    p_s, p_t = (softmax(logits.numpy() / temperature) for logits in (student, teacher))
    usual = 1 / (temperature * 5)
    is_flat = np.linalg.norm(p_s - 1 / 5) < FLAT * usual * np.sqrt(30)

    def correlation(a: Array, b: Array, length: float, flat: bool) -> float:
        a, b = a - a.mean(), b - b.mean()
        norm = float(np.sqrt(a @ a))
        return float(a @ b / ((np_length(norm, usual * length) if flat else norm) * np.sqrt(b @ b) + 1e-8))

    inter = 1 - np.mean([correlation(p_s[row], p_t[row], np.sqrt(5), True) for row in range(6)])
    intra = 1 - np.mean([correlation(p_s[:, k], p_t[:, k], np.sqrt(6), bool(is_flat)) for k in range(5)])
    found = dist_parts(student, teacher, temperature)
    assert [part.item() for part in found] == pytest.approx([inter, intra], rel=1e-8)


@pytest.mark.fault("F1.10")
@pytest.mark.parametrize("scale", [0.02, 0.5, 3.0, 30.0])
@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_students_that_are_not_flat_are_compared_as_published_bit_for_bit(scale: float, classes: int) -> None:
    """Fresh ones too, and sure ones, in whom most classes have almost no probability."""
    student, teacher = (scale * seeded(16, classes, seed=seed).float() for seed in (0, 1))
    student = student - student.mean(dim=1, keepdim=True)
    student = student * (scale / student.std(dim=1, keepdim=True)).clamp(min=1)
    centred = student - student.mean(dim=1, keepdim=True)
    assert torch.equal(standardized(student), centred / (1e-7 + centred.std(dim=1, keepdim=True)))
    for temperature in (1.0, 4.0):
        p_s, p_t = ((logits / temperature).softmax(dim=1) for logits in (student, teacher))
        for part, dim in zip(dist_parts(student, teacher, temperature), (1, 0), strict=True):
            assert torch.equal(part, 1 - pearson(p_s, p_t, dim=dim).mean())


@pytest.mark.fault("F1.10")
@pytest.mark.parametrize("preset", ["dist", "lskd", "dkd_lskd"])
@pytest.mark.parametrize("zeros", ["timm's mixer", "a head of zeros"])
def test_a_student_that_begins_with_equal_logits_has_a_gradient_of_ordinary_size(preset: str, zeros: str) -> None:
    """Its norm was 5e6 and more."""
    config = compose("train", [f"distill={preset}"])
    assert isinstance(config, TrainConfig)
    for name in ("mixer_s32_224",) if zeros == "timm's mixer" else ("test_vit", "test_efficientnet"):
        student = builders.fresh(name)
        if zeros == "a head of zeros":
            for parameter in student.net.get_classifier().parameters():
                nn.init.zeros_(parameter)
        images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        terms = Objective(config.distill, setting(student.spec, spec(5)))
        teacher = Output(5 * seeded(8, 5, dtype=torch.float32), None, {})
        output = student.train()(images)
        assert output.logits.std(dim=1).max() < FLAT
        terms(output, teacher, batch_of(8), epoch=10)[0].backward()
        weights = [weight for weight in student.parameters() if weight.grad is not None]
        norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        assert 1e-2 < norm < 10 * nn.utils.get_total_norm([weight.detach() for weight in weights])

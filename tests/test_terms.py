"""The loss terms and their weighted sum: values against references written from the papers' formulas, and gradients."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from distillcli.config.schema import DistillConfig, OptimizerConfig, TrainerConfig
from distillcli.config.search import groups
from distillcli.config.terms import (
    KNOWN_TERMS,
    LogitOptions,
    RKDOptions,
    StandardizeOptions,
    TermOptions,
    active_terms,
    check_terms,
    epochs_of,
    labels_only,
    needs_teacher,
    parse_options,
)
from distillcli.errors import UserError
from distillcli.runtime import seed_everything
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.terms import TERMS
from distillcli.terms.base import LogitTerm, TeacherTerm
from distillcli.terms.feature import Hint
from distillcli.terms.logit import cross_entropy, hard_label, kl_divergence
from distillcli.terms.objective import Objective
from distillcli.terms.relation import RKD, angles, distances
from distillcli.training.learners import Distillation
from distillcli.training.optim import build_optimizer
from distillcli.training.step import Update, train_step
from distillcli.types import Batch, Output, Spec
from tests import builders
from tests.builders import batch_of, built, cast, fresh, output, seeded, take
from tests.tiny import setting

CPU = torch.device("cpu")
SPEC = Spec("student", 5, 8, ((4, 8, 6), (6, 4, 3)), 0, 0, (7, 4, 3))
WIDE = Spec("teacher", 5, 11, ((4, 8, 6), (7, 6, 5)), 0, 0, (7, 6, 5), ("", "act"))
ALL_TERMS = {"ce": {}, "kl": {}, "hard": {}, "hint": {"stage": -1}, "rkd": {}}


def config(terms: dict[str, Any], alpha: float | None = None, temperature: float = 4.0) -> DistillConfig:
    return DistillConfig(name="test", temperature=temperature, alpha=alpha, terms=terms)


def objective(terms: dict[str, Any], alpha: float | None = None, temperature: float = 4.0) -> Objective:
    return builders.objective(terms, SPEC, WIDE, alpha, temperature)


# --- references: float64 NumPy, from the formulas -----------------------------------------------------------------


def np_log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def np_cross_entropy(logits: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    return float(-(q * np_log_softmax(logits)).sum() / len(logits))


def np_kl(student: NDArray[np.float64], teacher: NDArray[np.float64], temperature: float) -> float:
    log_s, log_t = np_log_softmax(student / temperature), np_log_softmax(teacher / temperature)
    return float(temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum() / len(student))


def np_smooth_l1(difference: NDArray[np.float64]) -> float:
    size = np.abs(difference)
    return float(np.where(size < 1, 0.5 * size**2, size - 0.5).mean())


def np_relations(e: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances over their mean, and the cosine at i between j and k, from explicit differences."""
    away = e[None, :, :] - e[:, None, :]  # B x B x D: from i to j
    length = np.sqrt((away**2).sum(axis=2))
    unit = away / np.where(length > 0, length, 1)[:, :, None]
    distance = np.maximum(length, 1e-6) * (1 - np.eye(len(e)))
    return distance / distance[distance > 0].mean(), np.einsum("ijd,ikd->ijk", unit, unit)


def np_rkd(student: NDArray[np.float64], teacher: NDArray[np.float64]) -> float:
    (d_s, a_s), (d_t, a_t) = np_relations(student), np_relations(teacher)
    return 25 * np_smooth_l1(d_s - d_t) + 50 * np_smooth_l1(a_s - a_t)


def rkd(student: Tensor, teacher: Tensor) -> Tensor:
    term = RKD(RKDOptions(), setting(SPEC, WIDE))
    value: Tensor = term(Output(student, student, {}), Output(teacher, teacher, {}), batch_of(len(student)), 1.0)
    return value


def hint(options: dict[str, Any] | None = None, student: Spec = SPEC, teacher: Spec = WIDE) -> Hint:
    term: Hint = built("hint", student, teacher, **(options or {"stage": -1}))
    return term


def hint_value(term: Hint, student: Tensor, teacher: Tensor) -> Tensor:
    empty = torch.zeros(len(student), 5)
    value: Tensor = term(
        Output(empty, None, {term.stage: student}), Output(empty, None, {term.teacher_stage: teacher}), batch_of(), 1.0
    )
    return value


def identity_projector(term: Hint) -> Hint:
    """The projector as the identity: weights of the 1 x 1 convolution, and statistics that change nothing."""
    convolution, norm = term.projector
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.dirac_(convolution.weight)
    norm.eps = 0.0
    return term.eval()


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "classes"), [(7, 5), (1, 5), (2, 5), (6, 2), (1, 2)])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_cross_entropy_is_its_formula(count: int, classes: int, scale: float) -> None:
    logits, labels = scale * seeded(count, classes), torch.arange(count) % classes
    onehot = np.eye(classes)[labels.numpy()]
    assert cross_entropy(logits, labels).item() == pytest.approx(np_cross_entropy(logits.numpy(), onehot), rel=1e-12)
    smooth = 0.9 * onehot + 0.1 / classes
    value = cross_entropy(logits, labels, smoothing=0.1).item()
    assert value == pytest.approx(np_cross_entropy(logits.numpy(), smooth), rel=1e-12)


def test_smoothed_cross_entropy_has_the_entropy_of_its_target_as_floor() -> None:
    q = torch.full((100,), 0.001, dtype=torch.float64)
    q[0] = 0.901
    floor = cross_entropy(q.log()[None], torch.tensor([0]), smoothing=0.1).item()
    assert floor == pytest.approx(0.778, abs=5e-4)  # losses.md 4.1
    assert floor == pytest.approx(float(-(q * q.log()).sum()), rel=1e-12)


def test_one_hot_targets_are_the_labels_and_soft_targets_are_linear() -> None:
    logits = seeded(6, 5)
    one, two = seeded(6, 5, seed=1).softmax(dim=1), seeded(6, 5, seed=2).softmax(dim=1)
    labels = torch.arange(6) % 5
    onehot = nn.functional.one_hot(labels, 5).double()
    torch.testing.assert_close(cross_entropy(logits, onehot), cross_entropy(logits, labels), rtol=1e-14, atol=0)
    mixed = 0.3 * cross_entropy(logits, one) + 0.7 * cross_entropy(logits, two)
    torch.testing.assert_close(cross_entropy(logits, 0.3 * one + 0.7 * two), mixed, rtol=1e-14, atol=0)


def test_a_label_that_is_no_class_raises() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        cross_entropy(seeded(2, 5), torch.tensor([0, 5]))


@pytest.mark.parametrize(("count", "classes"), [(7, 5), (1, 5), (2, 5), (6, 2), (1, 2)])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_is_its_formula(count: int, classes: int, scale: float, temperature: float) -> None:
    student, teacher = scale * seeded(count, classes), scale * seeded(count, classes, seed=1)
    expected = np_kl(student.numpy(), teacher.numpy(), temperature)
    assert kl_divergence(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_kl_is_cross_entropy_minus_the_entropy_of_the_teacher() -> None:
    student, teacher, temperature = seeded(6, 5), seeded(6, 5, seed=1), 3.0
    soft = (teacher / temperature).softmax(dim=1)
    entropy = -(soft * soft.log()).sum(dim=1).mean()
    expected = temperature**2 * (cross_entropy(student / temperature, soft) - entropy)
    torch.testing.assert_close(kl_divergence(student, teacher, temperature), expected, rtol=1e-12, atol=0)


def test_hard_label_is_cross_entropy_with_the_teachers_decision() -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    onehot = np.eye(5)[teacher.numpy().argmax(axis=1)]
    expected = np_cross_entropy(student.numpy(), onehot)
    assert hard_label(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_ce_and_hard_blend_to_cross_entropy_with_the_blended_target() -> None:
    student, teacher, labels = seeded(6, 5), seeded(6, 5, seed=1), torch.arange(6) % 5
    decided = nn.functional.one_hot(teacher.argmax(dim=1), 5).double()
    target = 0.3 * nn.functional.one_hot(labels, 5).double() + 0.7 * decided
    blended = 0.3 * cross_entropy(student, labels) + 0.7 * hard_label(student, teacher)
    torch.testing.assert_close(blended, cross_entropy(student, target), rtol=1e-14, atol=0)


@pytest.mark.parametrize("count", [3, 4, 9])
def test_rkd_is_its_formula(count: int) -> None:
    student, teacher = 3 * seeded(count, 8), seeded(count, 11, seed=1) + 7
    expected = np_rkd(student.numpy(), teacher.numpy())
    assert expected > 0.1
    assert rkd(student, teacher).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [1, 2])
def test_rkd_of_one_or_two_samples_is_zero_with_zero_gradient(count: int) -> None:
    student = seeded(count, 8).requires_grad_()
    value = rkd(student, seeded(count, 11, seed=1))
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_rkd_in_float32_survives_a_large_common_offset() -> None:
    student, teacher = 0.01 * seeded(16, 8) + 100, 0.01 * seeded(16, 8, seed=1) + 100
    # The inputs themselves are rounded to 8e-6 of a spread of 0.01.
    expected = np_rkd(student.float().double().numpy(), teacher.float().double().numpy())
    assert rkd(student.float(), teacher.float()).item() == pytest.approx(expected, rel=1e-3)


def test_rkd_of_duplicate_samples_is_its_formula_with_a_gradient_of_ordinary_size() -> None:
    student, teacher = 5 * seeded(8, 512), seeded(8, 512, seed=1)
    apart = student.float().requires_grad_()
    rkd(apart, teacher.float()).backward()
    student[1] = student[0]
    twins = student.float().requires_grad_()
    value = rkd(twins, teacher.float())
    value.backward()
    assert value.item() == pytest.approx(np_rkd(student.float().double().numpy(), teacher.numpy()), rel=1e-4)
    assert apart.grad is not None
    assert twins.grad is not None
    assert twins.grad.norm() < 10 * apart.grad.norm()


@pytest.mark.parametrize("embedding", [torch.zeros(5, 8), torch.ones(5, 8)], ids=["zero", "constant"])
def test_rkd_of_equal_embeddings_is_finite(embedding: Tensor) -> None:
    student = embedding.clone().requires_grad_()
    value = rkd(student, seeded(5, 11).float())
    value.backward()
    assert student.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("teacher_shape", [(7, 4, 3), (7, 2, 2), (7, 6, 5), (7, 4, 1), (7, 8, 1)])
def test_hint_is_its_formula_for_any_sizes(teacher_shape: tuple[int, int, int]) -> None:
    """A hand-made projector: every output channel is a known mixture of inputs, normalised over the batch."""
    spec = Spec("teacher", 5, 1, (teacher_shape,), 0, 0)
    term = hint({"stage": -1, "teacher_stage": 0}, teacher=spec)
    weight, scale, shift = seeded(7, 6, seed=7), seeded(7, seed=8), seeded(7, seed=9)
    convolution, norm = term.projector
    with torch.no_grad():
        convolution.weight.copy_(weight[:, :, None, None])
        norm.weight.copy_(scale)
        norm.bias.copy_(shift)
    student, teacher = seeded(3, 6, 4, 3), seeded(3, *teacher_shape, seed=1)
    height, width = min(4, teacher_shape[1]), min(3, teacher_shape[2])
    pooled, target = (np_pool(maps.numpy(), height, width) for maps in (student, teacher))
    mixed = np.einsum("oc,bchw->bohw", weight.numpy(), pooled)
    mean, variance = mixed.mean(axis=(0, 2, 3), keepdims=True), mixed.var(axis=(0, 2, 3), keepdims=True)
    normalised = (mixed - mean) / np.sqrt(variance + 1e-5)
    guess = scale.numpy()[:, None, None] * normalised + shift.numpy()[:, None, None]
    assert hint_value(term, student, teacher).item() == pytest.approx(((guess - target) ** 2).mean(), rel=1e-10)


def np_pool(maps: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Averages over the smallest ranges of rows and columns that cover each cell."""
    rows = [(row * maps.shape[2] // height, -(-(row + 1) * maps.shape[2] // height)) for row in range(height)]
    columns = [(column * maps.shape[3] // width, -(-(column + 1) * maps.shape[3] // width)) for column in range(width)]
    cells = [[maps[:, :, a:b, c:d].mean(axis=(2, 3)) for c, d in columns] for a, b in rows]
    return np.moveaxis(np.array(cells), (0, 1), (2, 3))


def test_hint_does_not_depend_on_the_resolution_of_constant_maps() -> None:
    term = identity_projector(hint(teacher=SPEC))
    values = [
        hint_value(term, torch.full((2, 6, *size), 3.0).double(), torch.full((2, 6, *size), 1.0).double()).item()
        for size in [(4, 3), (8, 6), (1, 1)]
    ]
    assert values == [4.0, 4.0, 4.0]


# --- gradients ----------------------------------------------------------------------------------------------------


def test_gradients_agree_with_finite_differences() -> None:
    def check(function: Any, *inputs: Tensor) -> None:
        assert torch.autograd.gradcheck(function, [tensor.requires_grad_() for tensor in inputs])

    labels, q, teacher = torch.arange(4) % 5, seeded(4, 5, seed=3).softmax(dim=1), seeded(4, 5, seed=4)
    check(lambda logits: cross_entropy(logits, labels, 0.1), seeded(4, 5))
    check(lambda logits: cross_entropy(logits, q), seeded(4, 5))
    check(lambda logits: kl_divergence(logits, teacher, 3.0), seeded(4, 5))
    check(lambda logits: hard_label(logits, teacher), seeded(4, 5))
    check(distances, seeded(4, 3))
    check(angles, seeded(4, 3))
    check(lambda embedding: rkd(embedding, seeded(4, 6, seed=5)), seeded(4, 3))
    term = hint()
    target = seeded(3, 7, 6, 5, seed=6)
    check(lambda maps: hint_value(term, maps, target), seeded(3, 6, 4, 3))


def test_gradient_of_cross_entropy_is_p_minus_q_over_the_batch() -> None:
    logits, q = seeded(6, 5).requires_grad_(), seeded(6, 5, seed=1).softmax(dim=1)
    cross_entropy(logits, q).backward()
    torch.testing.assert_close(logits.grad, (logits.softmax(dim=1) - q).detach() / 6, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_of_kl_is_temperature_times_the_difference_over_the_batch(temperature: float) -> None:
    student, teacher = seeded(6, 5).requires_grad_(), seeded(6, 5, seed=1)
    kl_divergence(student, teacher, temperature).backward()
    p_s, p_t = ((logits.detach() / temperature).softmax(dim=1) for logits in (student, teacher))
    torch.testing.assert_close(student.grad, temperature * (p_s - p_t) / 6, rtol=1e-12, atol=1e-15)


def test_gradient_of_kl_tends_to_the_difference_of_centred_logits_as_temperature_grows() -> None:
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    centred = (student - teacher) - (student - teacher).mean(dim=1, keepdim=True)

    def distance(temperature: float) -> float:
        (gradient,) = torch.autograd.grad(
            kl_divergence(student.requires_grad_(), teacher, temperature), student, retain_graph=True
        )
        return float((gradient - centred / (5 * 6)).norm() / (centred / (5 * 6)).norm())

    assert distance(1e4) < 1e-3
    assert distance(200.0) == pytest.approx(distance(100.0) / 2, rel=0.05)  # the error falls as 1 / T


def test_gradient_of_hint_is_twice_the_difference_over_the_number_of_elements() -> None:
    term = identity_projector(hint(teacher=SPEC))
    student, teacher = seeded(2, 6, 4, 3).requires_grad_(), seeded(2, 6, 4, 3, seed=1)
    hint_value(term, student, teacher).backward()
    torch.testing.assert_close(student.grad, 2 * (student - teacher).detach() / teacher.numel(), rtol=1e-12, atol=0)


def test_the_mean_distance_of_the_student_carries_gradient() -> None:
    """Distances over their mean do not change with scale, so the gradient has no part along the embedding."""
    student = seeded(6, 8)
    student = (student - student.mean(dim=0)).requires_grad_()
    nn.functional.smooth_l1_loss(distances(student), distances(seeded(6, 8, seed=1))).backward()
    assert student.grad is not None
    assert student.grad.norm() > 1e-3
    assert (student.grad * student).sum().abs() < 1e-15


# --- invariances --------------------------------------------------------------------------------------------------


def test_logit_terms_ignore_a_shift_of_each_row() -> None:
    student, teacher, labels = seeded(6, 5), seeded(6, 5, seed=1), torch.arange(6) % 5
    shift = 10 * seeded(6, 1, seed=2)
    for function in (lambda s, t: cross_entropy(s, labels), lambda s, t: kl_divergence(s, t, 4.0), hard_label):
        expected = function(student, teacher)
        torch.testing.assert_close(function(student + shift, teacher), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(function(student, teacher + shift), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["ce", "kl", "hard", "hint"])
def test_a_mean_over_samples_ignores_duplication_of_the_batch(name: str) -> None:
    term = built(name, SPEC, WIDE, **ALL_TERMS[name])
    student, teacher, batch = output(SPEC), output(WIDE, seed=1), batch_of()
    assert not KNOWN_TERMS[name].whole_batch
    torch.testing.assert_close(
        term(take(student, [*range(6)] * 2), take(teacher, [*range(6)] * 2), take_batch(batch, [*range(6)] * 2), 4.0),
        term(student, teacher, batch, 4.0),
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("name", ["ce", "kl", "hard"])
def test_a_mean_over_samples_is_the_mean_of_its_halves(name: str) -> None:
    term = built(name, SPEC, WIDE)
    student, teacher, batch = output(SPEC), output(WIDE, seed=1), batch_of()
    halves = [
        term(take(student, rows), take(teacher, rows), take_batch(batch, rows), 4.0) for rows in ([0, 1, 2], [3, 4, 5])
    ]
    torch.testing.assert_close(sum(halves) / 2, term(student, teacher, batch, 4.0), rtol=1e-6, atol=0)


def test_rkd_depends_on_which_samples_share_a_batch() -> None:
    student, teacher = seeded(8, 8), seeded(8, 11, seed=1)
    halves = (rkd(student[:4], teacher[:4]) + rkd(student[4:], teacher[4:])) / 2
    assert KNOWN_TERMS["rkd"].whole_batch
    assert abs(halves - rkd(student, teacher)) > 0.1


@pytest.mark.parametrize("name", [name for name in TERMS if name not in ("cc_neighbour", "crd")])
def test_no_term_depends_on_the_order_of_the_samples(name: str) -> None:
    """But neighbours in a batch (cc_neighbour), and negatives drawn row by row (crd)."""
    term = built(name, SPEC, WIDE, **ALL_TERMS.get(name, {}))
    student, teacher, batch = output(SPEC), output(WIDE, seed=1), batch_of()
    order = [4, 0, 5, 2, 1, 3]
    mixed = term(take(student, order), take(teacher, order), take_batch(batch, order), 4.0)
    torch.testing.assert_close(mixed, term(student, teacher, batch, 4.0), rtol=1e-5, atol=0)


def take_batch(batch: Batch, rows: list[int]) -> Batch:
    return Batch(batch.images[rows], batch.targets[rows], batch.index[rows])


def test_rkd_ignores_rotation_translation_and_scale_of_either_side() -> None:
    student, teacher = seeded(6, 8), seeded(6, 11, seed=1)
    turn, other = torch.linalg.qr(seeded(8, 8, seed=2))[0], torch.linalg.qr(seeded(11, 11, seed=3))[0]
    expected = rkd(student, teacher)
    torch.testing.assert_close(rkd(3 * student @ turn + seeded(8, seed=4), teacher), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(rkd(student, 0.2 * teacher @ other - 5), expected, rtol=1e-10, atol=0)


# --- minimum at student = teacher ---------------------------------------------------------------------------------


def test_kl_rkd_and_hint_are_zero_and_least_where_student_equals_teacher() -> None:
    logits, embedding, maps = seeded(6, 5), seeded(6, 8), seeded(2, 6, 4, 3)
    term = identity_projector(hint(teacher=SPEC))
    functions = [
        (lambda tensor: kl_divergence(tensor, logits, 4.0), logits),
        (lambda tensor: rkd(tensor, embedding), embedding),
        (lambda tensor: hint_value(term, tensor, maps), maps),
    ]
    for function, best in functions:
        assert function(best).item() == 0
        for seed in range(10):
            assert function(best + 1e-3 * seeded(*best.shape, seed=10 + seed)).item() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_of_identical_logits_is_exactly_zero(dtype: torch.dtype) -> None:
    logits = 50 * seeded(6, 5).to(dtype)
    assert kl_divergence(logits, logits.clone(), 4.0).item() == 0


def test_rkd_is_zero_for_any_similar_figure_but_not_for_its_shear() -> None:
    teacher = seeded(6, 2)
    assert rkd(5 * teacher + 1, teacher).item() < 1e-20
    assert rkd(teacher @ torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64), teacher).item() > 0.1


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_lose_nothing_but_their_own_rounding(dtype: torch.dtype) -> None:
    """Under autocast too, the value is the one of the rounded tensors computed in float32, to the last bit."""
    student, teacher, batch = output(SPEC), output(WIDE, seed=1), batch_of()
    rounded = cast(student, dtype), cast(teacher, dtype)
    total, values = objective(ALL_TERMS)(rounded[0].float(), rounded[1].float(), batch, 0)
    with torch.autocast("cpu", torch.bfloat16):
        half, halves = objective(ALL_TERMS)(*rounded, batch, 0)
    assert half.dtype == torch.float32
    assert half == total
    assert halves == values
    full = objective(ALL_TERMS)(student, teacher, batch, 0)[0]
    assert half.item() == pytest.approx(full.item(), rel={torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("count", "classes"), [(1, 5), (2, 5), (1, 2), (6, 2), (6, 5)])
def test_logits_of_ten_thousand_give_finite_values_and_gradients(dtype: torch.dtype, count: int, classes: int) -> None:
    student = torch.full((count, classes), -1e4)
    student[:, 0] = 1e4
    student, teacher = student.to(dtype).requires_grad_(), student.flip(1).to(dtype)
    terms = Objective(config({"ce": {}, "kl": {}, "hard": {}}, temperature=1.0), setting(SPEC, WIDE))
    batch = batch_of(count, targets=torch.full((count,), classes - 1))
    total, values = terms(Output(student, None, {}), Output(teacher, None, {}), batch, 0)
    total.backward()
    expected = {torch.float32: 2e4, torch.bfloat16: 2 * 9984.0, torch.float16: 2e4}[dtype]  # 1e4 is 9984 in bfloat16
    assert {name: value.item() for name, value in values.items()} == {"ce": expected, "kl": expected, "hard": expected}
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_constant_rows_give_uniform_distributions() -> None:
    constant, batch = torch.full((3, 5), 7.0), batch_of(3)
    outputs = Output(constant, None, {}), Output(2 * constant, None, {})
    values = objective({"ce": {}, "kl": {}, "hard": {}})(*outputs, batch, 0)[1]
    log_of_five = pytest.approx(np.log(5), rel=1e-6)
    assert {name: value.item() for name, value in values.items()} == {"ce": log_of_five, "kl": 0, "hard": log_of_five}


# --- the weighted sum ---------------------------------------------------------------------------------------------


def parts_of(terms: dict[str, Any], alpha: float | None = None, epoch: float = 0) -> tuple[float, dict[str, float]]:
    total, values = objective(terms, alpha)(output(SPEC), output(WIDE, seed=1), batch_of(), epoch)
    return total.item(), {name: value.item() for name, value in values.items()}


def test_the_total_without_alpha_is_the_plain_weighted_sum() -> None:
    weights = {"ce": 1.0, "kl": 2.0, "hard": 0.5, "hint": 3.0, "rkd": 0.25}
    total, values = parts_of({name: {**ALL_TERMS[name], "weight": weight} for name, weight in weights.items()})
    assert values.keys() == weights.keys()
    assert total == pytest.approx(sum(weights[name] * values[name] for name in weights), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.25, 0.9])
def test_alpha_splits_the_labels_from_the_teacher(alpha: float) -> None:
    total, values = parts_of(ALL_TERMS, alpha)
    labels = values.pop("ce")
    assert total == pytest.approx((1 - alpha) * labels + alpha * sum(values.values()), rel=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_doubling_a_weight_doubles_the_contribution_and_leaves_every_reported_value(name: str) -> None:
    options: dict[str, Any] = ALL_TERMS.get(name, {})
    once, values = parts_of({**ALL_TERMS, name: options})
    twice, same = parts_of({**ALL_TERMS, name: {**options, "weight": 2.0}})
    assert same == values
    assert twice - once == pytest.approx(values[name], rel=1e-5, abs=1e-6 * once)


def test_the_value_of_kl_does_not_depend_on_the_weight_of_ce() -> None:
    values = [parts_of({"ce": {"weight": weight}, "kl": {}})[1]["kl"] for weight in (0.0, 0.1, 1.0)]
    assert values == [values[0]] * 3
    assert parts_of({"kl": {}})[1]["kl"] == values[0]


@pytest.mark.fault("R6")
def test_a_term_without_weight_is_not_built_and_taps_nothing() -> None:
    built = objective({"ce": {}, "hint": {"stage": 99, "weight": 0.0}, "rkd": {"weight": 0.0}})
    assert list(built.terms) == ["ce"]
    assert built.student_taps.stages == ()
    assert not built.student_taps.embedding
    assert not built.whole_batch_terms
    assert list(objective(ALL_TERMS, alpha=1.0).terms) == ["kl", "hard", "hint", "rkd"]
    assert list(objective(ALL_TERMS, alpha=0.0).terms) == ["ce"]
    assert not needs_teacher(config(ALL_TERMS, alpha=0.0))
    assert needs_teacher(config(ALL_TERMS, alpha=0.5))


def test_taps_are_what_the_terms_read() -> None:
    taps = objective({"hint": {"stage": -1, "teacher_stage": -2}, "rkd": {}})
    assert (taps.student_taps.stages, taps.teacher_taps.stages) == ((-1,), (-2,))
    assert taps.student_taps.embedding
    assert taps.teacher_taps.embedding
    assert taps.whole_batch_terms == ["rkd"]


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)])
def test_a_ramp_grows_linearly_to_the_full_weight(epoch: float, share: float) -> None:
    total, values = parts_of({"ce": {}, "kl": {"weight": 2.0, "ramp": 4}}, epoch=epoch)
    assert total == pytest.approx(values["ce"] + share * 2 * values["kl"], rel=1e-6)


@pytest.mark.parametrize(("epoch", "share"), [(0, 1.0), (6, 1.0), (7, 0.75), (9.5, 0.125), (10, 0.0), (11, 0.0)])
def test_a_fade_falls_linearly_to_nothing_at_the_end_of_the_run(epoch: float, share: float) -> None:
    total, values = parts_of({"ce": {}, "kl": {"weight": 2.0, "fade": 4}}, epoch=epoch)  # of 10 epochs
    assert total == pytest.approx(values["ce"] + share * 2 * values["kl"], rel=1e-6)


def test_a_ramp_and_a_fade_that_meet_multiply() -> None:
    total, values = parts_of({"ce": {}, "kl": {"ramp": 8, "fade": 8}}, epoch=5)
    assert total == pytest.approx(values["ce"] + 5 / 8 * 5 / 8 * values["kl"], rel=1e-6)


@pytest.mark.fault("F1.9")
@pytest.mark.parametrize("span", [2, 2.0, "20%", "20.0%"])
def test_a_ramp_or_fade_is_a_number_of_epochs_or_a_share_of_the_run(span: Any) -> None:
    """Of 10 epochs."""
    for epoch, share in ((0, 0.0), (1, 0.5), (2, 1.0), (8, 1.0), (9, 0.5), (10, 0.0)):
        total, values = parts_of({"ce": {}, "kl": {"ramp": span, "fade": span}}, epoch=epoch)
        assert total == pytest.approx(values["ce"] + share * values["kl"], rel=1e-6)


@pytest.mark.fault("F1.9")
@pytest.mark.parametrize(
    ("options", "doubt"),
    [
        ({"ramp": 40}, r"distill\.terms\.kl\.ramp=40: in 10 epochs .* no more than 25% .*distill\.terms\.kl\.ramp=10%"),
        ({"fade": 40}, r"distill\.terms\.kl\.fade=40: in 10 epochs .* no more than 25% "),
        ({"ramp": 8, "fade": 6}, r"distill\.terms\.kl\.ramp=8: in 10 epochs .* no more than 52% "),
        ({"ramp": "80%", "fade": "80%"}, r"distill\.terms\.kl\.ramp=80%: .* no more than 39% "),
        ({"ramp": 10}, None),
        ({"ramp": 4, "fade": 6}, None),
        ({"ramp": "100%"}, None),
        ({}, None),
    ],
)
def test_a_term_that_never_reaches_its_weight_is_said(options: dict[str, Any], doubt: str | None) -> None:
    doubts = objective({"ce": {}, "kl": {**options, "weight": 9.0}}).doubts
    assert len(doubts) == (doubt is not None)
    assert doubt is None or re.match(doubt, doubts[0])


@pytest.mark.fault("F1.9")
def test_every_preset_reaches_its_weights_in_a_run_of_any_length() -> None:
    for preset, file in groups()["distill"].items():
        config = DistillConfig(**yaml.safe_load(file.read_text("utf-8")))
        for epochs in (1, 5, 240):
            for name, options in active_terms(config).items():
                assert epochs_of(options.ramp, epochs) + epochs_of(options.fade, epochs) <= epochs, (preset, name)


@pytest.mark.parametrize(("epoch", "temperature"), [(0, 4.0), (2.5, 3.25), (5, 2.5), (10, 1.0), (12, 1.0)])
def test_the_temperature_moves_linearly_from_its_start_to_its_end(epoch: float, temperature: float) -> None:
    """Over the 10 epochs of the setting; a term's own temperature stays, or has an end of its own."""
    seed_everything(0)
    own = {"temperature": 2 * temperature}
    terms = {"kl": {}, "js": {"temperature": 3.0}, "reverse_kl": {"temperature": 8.0, "temperature_end": 2.0}}
    moving = DistillConfig(name="test", temperature=4.0, temperature_end=1.0, alpha=None, terms=terms)
    built = Objective(moving, setting(SPEC, WIDE))
    assert built.words() == "1·kl(T=4→1) + 1·js(T=3) + 1·reverse_kl(T=8→2)"
    values = built(output(SPEC), output(WIDE, seed=1), batch_of(), epoch)[1]
    still = objective({"kl": {"temperature": temperature}, "js": {"temperature": 3.0}, "reverse_kl": own})
    assert values == still(output(SPEC), output(WIDE, seed=1), batch_of(), 0)[1]


@pytest.mark.fault("F8.8")
@pytest.mark.parametrize("terms", [{"kl": {"temperature": 3.0}}, {"kl": {"temperature_end": 1.0}}, {"logit_mse": {}}])
def test_a_common_end_that_no_term_follows_is_refused(terms: dict[str, Any]) -> None:
    moving = DistillConfig(name="test", temperature=4.0, temperature_end=1.0, alpha=None, terms={"ce": {}, **terms})
    with pytest.raises(UserError, match=r"^distill\.temperature_end=1\.0: .*distill\.terms\.kl\.temperature_end=1$"):
        check_terms(moving)
    check_terms(dataclasses.replace(moving, terms={**terms, "js": {}}))


def test_words_say_what_a_weight_does_over_the_run() -> None:
    assert objective({"kl": {"ramp": 2, "fade": 3.5}}).words() == "1·kl(ramp=2, fade=3.5, T=4)"


def test_the_temperature_of_a_term_comes_before_the_common_one() -> None:
    student, teacher, batch = output(SPEC), output(WIDE, seed=1), batch_of()
    for options, temperature in (({}, 3.0), ({"temperature": 1.5}, 1.5)):
        value = objective({"kl": options}, temperature=3.0)(student, teacher, batch, 0)[1]["kl"].item()
        expected = np_kl(student.logits.double().numpy(), teacher.logits.double().numpy(), temperature)
        assert value == pytest.approx(expected, rel=1e-5)


def test_the_control_learns_from_the_label_terms_alone_at_full_weight() -> None:
    control = labels_only(config({"ce": {"smoothing": 0.1, "weight": 0.5}, "kl": {}}, alpha=0.9))
    assert (control.alpha, control.terms) == (None, {"ce": {"smoothing": 0.1}})
    two = labels_only(config({"ce": {"weight": 0.2}, "tfkd": {"weight": 0.1}, "kl": {}}))
    assert two.terms == {"ce": {}, "tfkd": {"weight": 0.5}}
    assert labels_only(config({"kl": {}})).terms == {"ce": {}}
    assert labels_only(config({"ce": {"weight": 0.0}, "kl": {}})).terms == {"ce": {}}


# --- what is known without torch ----------------------------------------------------------------------------------


def test_every_known_term_is_computed_and_every_computed_term_is_known() -> None:
    assert list(TERMS) == list(KNOWN_TERMS)


@pytest.mark.parametrize("name", TERMS)
def test_the_kind_of_a_term_is_what_is_known_of_it(name: str) -> None:
    term, known = TERMS[name], KNOWN_TERMS[name]
    assert issubclass(term, (TeacherTerm, LogitTerm)) == (known.compares == "teacher")
    assert known.compares_logits or not issubclass(term, LogitTerm)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_built_from_the_options_it_is_known_by(name: str) -> None:
    """A term without an ``__init__`` of its own reads no options but those its base reads."""
    known, wanted = KNOWN_TERMS[name].options, get_type_hints(TERMS[name].__init__)["options"]
    if "__init__" in vars(TERMS[name]):
        assert known is wanted
    else:
        assert issubclass(known, wanted)
        assert known in (TermOptions, StandardizeOptions, LogitOptions)


@pytest.mark.parametrize("name", KNOWN_TERMS)
def test_the_defaults_of_a_term_are_allowed(name: str) -> None:
    defaults = KNOWN_TERMS[name].options()
    assert parse_options(name, dataclasses.asdict(defaults)) == parse_options(name, {}) == defaults


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"klx": {}}, ["distill.terms.klx", "'kl'"]),
        ({"zzzzzz": {}}, ["distill.terms.zzzzzz", "distill show terms"]),
        ({"kl": {"temprature": 2}}, ["distill.terms.kl.temprature", "'temperature'"]),
        ({"hard": {"temperature": 2}}, ["distill.terms.hard.temperature", "weight"]),
        ({"kl": {"weight": "much"}}, ["distill.terms.kl.weight=much", "float"]),
        ({"kl": {"weight": [1]}}, ["distill.terms.kl.weight=[1]", "float"]),
        ({"kl": {"weight": None}}, ["distill.terms.kl.weight=None", "float"]),
        ({"kl": {"weight": -1}}, ["distill.terms.kl.weight=-1", "0 or more"]),
        ({"kl": {"weight": float("nan")}}, ["distill.terms.kl.weight=nan", "finite"]),
        ({"kl": {"weight": float("inf")}}, ["distill.terms.kl.weight=inf", "finite"]),
        ({"kl": {"fade": -2}}, ["distill.terms.kl.fade=-2", "0 or more"]),
        ({"kl": {"ramp": -2}}, ["distill.terms.kl.ramp=-2", "0 or more"]),
        ({"kl": {"ramp": "often"}}, ["distill.terms.kl.ramp=often", "a share of the run, e.g. 10%"]),
        ({"kl": {"ramp": "101%"}}, ["distill.terms.kl.ramp=101%", "a share of the run, e.g. 10%"]),
        ({"kl": {"ramp": True}}, ["distill.terms.kl.ramp=True", "int | float | str"]),
        ({"kl": {"temperature_end": 0}}, ["distill.terms.kl.temperature_end=0", "above 0"]),
        ({"kl": {"temperature": 0}}, ["distill.terms.kl.temperature=0", "above 0"]),
        ({"ce": {"smoothing": 1.5}}, ["distill.terms.ce.smoothing=1.5", "at most 1"]),
        ({"hint": {"stage": 1.5}}, ["distill.terms.hint.stage=1.5", "int"]),
        ({"hint": {"stage": 2}}, ["distill.terms.hint.stage=2", "student", "0 to 1"]),
        ({"hint": {"stage": 0, "teacher_stage": -3}}, ["distill.terms.hint.teacher_stage=-3", "teacher"]),
        ({"rkd": {"angle": -1}}, ["distill.terms.rkd.angle=-1"]),
    ],
)
def test_a_wrong_option_is_one_helpful_line(terms: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        objective(terms)
    message = str(caught.value)
    assert "\n" not in message
    for words in said:
        assert words in message


@pytest.mark.parametrize(("terms", "alpha"), [({"ce": {"weight": 0}, "kl": {"weight": 0}}, None), ({"kl": {}}, 0.0)])
def test_an_objective_in_which_nothing_has_weight_is_refused(terms: dict[str, Any], alpha: float | None) -> None:
    with pytest.raises(UserError, match=rf"^distill\.alpha={alpha}: every term has weight 0"):
        check_terms(config(terms, alpha))


# --- with real models ---------------------------------------------------------------------------------------------


def real_batch(count: int = 4, size: int = 32) -> Batch:
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(count) % 5, torch.arange(count))


def sgd_step(
    model: Distillation, teacher: FrozenTeacher, parts: list[Batch], epoch: float = 0.0
) -> tuple[float, dict[str, float]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    result = train_step(parts, teacher, model, Update.of(optimizer, TrainerConfig(precision="fp32"), CPU), epoch)
    return result.loss.item(), {name: value.item() for name, value in result.values.items()}


@pytest.mark.parametrize(("student", "teacher"), [("test_resnet", "test_vit"), ("test_vit", "test_resnet")])
@pytest.mark.parametrize("stage", [-1, -2, 0])
def test_hint_and_rkd_join_cnn_and_vit(student: str, teacher: str, stage: int) -> None:
    learner, expert = fresh(student), fresh(teacher)
    terms = Objective(config({"hint": {"stage": stage}, "rkd": {}}), setting(learner.spec, expert.spec))
    frozen, batch = FrozenTeacher(expert, "fp32", terms.teacher_taps), real_batch()
    total, values = terms(learner(batch.images, terms.student_taps), frozen(batch), batch, 0)
    total.backward()
    assert values["hint"] > 0
    assert values["rkd"] > 0
    assert all(parameter.grad.any() for parameter in terms.parameters())


def test_the_step_under_plain_sgd_is_the_weighted_sum_of_the_separate_gradients() -> None:
    """Adam would hide a loss that is divided twice; plain gradient descent with rate 1 shows it."""
    weights = {"ce": 0.5, "kl": 2.0, "hard": 0.25, "hint": 3.0, "rkd": 0.1}
    terms = {name: {**ALL_TERMS[name], "weight": weight} for name, weight in weights.items()}
    alpha, student, batch = 0.75, fresh("test_vit"), real_batch()
    expert = fresh("test_resnet")
    model = Distillation(student, Objective(config(terms, alpha), setting(student.spec, expert.spec)))
    teacher = FrozenTeacher(expert, "fp32", model.objective.teacher_taps)
    shares = {name: weight * (1 - alpha if name == "ce" else alpha) for name, weight in weights.items()}
    parameters = dict(model.named_parameters())
    before = {name: value.detach().clone() for name, value in parameters.items()}
    expected = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for name, share in shares.items():
        seen = student(batch.images, model.objective.student_taps)
        value = model.objective.terms[name](seen, teacher(batch), batch, 4.0)
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        for key, gradient in zip(parameters, gradients, strict=True):
            expected[key] += 0 if gradient is None else share * gradient
    sgd_step(model, teacher, [batch])
    for name, value in parameters.items():
        torch.testing.assert_close(before[name] - value.detach(), expected[name], rtol=1e-3, atol=2e-6, msg=name)


def test_two_micro_batches_take_the_step_of_one_batch_for_terms_of_single_samples() -> None:
    batch, expert = real_batch(8), fresh("test_resnet")

    def after(parts: list[Batch]) -> tuple[float, dict[str, float], dict[str, Tensor]]:
        student = fresh("test_vit")  # no batch norm, no dropout
        model = Distillation(student, objective({"ce": {"smoothing": 0.1}, "kl": {}, "hard": {}}, alpha=0.5))
        teacher = FrozenTeacher(expert, "fp32", model.objective.teacher_taps)
        return *sgd_step(model, teacher, parts), student.state_dict()

    whole, halves = after([batch]), after([take_batch(batch, [0, 1, 2, 3]), take_batch(batch, [4, 5, 6, 7])])
    assert halves[0] == pytest.approx(whole[0], rel=1e-6)
    assert halves[1] == pytest.approx(whole[1], rel=1e-5)
    moved = fresh("test_vit").state_dict()
    assert sum(not torch.equal(moved[name], value) for name, value in whole[2].items()) > 50
    for name, value in whole[2].items():
        torch.testing.assert_close(halves[2][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_three_steps_leave_the_teacher_untouched_and_move_every_trained_part() -> None:
    student, expert, batch = fresh("test_resnet"), fresh("test_efficientnet"), real_batch()
    model = Distillation(student, Objective(config(ALL_TERMS), setting(student.spec, expert.spec)))
    teacher = FrozenTeacher(expert, "fp32", model.objective.teacher_taps)
    model.train()
    before = {name: value.clone() for name, value in expert.state_dict().items()}
    start = {name: value.clone() for name, value in model.objective.named_parameters()}
    for _ in range(3):
        assert not teacher(batch).logits.requires_grad
        sgd_step(model, teacher, [batch])
    assert not any(module.training for module in expert.modules())
    assert all(parameter.grad is None for parameter in expert.parameters())
    assert all(torch.equal(before[name], value) for name, value in expert.state_dict().items())
    assert start
    assert all(not torch.equal(start[name], value) for name, value in model.objective.named_parameters())


def test_parts_of_terms_are_given_to_the_optimizer() -> None:
    model = Distillation(fresh("test_resnet"), objective({"hint": {"stage": -1}}))
    optimizer = build_optimizer(OptimizerConfig(name="sgd"), [model.student.net], model.objective)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in model.objective.parameters()} <= held
    assert len(held) == len(list(model.parameters()))

"""The terms on relations between samples: values and gradients against float64 NumPy references from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from distillcli.config.terms import KNOWN_TERMS
from distillcli.errors import UserError
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.terms.relation import (
    RELATION_TERMS,
    angle_loss,
    angles,
    bilinear,
    gaussian,
    neighbour_products,
    neighbourhood,
    probabilistic_transfer,
    similarities,
)
from distillcli.terms.stages import unit
from distillcli.training.learners import Distillation
from distillcli.types import Batch, Output, Spec
from tests import builders
from tests.builders import batch_of, cast, changed, fresh, objective, output, seeded, take, value_of

Array = NDArray[np.float64]

STUDENT = Spec("student", 5, 8, ((4, 8, 6), (6, 4, 3)), 0, 0)
TEACHER = Spec("teacher", 5, 11, ((4, 9, 9), (7, 2, 5)), 0, 0)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sp": ("sp", {}),
    "sp of stages": ("sp", {"stage": 0, "teacher_stage": -1}),
    "sp of embeddings": ("sp", {"stage": None}),
    "cc": ("cc", {}),
    "cc bilinear": ("cc", {"kernel": "bilinear"}),
    "cc of order 3": ("cc", {"gamma": 0.7, "order": 3}),
    "cc_neighbour": ("cc_neighbour", {}),
    "rkd": ("rkd", {}),
    "pkt": ("pkt", {}),
}
NAMES = list(RELATION_TERMS)
built = partial(builders.built, student=STUDENT, teacher=TEACHER)
ORDERED = "cc_neighbour"  # the one whose value depends on the order of the samples


def embedded(embedding: Tensor) -> Output:
    """An output whose embedding and last stage are this matrix."""
    return Output(torch.zeros(len(embedding), 5), embedding, {-1: embedding[:, :, None, None]})


# --- references: float64 NumPy, from the formulas -----------------------------------------------------------------


def np_unit(x: Array) -> Array:
    return x / np.sqrt((x**2).sum(axis=1, keepdims=True))


def np_sp(s: Array, t: Array) -> float:
    grams = [np_unit(x.reshape(len(x), -1) @ x.reshape(len(x), -1).T) for x in (s, t)]
    return float(((grams[1] - grams[0]) ** 2).sum() / len(s) ** 2)


def np_cc(s: Array, t: Array, kernel: str = "gaussian", gamma: float = 0.4, order: int = 2) -> float:
    matrices = []
    for x in (np_unit(s), np_unit(t)):
        inner = x @ x.T
        series = sum((2 * gamma) ** p / math.factorial(p) * inner**p for p in range(order + 1))
        matrices.append(inner if kernel == "bilinear" else np.exp(-2 * gamma) * series)
    return float(((matrices[0] - matrices[1]) ** 2).sum() / len(s) ** 2)


def np_neighbours(s: Array, t: Array, term: Any) -> float:
    mapped = [
        x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        for x, layer in ((s, term.student_map), (t, term.teacher_map))
    ]
    away = np.abs(mapped[0] - mapped[1])
    return float(np.mean([(away[i] * away[i + 1]).sum() for i in range(len(s) - 1)]))


def np_pkt(s: Array, t: Array) -> float:
    rows = [(1 + np_unit(x) @ np_unit(x).T) / 2 for x in (s, t)]
    p_s, p_t = (x / x.sum(axis=1, keepdims=True) for x in rows)
    return float((p_t * np.log((p_t + 1e-7) / (p_s + 1e-7))).mean())


def np_rkd(s: Array, t: Array) -> float:
    def relations(e: Array) -> tuple[Array, Array]:
        away = e[None, :, :] - e[:, None, :]
        length = np.sqrt((away**2).sum(axis=2))
        directions = away / np.where(length > 0, length, 1)[:, :, None]
        return length / length[length > 0].mean(), np.einsum("ijd,ikd->ijk", directions, directions)

    def smooth(x: Array) -> float:
        return float(np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5).mean())

    (d_s, a_s), (d_t, a_t) = relations(s), relations(t)
    return 25 * smooth(d_s - d_t) + 50 * smooth(a_s - a_t)


def reference(name: str, options: dict[str, Any], term: Any, s: Array, t: Array) -> float:
    if name == "sp":
        return np_sp(s, t)
    if name == "cc":
        return np_cc(s, t, **options)
    if name == "cc_neighbour":
        return np_neighbours(s, t, term)
    return np_rkd(s, t) if name == "rkd" else np_pkt(s, t)


def read(term: Any, name: str, whole: Output, teacher: bool = False) -> Tensor:
    """The one tensor that the term reads."""
    stages = (term.teacher_taps if teacher else term.student_taps).stages
    assert len(stages) == (1 if name == "sp" and term.stage is not None else 0)
    assert whole.embedding is not None
    return whole.stages[stages[0]] if stages else whole.embedding


# --- values and gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("case", CASES)
def test_a_term_is_its_formula(case: str, count: int) -> None:
    name, options = CASES[case]
    term, student, teacher = built(name, **options), output(STUDENT, count), output(TEACHER, count, seed=1)
    arrays = read(term, name, student).numpy(), read(term, name, teacher, teacher=True).numpy()
    expected = reference(name, options, term, *arrays)
    assert value_of(term, student, teacher).item() == pytest.approx(expected, rel=1e-9, abs=1e-25)


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_is_the_slope_of_the_reference(case: str) -> None:
    name, options = CASES[case]
    term, student, teacher = built(name, **options), output(STUDENT, 5, grad=True), output(TEACHER, 5, seed=1)
    value_of(term, student, teacher).backward()
    point, target = read(term, name, student), read(term, name, teacher, teacher=True).numpy()
    assert point.grad is not None
    for seed in range(3):
        way = seeded(*point.shape, seed=50 + seed).numpy()
        ends = [reference(name, options, term, point.detach().numpy() + step * way, target) for step in (1e-5, -1e-5)]
        slope = float((point.grad.numpy() * way).sum())
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_gradients_agree_with_finite_differences() -> None:
    matrix, other = seeded(5, 3).requires_grad_(), seeded(5, 4, seed=1)
    checks: list[Callable[[Tensor], Tensor]] = [
        similarities,
        bilinear,
        lambda e: gaussian(unit(e, dim=1), 0.4, 2),
        neighbour_products,
        neighbourhood,
        lambda e: probabilistic_transfer(e, other),
        lambda e: angle_loss(e, other),
        lambda e: angle_loss(e, other, most=50),
    ]
    for function in checks:
        assert torch.autograd.gradcheck(function, (matrix,))


def test_the_series_is_the_gaussian_kernel_for_small_gamma_and_for_high_order() -> None:
    vectors = unit(seeded(6, 4), dim=1)
    squared = torch.cdist(vectors, vectors).square()
    torch.testing.assert_close(gaussian(vectors, 0.01, 2), (-0.01 * squared).exp(), rtol=0, atol=2e-6)
    torch.testing.assert_close(gaussian(vectors, 0.4, 20), (-0.4 * squared).exp(), rtol=1e-12, atol=0)
    assert (gaussian(vectors, 0.4, 2) - (-0.4 * squared).exp()).abs().max() < 0.05


def test_rows_of_similarities_have_euclidean_length_one() -> None:
    rows = similarities(seeded(6, 4, 3, 2))
    torch.testing.assert_close(rows.square().sum(dim=1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(neighbourhood(seeded(6, 4)).sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_similarities_of_features_without_negatives_differ_by_two_over_the_batch_at_most() -> None:
    term = built("sp")
    for seed in range(20):
        student, teacher = seeded(4, 8, seed=seed).relu(), seeded(4, 11, seed=80 + seed).relu()
        assert value_of(term, embedded(student), embedded(teacher)) <= 2 / 4
    opposite = torch.eye(2, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    assert value_of(term, embedded(opposite[0]), embedded(opposite[1])) <= 2 / 2


# --- angles in slabs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 49, 100, 98, 147, 342])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_angles_in_slabs_are_the_angles_at_once(most: int, dtype: torch.dtype) -> None:
    student, teacher = seeded(7, 4).to(dtype), seeded(7, 5, seed=1).to(dtype)
    values, gradients = [], []
    for limit in (343, most):
        point = student.clone().requires_grad_()
        value = angle_loss(point, teacher, limit)
        value.backward()
        assert point.grad is not None
        values.append(value.detach())
        gradients.append(point.grad)
    expected = nn.functional.smooth_l1_loss(angles(student), angles(teacher))
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    assert torch.equal(values[0], expected)
    torch.testing.assert_close(values[1], expected, rtol=rtol, atol=0)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=rtol, atol=rtol * gradients[0].abs().max().item())


class Largest(TorchDispatchMode):
    """The number of elements of the largest result."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("vertices", [1, 4])
def test_no_tensor_of_angles_is_larger_than_stated_and_none_is_kept_for_the_backward_pass(vertices: int) -> None:
    count, kept = 24, [0]
    student, teacher = seeded(count, 4).requires_grad_(), seeded(count, 5, seed=1)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with Largest() as watch, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = angle_loss(student, teacher, most=vertices * count**2)
        assert max(kept) <= count**2
        value.backward()
    assert watch.elements == vertices * count**2
    with Largest() as watch, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        angle_loss(student, teacher).backward()
    assert watch.elements == max(kept) == count**3


def test_a_batch_too_large_for_one_tensor_of_angles_goes_through_the_term(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = embedded(seeded(6, 8)), embedded(seeded(6, 11, seed=1))
    expected = value_of(built("rkd"), student, teacher)
    seen = []

    def slabs(mine: Tensor, its: Tensor) -> Tensor:
        seen.append(len(mine))
        return angle_loss(mine, its, most=40)

    monkeypatch.setattr("distillcli.terms.relation.angle_loss", slabs)
    torch.testing.assert_close(value_of(built("rkd"), student, teacher), expected, rtol=1e-12, atol=0)
    assert seen == [6]


# --- zero, and invariances ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sp", "cc", "rkd", "pkt"])
def test_terms_are_zero_and_least_where_student_equals_teacher(name: str) -> None:
    term, matrix = built(name, teacher=STUDENT), seeded(6, 8)
    assert value_of(term, embedded(matrix), embedded(matrix)).item() == pytest.approx(0, abs=1e-15)
    for seed in range(10):
        moved = matrix + 1e-2 * seeded(6, 8, seed=10 + seed)
        assert value_of(term, embedded(moved), embedded(matrix)).item() > 1e-10


@pytest.mark.parametrize("name", ["sp", "cc", "rkd", "pkt"])
def test_rotation_and_scale_of_either_side_do_not_matter(name: str) -> None:
    student, teacher = seeded(6, 8), seeded(6, 11, seed=1)
    turn, other = torch.linalg.qr(seeded(8, 8, seed=2))[0], torch.linalg.qr(seeded(11, 11, seed=3))[0]
    term = built(name)
    expected = value_of(term, embedded(student), embedded(teacher))
    for mine, its in ((3 * student @ turn, teacher), (student, 0.2 * teacher @ other)):
        torch.testing.assert_close(value_of(term, embedded(mine), embedded(its)), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["cc", "pkt"])
def test_the_length_of_single_samples_does_not_matter(name: str) -> None:
    student, teacher, lengths = seeded(6, 8), seeded(6, 11, seed=1), seeded(6, 1, seed=2).abs() + 0.1
    term = built(name)
    expected = value_of(term, embedded(student), embedded(teacher))
    for mine, its in ((student * lengths, teacher), (student, teacher * lengths)):
        torch.testing.assert_close(value_of(term, embedded(mine), embedded(its)), expected, rtol=1e-9, atol=0)


def test_the_position_of_the_whole_batch_matters_to_none_but_cosines() -> None:
    student, teacher, shift = seeded(6, 8), seeded(6, 11, seed=1), seeded(8, seed=2)
    for name, same in (("rkd", True), ("sp", False), ("cc", False), ("pkt", False)):
        term = built(name)
        values = [value_of(term, embedded(mine), embedded(teacher)) for mine in (student, student + shift)]
        assert torch.allclose(values[0], values[1], rtol=1e-9, atol=0) == same


def test_the_relations_of_maps_do_not_depend_on_their_shape() -> None:
    maps, flat = seeded(5, 4, 3, 2), seeded(5, 4, 3, 2).flatten(1)
    torch.testing.assert_close(similarities(maps), similarities(flat), rtol=1e-14, atol=0)
    last = maps.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(similarities(last), similarities(flat), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_the_samples_matters_to_products_of_neighbours_alone(case: str) -> None:
    name, options = CASES[case]
    term, student, teacher = built(name, **options), output(STUDENT), output(TEACHER, seed=1)
    order = [4, 0, 5, 2, 1, 3]
    values = [value_of(term, student, teacher), value_of(term, take(student, order), take(teacher, order))]
    assert torch.allclose(values[0], values[1], rtol=1e-9, atol=0) == (name != ORDERED)
    assert name != ORDERED or abs(values[0] - values[1]) > 1e-3 * values[0]


@pytest.mark.parametrize("case", CASES)
def test_terms_depend_on_which_samples_share_a_batch_and_say_so(case: str) -> None:
    name, options = CASES[case]
    term, student, teacher = built(name, **options), output(STUDENT), output(TEACHER, seed=1)
    parts = [value_of(term, take(student, rows), take(teacher, rows)) for rows in ([0, 1, 2], [3, 4, 5])]
    assert KNOWN_TERMS[name].whole_batch
    whole = value_of(term, student, teacher)
    assert abs(sum(parts) / 2 - whole) > 1e-2 * whole


# --- edges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_sample_has_no_relations(case: str, dtype: torch.dtype) -> None:
    name, options = CASES[case]
    term = built(name, **options).to(dtype)
    student, teacher = cast(output(STUDENT, 1), dtype), cast(output(TEACHER, 1, seed=1), dtype)
    student = changed(student, lambda tensor: tensor.requires_grad_())
    value = value_of(term, student, teacher)
    assert value.item() == pytest.approx(0, abs=1e-12)
    value.backward()
    gradient = read(term, name, student).grad
    assert gradient is not None
    assert gradient.abs().max() < 1e-6
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in term.parameters())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("fill", ["random", "zero", "constant", "huge", "tiny", "opposite"])
def test_values_and_gradients_are_finite(case: str, count: int, fill: str) -> None:
    name, options = CASES[case]
    term = built(name, **options).float()

    def filled(tensor: Tensor) -> Tensor:
        if fill == "opposite":  # cosine -1: a probability of 0
            signs = torch.tensor([1, -1, 1, -1, 1])[:count]
            return tensor[:1] * signs.view(-1, *[1] * (tensor.dim() - 1))
        if fill == "constant":
            return torch.ones_like(tensor)
        return {"zero": 0.0, "huge": 1e4, "tiny": 1e-12}.get(fill, 1.0) * tensor

    student, teacher = (
        changed(cast(output(spec, count, seed), torch.float32), filled) for spec, seed in ((STUDENT, 0), (TEACHER, 1))
    )
    student = changed(student, lambda tensor: tensor.clone().requires_grad_())
    value = value_of(term, student, teacher)
    assert torch.isfinite(value)
    value.backward()
    point = read(term, name, student)
    assert point.grad is not None
    assert torch.isfinite(point.grad).all()


@pytest.mark.parametrize("name", ["sp", "cc", "pkt"])
def test_zero_vectors_have_gradients_of_ordinary_size(name: str) -> None:
    matrix = seeded(4, 8)
    matrix[1] = 0
    matrix.requires_grad_()
    value_of(built(name), embedded(matrix), embedded(seeded(4, 11, seed=1))).backward()
    assert matrix.grad is not None
    assert matrix.grad.abs().max() < 10


def test_neighbour_products_can_be_zero_by_shrinking_both_sides() -> None:
    """The weakness of this form: its trained maps may lose everything."""
    term, student, teacher = built("cc_neighbour"), output(STUDENT), output(TEACHER, seed=1)
    for parameter in term.parameters():
        nn.init.zeros_(parameter)
    assert value_of(term, student, teacher).item() == 0


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("sp", {"stage": 2}, ["distill.terms.sp.stage=2", "student has stages 0 to 1"]),
        ("sp", {"teacher_stage": -3}, ["distill.terms.sp.teacher_stage=-3", "teacher has stages"]),
        ("sp", {"stage": None, "teacher_stage": 0}, ["distill.terms.sp.teacher_stage=0", "embeddings"]),
        ("cc", {"kernel": "gausian"}, ["distill.terms.cc.kernel=gausian", "'gaussian'"]),
        ("cc", {"order": 0}, ["distill.terms.cc.order=0", "1 or more"]),
        ("cc", {"gamma": -1}, ["distill.terms.cc.gamma=-1", "0 or more"]),
    ],
)
def test_a_wrong_option_is_one_helpful_line(name: str, options: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        built(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    for words in said:
        assert words in message


# --- inside the objective -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_half_precision_changes_little(case: str) -> None:
    """The cast of the inputs is all that is lost: the value is computed in float32, under autocast too."""
    name, options = CASES[case]
    student, teacher, batch = output(STUDENT), output(TEACHER, seed=1), batch_of()
    whole = objective({"ce": {}, name: options}, STUDENT, TEACHER)
    assert whole.whole_batch_terms == [name]
    exact = whole(cast(student, torch.float32), cast(teacher, torch.float32), batch, 0)[1][name]
    double = value_of(built(name, **options), student, teacher).item()
    assert exact.item() == pytest.approx(double, rel=1e-4)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", torch.bfloat16):
            half = whole(cast(student, dtype), cast(teacher, dtype), batch, 0)[1][name]
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(exact.item(), rel=2e-2)


def test_trained_parts_get_gradients_and_move() -> None:
    whole = objective({"cc_neighbour": {}}, STUDENT, TEACHER)
    parameters = dict(whole.named_parameters())
    assert {tuple(value.shape) for value in parameters.values()} == {(128, 8), (128, 11), (128,)}
    before = {key: value.detach().clone() for key, value in parameters.items()}
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    student, teacher = cast(output(STUDENT), torch.float32), cast(output(TEACHER, seed=1), torch.float32)
    whole(student, teacher, batch_of(), 0)[0].backward()
    optimizer.step()
    assert all(not torch.equal(before[key], value) for key, value in parameters.items())
    assert not any(list(built(name).parameters()) for name in NAMES if name != "cc_neighbour")


@pytest.mark.parametrize("name", NAMES)
def test_training_on_the_term_alone_lowers_it(name: str) -> None:
    term, student, teacher = built(name), seeded(6, 8).requires_grad_(), embedded(seeded(6, 11, seed=1))
    optimizer = torch.optim.Adam([student, *term.parameters()], lr=0.02)
    values = []
    for _ in range(20):
        value = value_of(term, embedded(student), teacher)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.9 * values[0]


# --- with real models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(("student", "teacher"), [("test_resnet", "test_vit"), ("test_vit", "test_resnet")])
@pytest.mark.parametrize("case", CASES)
def test_terms_join_cnn_and_vit(case: str, student: str, teacher: str, size: int) -> None:
    name, options = CASES[case]
    learner, expert = fresh(student, size), fresh(teacher, size)
    model = Distillation(learner, objective({"ce": {}, name: options}, learner.spec, expert.spec))
    model.train()
    frozen = FrozenTeacher(expert, "fp32", model.objective.teacher_taps)
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.arange(4), torch.arange(4))
    seen = frozen(batch)
    assert not any(maps.requires_grad for maps in seen.stages.values())
    assert seen.embedding is None or not seen.embedding.requires_grad
    _, values = model.objective(learner(images, model.objective.student_taps), seen, batch, 0)
    assert torch.isfinite(values[name])
    assert values[name] > 0
    model.objective.terms[name](learner(images, model.objective.student_taps), seen, batch, 1.0).backward()
    assert all(parameter.grad is None for parameter in expert.parameters())
    reached = [parameter for parameter in learner.parameters() if parameter.grad is not None and parameter.grad.any()]
    assert len(reached) > 5

"""The terms on stages and embeddings: values and gradients against float64 NumPy references written from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillcli.config.terms import KNOWN_TERMS, parse_options
from distillcli.errors import UserError
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.terms.feature import (
    FEATURE_TERMS,
    attention,
    attention_transfer,
    cosine_distance,
    flow,
    hierarchical_context,
    neuron_selectivity,
    variational_information,
)
from distillcli.terms.stages import AdapterNorm, stage_pairs, unit
from distillcli.training.learners import Distillation
from distillcli.types import Batch, Output, Spec
from tests import builders
from tests.builders import batch_of, cast, fresh, objective, output, seeded, take, value_of

Array = NDArray[np.float64]

STUDENT = Spec("student", 5, 8, ((3, 8, 6), (4, 8, 6), (6, 4, 3), (7, 3, 2)), 0, 0)
TEACHER = Spec("teacher", 5, 11, ((2, 9, 9), (5, 9, 7), (4, 5, 3), (7, 2, 4)), 0, 0)
TOKENS = Spec("vit", 5, 9, ((6, 3, 2),) * 6, 0, 0)
SHORT = Spec("short", 5, 8, ((4, 8, 6), (6, 4, 3)), 0, 0)
NAMES = [name for name in FEATURE_TERMS if name != "hint"]
TRAINED = ["fsp", "vid", "reviewkd", "embedding"]  # with STUDENT and TEACHER, which differ in channels and width
LISTS = ["at", "nst", "fsp", "vid", "reviewkd"]


def built(name: str, student: Spec = STUDENT, teacher: Spec = TEACHER, **options: Any) -> Any:
    """Norm layers get other weights than 1 and 0, so that a reference cannot forget them."""
    term = builders.built(name, student, teacher, **options)
    for module in term.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return term


def inputs_of(whole: Output) -> list[Tensor]:
    assert whole.embedding is not None
    return [whole.embedding, *(maps for stage, maps in whole.stages.items() if stage >= 0)]


# --- references: float64 NumPy, from the formulas -----------------------------------------------------------------


def np_pool(maps: Array, height: int, width: int) -> Array:
    """Adaptive average pooling: cell i of n covers floor(i H / n) to ceil((i + 1) H / n)."""
    pooled = np.empty((*maps.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            top, bottom = i * maps.shape[2] // height, -(-(i + 1) * maps.shape[2] // height)
            left, right = j * maps.shape[3] // width, -(-(j + 1) * maps.shape[3] // width)
            pooled[:, :, i, j] = maps[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return pooled


def np_same(s: Array, t: Array) -> tuple[Array, Array]:
    height, width = min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3])
    return np_pool(s, height, width), np_pool(t, height, width)


def np_unit(x: Array) -> Array:
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True))


def np_at(s: Array, t: Array, power: float = 2.0, form: str = "code") -> float:
    q_s, q_t = (np_unit((np.abs(x) ** power).mean(axis=1).reshape(len(x), -1)) for x in np_same(s, t))
    if form == "paper":
        return float(0.5 * np.sqrt(((q_s - q_t) ** 2).sum(axis=1)).mean())
    return float(((q_s - q_t) ** 2).mean())


def np_nst(s: Array, t: Array) -> float:
    """In the broadcast form: every pair of channels."""
    f_s, f_t = (np_unit(x.reshape(*x.shape[:2], -1)) for x in np_same(s, t))

    def mean_kernel(a: Array, b: Array) -> float:
        return float(((a[:, :, None, :] * b[:, None, :, :]).sum(axis=3) ** 2).mean())

    return mean_kernel(f_t, f_t) + mean_kernel(f_s, f_s) - 2 * mean_kernel(f_s, f_t)


def np_flow(a: Array, b: Array) -> Array:
    a, b = np_same(a, b)
    return np.asarray(np.einsum("bcyx,bdyx->bcd", a, b) / (a.shape[2] * a.shape[3]))


def np_fsp(s: list[Array], t: list[Array]) -> float:
    pairs = range(len(s) - 1)
    return float(sum(((np_flow(s[i], s[i + 1]) - np_flow(t[i], t[i + 1])) ** 2).mean() for i in pairs))


def np_vid(mean: Array, t: Array, rho: Array) -> float:
    variance = (np.log(1 + np.exp(rho)) + 1e-5)[:, None, None]
    return float(0.5 * ((mean - t) ** 2 / variance + np.log(variance)).mean())


def np_hcl(o: Array, t: Array) -> float:
    total, weights, weight = ((o - t) ** 2).mean(), 1.0, 1.0
    for side in (4, 2, 1):
        if side < min(o.shape[2:]):
            weight /= 2
            total += weight * ((np_pool(o, side, side) - np_pool(t, side, side)) ** 2).mean()
            weights += weight
    return float(total / weights)


def np_convolution(maps: Array, layer: Any) -> Array:
    """Stride 1, zeros outside, so that the size stays."""
    weight = layer.weight.detach().numpy()
    reach = weight.shape[2] // 2
    padded = np.pad(maps, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    height, width = maps.shape[2:]
    result = np.zeros((len(maps), len(weight), height, width))
    for y in range(weight.shape[2]):
        for x in range(weight.shape[3]):
            seen = padded[:, :, y : y + height, x : x + width]
            result += np.einsum("bcyx,dc->bdyx", seen, weight[:, :, y, x])
    return result if layer.bias is None else result + layer.bias.detach().numpy()[:, None, None]


def np_norm(maps: Array, layer: Any) -> Array:
    mean, variance = maps.mean(axis=(0, 2, 3), keepdims=True), maps.var(axis=(0, 2, 3), keepdims=True)
    scale, shift = (parameter.detach().numpy()[:, None, None] for parameter in (layer.weight, layer.bias))
    return np.asarray((maps - mean) / np.sqrt(variance + 1e-5) * scale + shift)


def np_project(maps: Array, layers: Any) -> Array:
    return np_norm(np_convolution(maps, layers[0]), layers[1])


def np_nearest(maps: Array, height: int, width: int) -> Array:
    rows = [i * maps.shape[2] // height for i in range(height)]
    columns = [j * maps.shape[3] // width for j in range(width)]
    return maps[:, :, rows][:, :, :, columns]


def np_review(e_s: Array, e_t: Array, s: list[Array], t: list[Array], term: Any) -> float:
    """``s`` and ``t`` from deep to shallow, as the layers of the term are."""
    y = np_project(e_s[:, :, None, None], term.entries[0])
    total = np_hcl(np_project(y, term.exits[0]), e_t[:, :, None, None])
    for k, (mine, its) in enumerate(zip(s, t, strict=True), start=1):
        x = np_project(mine, term.entries[k])
        y = np_nearest(y, *x.shape[2:])
        a = 1 / (1 + np.exp(-np_convolution(np.concatenate([x, y], axis=1), term.attentions[k - 1])))
        y = x * a[:, :1] + y * a[:, 1:]
        total += np_hcl(np_project(np_nearest(y, *its.shape[2:]), term.exits[k]), its)
    return total


def reference(name: str, term: Any, arrays: list[Array], targets: list[Array]) -> float:
    """``arrays``, ``targets``: embedding and stages of the student and of the teacher."""
    (e_s, *s), (e_t, *t) = arrays, targets
    if name == "at":
        return sum(map(np_at, s, t))
    if name == "nst":
        return sum(map(np_nst, s, t))
    if name == "fsp":
        projected = [
            mine if isinstance(layers, nn.Identity) else np_project(mine, layers)
            for mine, layers in zip(s, term.projectors, strict=True)
        ]
        return np_fsp(projected, t)
    if name == "vid":
        total = 0.0
        for mine, its, layers, rho in zip(s, t, term.means, term.rhos, strict=True):
            guess, target = np_same(mine, its)
            for layer in layers:
                guess = np.maximum(guess, 0) if isinstance(layer, nn.ReLU) else np_convolution(guess, layer)
            total += np_vid(guess, target, rho.detach().numpy())
        return total
    if name == "reviewkd":
        return np_review(e_s, e_t, s[::-1], t[::-1], term)
    weight, bias = term.projector.weight.detach().numpy(), term.projector.bias.detach().numpy()
    return float((1 - (np_unit(e_s @ weight.T + bias) * np_unit(e_t)).sum(axis=1)).mean())


# --- values and gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_term_is_its_formula_for_any_sizes(name: str, count: int) -> None:
    term, student, teacher = built(name), output(STUDENT, count), output(TEACHER, count, seed=1)
    if name == "vid":
        for rho in term.rhos:
            nn.init.uniform_(rho, -2, 2)
    arrays, targets = ([tensor.numpy() for tensor in inputs_of(whole)] for whole in (student, teacher))
    value = value_of(term, student, teacher).item()
    assert value == pytest.approx(reference(name, term, arrays, targets), rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_is_the_slope_of_the_reference(name: str) -> None:
    term, student, teacher = built(name), output(STUDENT, 2, grad=True), output(TEACHER, 2, seed=1)
    value_of(term, student, teacher).backward()
    targets = [tensor.numpy() for tensor in inputs_of(teacher)]
    points = [tensor.detach().numpy() for tensor in inputs_of(student)]
    used = 0
    for row, tensor in enumerate(inputs_of(student)):
        way = seeded(*tensor.shape, seed=50 + row).numpy()
        ends = []
        for step in (1e-5, -1e-5):
            moved = [point + step * way if place == row else point for place, point in enumerate(points)]
            ends.append(reference(name, term, moved, targets))
        slope = 0.0 if tensor.grad is None else float((tensor.grad.numpy() * way).sum())
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)
        used += tensor.grad is not None
    assert used == {"embedding": 1, "reviewkd": 5}.get(name, 4)


def test_gradients_agree_with_finite_differences() -> None:
    maps, other = seeded(2, 3, 4, 3).requires_grad_(), seeded(2, 4, 3, 5, seed=1)
    rho = seeded(3, seed=2).requires_grad_()
    checks: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (lambda x: unit(x, dim=1), (maps,)),
        (lambda x: attention_transfer(x, other), (maps,)),
        (lambda x: attention_transfer(x, other, 3.0, "paper"), (maps,)),
        (lambda x: neuron_selectivity(x, other), (maps,)),
        (lambda x: flow(x, other), (maps,)),
        (lambda x, r: variational_information(x, seeded(2, 3, 4, 3, seed=3), r), (maps, rho)),
        (lambda x: hierarchical_context(x, seeded(2, 3, 4, 3, seed=3)), (maps,)),
        (lambda x: cosine_distance(x.flatten(1), seeded(2, 36, seed=3)), (maps,)),
    ]
    for function, inputs in checks:
        assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_attention_transfer_has_both_published_forms(form: str, power: float) -> None:
    student, teacher = seeded(3, 4, 4, 3), seeded(3, 5, 8, 2, seed=1)
    expected = np_at(student.numpy(), teacher.numpy(), power, form)
    assert attention_transfer(student, teacher, power, form).item() == pytest.approx(expected, rel=1e-12)
    term = built("at", power=power, form=form, stages=[-1])
    whole = output(STUDENT), output(TEACHER, seed=1)
    expected = np_at(*(side.stages[-1].numpy() for side in whole), power, form)
    assert value_of(term, *whole).item() == pytest.approx(expected, rel=1e-12)


def test_attention_transfer_is_at_most_two_over_the_number_of_positions() -> None:
    student, teacher = torch.zeros(1, 1, 4, 3), torch.zeros(1, 1, 4, 3)
    student[0, 0, 0, 0] = teacher[0, 0, 1, 1] = 5.0
    assert attention_transfer(student, teacher).item() == pytest.approx(2 / 12)
    for seed in range(20):
        assert attention_transfer(seeded(2, 4, 4, 3, seed=seed), seeded(2, 4, 4, 3, seed=90 + seed)) <= 2 / 12


def test_embedding_by_squared_distance_is_a_mean_over_batch_and_width() -> None:
    term = built("embedding", form="mse")
    student, teacher = output(STUDENT), output(TEACHER, seed=1)
    assert student.embedding is not None
    assert teacher.embedding is not None
    guess = student.embedding.numpy() @ term.projector.weight.detach().numpy().T + term.projector.bias.detach().numpy()
    expected = ((guess - teacher.embedding.numpy()) ** 2).mean()
    assert value_of(term, student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_squared_distance_of_unit_vectors_is_twice_the_cosine_distance_over_the_width() -> None:
    student, teacher = unit(seeded(5, 7), dim=1), unit(seeded(5, 7, seed=1), dim=1)
    expected = nn.functional.mse_loss(student, teacher) * 7 / 2
    torch.testing.assert_close(cosine_distance(student, teacher), expected, rtol=1e-12, atol=0)


# --- the value where student = teacher ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["at", "nst", "fsp", "embedding"])
@pytest.mark.parametrize("spec", [STUDENT, TOKENS], ids=["maps", "tokens"])
def test_terms_are_zero_and_least_where_student_equals_teacher(name: str, spec: Spec) -> None:
    term, whole = built(name, spec, spec), output(spec)
    assert not list(term.parameters())  # equal shapes need no adapter
    assert value_of(term, whole, whole).item() == pytest.approx(0, abs=1e-15)
    for seed in range(5):
        noise = output(spec, seed=1000 * (seed + 1))
        assert whole.embedding is not None
        assert noise.embedding is not None
        stages = {stage: maps + 1e-2 * noise.stages[stage] for stage, maps in whole.stages.items()}
        assert value_of(term, Output(whole.logits, whole.embedding + 1e-2 * noise.embedding, stages), whole) > 1e-9


def test_neuron_selectivity_is_never_negative() -> None:
    for seed in range(20):
        assert neuron_selectivity(seeded(2, 3, 2, 2, seed=seed), seeded(2, 5, 3, 4, seed=70 + seed)) >= 0


def test_variance_five_costs_half_its_logarithm_where_the_mean_is_exact() -> None:
    term, maps = built("vid", stages=[-1]), seeded(2, 7, 2, 2)
    assert (nn.functional.softplus(term.rhos[0]) + 1e-5).tolist() == pytest.approx([5.0] * 7, rel=1e-7)
    assert term.rhos[0][0].item() == pytest.approx(4.9932, abs=5e-5)
    assert variational_information(maps, maps, term.rhos[0]).item() == pytest.approx(0.8047, abs=5e-5)
    bound = variational_information(maps, maps, torch.full((7,), -1e4, dtype=torch.float64))
    assert bound.item() == pytest.approx(-5.756, abs=5e-4)


def test_the_best_variance_is_the_mean_square_of_what_is_left() -> None:
    residual = seeded(4, 3, 4, 3)
    best = residual.square().mean(dim=(0, 2, 3)) - 1e-5
    rho = best.expm1().log().requires_grad_()
    variational_information(residual, torch.zeros_like(residual), rho).backward()
    assert rho.grad is not None
    assert rho.grad.abs().max() < 1e-15


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (2, 2), (3, 5), (4, 4), (5, 5), (8, 6), (9, 3)])
def test_hierarchical_context_is_its_formula_and_zero_for_equal_maps(height: int, width: int) -> None:
    guess, target = seeded(2, 3, height, width), seeded(2, 3, height, width, seed=1)
    expected = np_hcl(guess.numpy(), target.numpy())
    assert hierarchical_context(guess, target).item() == pytest.approx(expected, rel=1e-12)
    assert hierarchical_context(guess, guess).item() == 0
    if min(height, width) == 1:
        torch.testing.assert_close(hierarchical_context(guess, target), nn.functional.mse_loss(guess, target))


# --- invariances --------------------------------------------------------------------------------------------------


def test_attention_ignores_scale_and_the_order_of_channels() -> None:
    maps, other = seeded(3, 4, 4, 3), seeded(3, 4, 4, 3, seed=1)
    expected = attention_transfer(maps, other)
    for changed in (3 * maps, -0.1 * maps, maps[:, [2, 0, 3, 1]]):
        torch.testing.assert_close(attention_transfer(changed, other), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(attention_transfer(other, changed), expected, rtol=1e-12, atol=0)


def test_neuron_selectivity_ignores_the_order_and_scale_of_channels() -> None:
    maps, other = seeded(3, 4, 4, 3), seeded(3, 6, 4, 3, seed=1)
    expected = neuron_selectivity(maps, other)
    scales = torch.tensor([0.1, 1, -2, 30], dtype=torch.float64)[:, None, None]
    for changed in (maps[:, [2, 0, 3, 1]], maps * scales):
        torch.testing.assert_close(neuron_selectivity(changed, other), expected, rtol=1e-11, atol=0)
        torch.testing.assert_close(neuron_selectivity(other, changed), expected, rtol=1e-11, atol=0)


def test_flow_ignores_where_things_are_as_long_as_both_maps_agree() -> None:
    first, second, order = seeded(2, 3, 4, 3), seeded(2, 5, 4, 3, seed=1), torch.randperm(12)
    moved = [maps.flatten(2)[:, :, order].view_as(maps) for maps in (first, second)]
    torch.testing.assert_close(flow(moved[0], moved[1]), flow(first, second), rtol=1e-12, atol=1e-15)
    assert not torch.allclose(flow(moved[0], second), flow(first, second))


def test_cosine_distance_ignores_the_length_of_either_side() -> None:
    student, teacher, lengths = seeded(5, 7), seeded(5, 7, seed=1), seeded(5, 1, seed=2).abs() + 0.1
    expected = cosine_distance(student, teacher)
    torch.testing.assert_close(cosine_distance(student * lengths, teacher), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(cosine_distance(student, teacher * lengths), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_no_term_compares_the_samples_of_a_batch(name: str) -> None:
    """With the batch norm of adapters on its running statistics, the batch is the mean of its samples."""
    term, student, teacher = built(name).eval(), output(STUDENT), output(TEACHER, seed=1)
    whole = value_of(term, student, teacher)
    parts = [value_of(term, take(student, rows), take(teacher, rows)) for rows in ([0, 1, 2], [3, 4, 5])]
    singles = [value_of(term, take(student, [row]), take(teacher, [row])) for row in range(6)]
    again = [*range(6)] * 2
    assert not KNOWN_TERMS[name].whole_batch
    for other in (sum(parts) / 2, sum(singles) / 6, value_of(term, take(student, again), take(teacher, again))):
        torch.testing.assert_close(other, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_labels_and_logits_do_not_matter(name: str) -> None:
    term, student, teacher = built(name), output(STUDENT), output(TEACHER, seed=1)
    soft = batch_of(targets=seeded(6, 5).softmax(dim=1))
    none = torch.zeros(6, 5)
    other = term(replace(student, logits=none), replace(teacher, logits=none), soft, 1.0)
    assert torch.equal(other, value_of(term, student, teacher))


@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_does_not_matter(name: str) -> None:
    term, student, teacher = built(name), output(STUDENT), output(TEACHER, seed=1)
    last = [
        Output(
            whole.logits,
            whole.embedding,
            {stage: maps.contiguous(memory_format=torch.channels_last) for stage, maps in whole.stages.items()},
        )
        for whole in (student, teacher)
    ]
    torch.testing.assert_close(value_of(term, *last), value_of(term, student, teacher), rtol=1e-12, atol=0)


# --- edges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("fill", ["random", "zero", "constant", "huge", "tiny"])
def test_values_and_gradients_are_finite(name: str, count: int, fill: str) -> None:
    term = built(name).float().train()
    scales = {"zero": 0.0, "huge": 1e4, "tiny": 1e-12}
    changed = []
    for spec, seed in ((STUDENT, 0), (TEACHER, 1)):
        whole = cast(output(spec, count, seed), torch.float32)
        assert whole.embedding is not None
        tensors = [whole.embedding, *whole.stages.values()]
        tensors = [torch.ones_like(one) if fill == "constant" else scales.get(fill, 1.0) * one for one in tensors]
        tensors = [one.requires_grad_(seed == 0) for one in tensors]
        changed.append(Output(whole.logits, tensors[0], dict(zip(whole.stages, tensors[1:], strict=True))))
    value = value_of(term, *changed)
    assert torch.isfinite(value)
    value.backward()
    assert changed[0].embedding is not None
    for tensor in (changed[0].embedding, *changed[0].stages.values(), *term.parameters()):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()


def test_zero_vectors_have_gradients_of_ordinary_size() -> None:
    zero = torch.zeros(2, 5, requires_grad=True)
    cosine_distance(zero, seeded(2, 5).float()).backward()
    assert zero.grad is not None
    assert zero.grad.abs().max() < 10
    assert attention(torch.zeros(2, 3, 4, 3), 2.0).eq(0).all()


def test_a_single_value_passes_the_norm_of_an_adapter_by_its_running_statistics() -> None:
    norm, plain = AdapterNorm(3), nn.BatchNorm2d(3)
    several, single = torch.randn(2, 3, 1, 1), torch.randn(1, 3, 1, 1)
    assert torch.equal(norm(several), plain(several))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    assert torch.equal(norm(single), plain.eval()(single))
    assert norm.training
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


# --- which stages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTS)
def test_the_last_four_stages_are_compared_or_as_many_as_both_have(name: str) -> None:
    deep = Spec("deep", 5, 8, tuple((channels, 4, 3) for channels in range(2, 8)), 0, 0)
    for student, teacher, expected in (
        (deep, deep, (-4, -3, -2, -1)),
        (STUDENT, deep, (-4, -3, -2, -1)),
        (deep, SHORT, (-2, -1)),
    ):
        term = built(name, student, teacher)
        assert tuple(sorted(term.student_taps.stages)) == expected
        assert tuple(sorted(term.teacher_taps.stages)) == expected
        assert term.student_taps.embedding == term.teacher_taps.embedding == (name == "reviewkd")


@pytest.mark.parametrize("name", LISTS)
def test_stages_may_be_chosen_for_each_model_in_any_order(name: str) -> None:
    student, teacher = output(STUDENT), output(TEACHER, seed=1)
    term = built(name, stages=[-1, 0, 2], teacher_stages=[3, 1, -2])
    assert sorted(term.student_taps.stages) == [-1, 0, 2]
    assert sorted(term.teacher_taps.stages) == [-2, 1, 3]
    same = built(name, stages=[0, -2, 3], teacher_stages=[1, 2, -1])
    assert torch.equal(value_of(same, student, teacher), value_of(term, student, teacher))
    stages = stage_pairs(parse_options(name, {"stages": [-1, 0, 2]}), name, STUDENT, TEACHER)  # type: ignore[arg-type]
    assert [pair.student for pair in stages] == [0, 2, -1]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("at", {"stages": []}, ["distill.terms.at.stages=[]", "null"]),
        ("nst", {"stages": [-5]}, ["distill.terms.nst.stages=-5", "student has stages 0 to 3"]),
        ("vid", {"stages": [0], "teacher_stages": [4]}, ["distill.terms.vid.teacher_stages=4", "teacher"]),
        ("reviewkd", {"stages": [0, 1], "teacher_stages": [1]}, ["distill.terms.reviewkd.teacher_stages=[1]", "2"]),
        ("fsp", {"stages": [-1]}, ["distill.terms.fsp.stages=[-1]", "two or more"]),
        ("at", {"stages": 2}, ["distill.terms.at.stages=2", "list"]),
        ("at", {"stages": ["last"]}, ["distill.terms.at.stages", "list"]),
        ("at", {"form": "coed"}, ["distill.terms.at.form=coed", "'code'"]),
        ("at", {"power": 0}, ["distill.terms.at.power=0", "above 0"]),
        ("embedding", {"form": "l1"}, ["distill.terms.embedding.form=l1", "cosine, mse"]),
    ],
)
def test_a_wrong_option_is_one_helpful_line(name: str, options: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        built(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    for words in said:
        assert words in message


def test_fsp_of_a_single_common_stage_is_refused() -> None:
    single = Spec("single", 5, 8, ((4, 8, 6),), 0, 0)
    with pytest.raises(UserError, match=r"^distill\.terms\.fsp\.stages=\[-1\]: .* two or more$"):
        built("fsp", STUDENT, single)


# --- inside the objective -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_changes_little(name: str) -> None:
    """The cast of the inputs is all that is lost: the value is computed in float32, under autocast too."""
    student, teacher, batch = output(STUDENT), output(TEACHER, seed=1), batch_of()
    exact = objective({"ce": {}, name: {}}, STUDENT, TEACHER)(
        cast(student, torch.float32), cast(teacher, torch.float32), batch, 0
    )[1][name]
    double: Any = objective({"ce": {}, name: {}}, STUDENT, TEACHER).terms[name].double()
    assert exact.item() == pytest.approx(value_of(double, student, teacher).item(), rel=1e-4)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", torch.bfloat16):
            half = objective({"ce": {}, name: {}}, STUDENT, TEACHER)(
                cast(student, dtype), cast(teacher, dtype), batch, 0
            )[1][name]
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(exact.item(), rel=2e-2)


@pytest.mark.parametrize("name", TRAINED)
def test_trained_parts_get_gradients_and_move(name: str) -> None:
    whole, batch = objective({"ce": {}, name: {}}, STUDENT, TEACHER), batch_of()
    parameters = dict(whole.named_parameters())
    assert parameters
    assert {id(one) for one in whole.terms[name].parameters()} == {id(one) for one in parameters.values()}
    before = {key: value.detach().clone() for key, value in parameters.items()}
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    whole(cast(output(STUDENT), torch.float32), cast(output(TEACHER, seed=1), torch.float32), batch, 0)[0].backward()
    assert all(value.grad is not None and value.grad.any() for value in parameters.values())
    optimizer.step()
    assert all(not torch.equal(before[key], value) for key, value in parameters.items())
    if name == "vid":
        assert sum(key.startswith("terms.vid.rhos.") for key in parameters) == 4


@pytest.mark.parametrize("name", NAMES)
def test_training_on_the_term_alone_lowers_it(name: str) -> None:
    term = built(name)
    student, teacher = output(STUDENT, grad=True), output(TEACHER, seed=1)
    free = [*inputs_of(student), *term.parameters()]
    optimizer = torch.optim.Adam(free, lr=0.02)
    values = []
    for _ in range(20):
        value = value_of(term, student, teacher)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.97 * values[0]
    assert all(math.isfinite(value) for value in values)


# --- with real models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(("student", "teacher"), [("test_resnet", "test_vit"), ("test_vit", "test_resnet")])
@pytest.mark.parametrize("name", NAMES)
def test_terms_join_cnn_and_vit(name: str, student: str, teacher: str, size: int) -> None:
    learner, expert = fresh(student, size), fresh(teacher, size)
    model = Distillation(learner, objective({"ce": {}, name: {}}, learner.spec, expert.spec))
    model.train()
    frozen = FrozenTeacher(expert, "fp32", model.objective.teacher_taps)
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.arange(3), torch.arange(3))
    seen = frozen(batch)
    assert not any(maps.requires_grad for maps in seen.stages.values())
    assert not seen.logits.requires_grad
    _, values = model.objective(learner(images, model.objective.student_taps), seen, batch, 0)
    assert torch.isfinite(values[name])
    assert values[name] > 0
    seen_again = learner(images, model.objective.student_taps)
    term = model.objective.terms[name]
    term(seen_again, seen, batch, 1.0).backward()
    assert all(parameter.grad is None for parameter in expert.parameters())
    reached = [parameter for parameter in learner.parameters() if parameter.grad is not None and parameter.grad.any()]
    assert len(reached) > 5
    assert all(parameter.grad is not None for parameter in term.parameters())


@pytest.mark.fault("F8.6")
@pytest.mark.parametrize("name", ["at", "nst"])
def test_stages_of_one_position_are_said_and_refused_where_there_are_no_others(name: str) -> None:
    """As the last of ImageNet networks at 32 pixels: a unit vector of one number is 1, whatever the map."""
    shapes = ((4, 8, 8), (6, 4, 4), (8, 1, 1))
    student, teacher = (Spec(role, 5, 8, shapes, 0, 0) for role in ("student", "teacher"))
    (doubt,) = builders.built(name, student, teacher).doubts
    assert (
        f"stages [-1] are 1 x 1, so nothing is learned from them; choose distill.terms.{name}.stages=[-3, -2]" in doubt
    )
    assert builders.built(name, student, teacher, stages=[-3, -2]).doubts == ()
    with pytest.raises(
        UserError, match=rf"^distill\.terms\.{name}\.stages: .*stages \[-1\] are 1 x 1, so there is noth"
    ):
        builders.built(name, student, teacher, stages=[-1])
    larger = Spec("teacher", 5, 8, ((4, 8, 8), (6, 4, 4), (8, 2, 2)), 0, 0)
    assert builders.built(name, student, larger).doubts  # pooled to the size of the other

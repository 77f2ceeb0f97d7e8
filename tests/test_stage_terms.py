"""ab, ft, cat_kd, ofd: values and gradients against float64 NumPy references, what they ask of models and engine."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from distillcli.config.schema import ModelConfig
from distillcli.errors import Interrupted, UserError
from distillcli.models.backbone import Backbone, build, describe
from distillcli.runtime import seed_everything
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.terms.ab import boundary_loss
from distillcli.terms.cat_kd import class_map_distance
from distillcli.terms.ft import factor_distance
from distillcli.terms.ofd import partial_distance
from distillcli.types import Batch, Inputs, Output, Spec, Taps
from tests import builders
from tests.builders import batch_of, cast, changed, objective, output, parts, seeded, value_of
from tests.tiny import STEPS, Watch, digest, last, tiny, train

Array = NDArray[np.float64]

STUDENT = Spec("student", 5, 8, ((3, 8, 6), (4, 4, 3)), 0, 0)
TEACHER = Spec("teacher", 5, 11, ((2, 8, 6), (6, 4, 3)), 0, 0, endings=("", "act"))
PAIR = (STUDENT, TEACHER)
NAMES = ["ab", "ft", "cat_kd", "ofd"]
built = partial(builders.built, student=STUDENT, teacher=TEACHER)


def np_norm(maps: Array) -> Array:
    """Batch norm of fresh weights 1 and 0."""
    mean, variance = maps.mean(axis=(0, 2, 3), keepdims=True), maps.var(axis=(0, 2, 3), keepdims=True)
    return np.asarray((maps - mean) / np.sqrt(variance + 1e-5))


# --- ab -----------------------------------------------------------------------------------------------------------


def np_boundary(s: Array, t: Array, margin: float) -> float:
    """The two cases of losses.md 5.6, element by element."""
    total = 0.0
    for mine, its in zip(s.flatten(), t.flatten(), strict=True):
        if its <= 0 and mine > -margin:
            total += (mine + margin) ** 2
        elif its > 0 and mine <= margin:
            total += (mine - margin) ** 2
    return total / len(s)


@pytest.mark.parametrize("count", [1, 4])
def test_ab_is_its_formula(count: int) -> None:
    term, student, teacher = built("ab", margin=0.7), output(STUDENT, count), output(TEACHER, count, 1)
    expected = 0.0
    for layer, (stage, project) in enumerate(zip((-2, -1), term.projectors, strict=True)):
        weight = project[0].weight.detach().numpy()[:, :, 0, 0]
        guess = np_norm(np.einsum("oc,bchw->bohw", weight, student.stages[stage].numpy()))
        expected += 3 / 1000 * 2.0 ** (layer - 1) * np_boundary(guess, teacher.stages[stage].numpy(), 0.7)
    assert value_of(term, student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_the_gradient_of_ab_is_twice_what_is_missed() -> None:
    student, active = seeded(3, 2, 4, 3).requires_grad_(), seeded(3, 2, 4, 3, seed=1) > 0
    boundary_loss(student, active, 1.0).backward()
    sign = np.where(active.numpy(), 1.0, -1.0)
    expected = -2 * sign * np.maximum(0, 1 - sign * student.detach().numpy()) / 3
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-12)


def test_ab_is_zero_beyond_the_margin_and_not_where_student_is_teacher() -> None:
    teacher = seeded(3, 2, 4, 3)
    assert boundary_loss(2 * teacher.sign(), teacher > 0, 1.0).item() == 0
    assert boundary_loss(teacher, teacher > 0, 1.0).item() > 0.1


def test_only_the_sign_of_the_teacher_matters_to_ab_so_a_relu_before_changes_nothing() -> None:
    student, teacher = output(STUDENT), output(TEACHER, seed=1)
    expected = value_of(built("ab"), student, teacher)
    for how in (lambda maps: 1e3 * maps, lambda maps: maps.relu(), lambda maps: maps.sign()):
        changed = Output(teacher.logits, None, {stage: how(maps) for stage, maps in teacher.stages.items()})
        assert value_of(built("ab"), student, changed) == expected


def test_a_larger_map_of_the_teacher_is_pooled_by_majority() -> None:
    larger = Spec("teacher", 5, 11, ((6, 8, 6),), 0, 0)
    term = built("ab", teacher=larger, stages=[-1])
    maps = -torch.ones(6, 6, 8, 6).double()
    maps[:, :, ::2] = 5.0  # half of every cell of 2 x 2: no majority
    half = value_of(term, output(STUDENT), Output(torch.zeros(6, 5), None, {-1: maps}))
    none = value_of(term, output(STUDENT), Output(torch.zeros(6, 5), None, {-1: -maps.abs()}))
    assert half == none


# --- ft -----------------------------------------------------------------------------------------------------------


def np_convolve(maps: Array, weight: Array) -> Array:
    """3 x 3, with a border of zeros."""
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = maps.shape[2:]
    windows = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.einsum("obk,kcbhw->cohw", weight.reshape(*weight.shape[:2], 9), np.stack(windows))


def np_leaky(maps: Array) -> Array:
    return np.where(maps > 0, maps, 0.1 * maps)


def np_factor_distance(s: Array, t: Array) -> float:
    s, t = (side.reshape(len(side), -1) for side in (s, t))
    s, t = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (s, t))
    return float(np.abs(s - t).mean())


def test_ft_is_its_formula() -> None:
    term, student, teacher = built("ft"), output(STUDENT), output(TEACHER, seed=1)
    mine, its = student.stages[-1].numpy(), teacher.stages[-1].numpy()
    for layer in term.translator:
        if isinstance(layer, nn.Conv2d):
            mine = np_leaky(np_norm(np_convolve(mine, layer.weight.detach().numpy())))
    for layer in term.paraphraser.encoder:
        if isinstance(layer, nn.Conv2d):
            bias = layer.bias.detach().numpy()[:, None, None]
            its = np_leaky(np_convolve(its, layer.weight.detach().numpy()) + bias)
    assert mine.shape == its.shape == (6, 3, 4, 3)
    assert value_of(term, student, teacher).item() == pytest.approx(np_factor_distance(mine, its), rel=1e-9)


@pytest.mark.fault("F8.2")
def test_the_other_published_form_of_ft_compares_attention_maps_of_the_factors() -> None:
    student, teacher = seeded(3, 2, 4, 3), seeded(3, 2, 4, 3, seed=1)
    rows = []
    for maps in (student.numpy(), teacher.numpy()):
        energy = (maps**2).mean(axis=1).reshape(3, -1)
        rows.append(energy / np.linalg.norm(energy, axis=1, keepdims=True))
    expected = np.abs(rows[0] - rows[1]).mean()
    assert factor_distance(student, teacher, "attention").item() == pytest.approx(expected, rel=1e-10)
    term, (mine, its) = built("ft", form="attention"), (output(STUDENT), output(TEACHER, seed=1))
    factors = term.translator(mine.stages[-1]), term.paraphraser.encoder(its.stages[-1])
    assert value_of(term, mine, its) == factor_distance(*factors, "attention") != factor_distance(*factors)


@pytest.mark.fault("F8.6")
def test_terms_that_see_where_things_are_refuse_maps_of_one_position() -> None:
    points = [dataclasses.replace(spec, stage_shapes=((3, 2, 2), (4, 1, 1)), feature_shape=(4, 1, 1)) for spec in PAIR]
    with pytest.raises(UserError, match=r"distill\.terms\.ft\.stage=-1: .*one is 1 x 1; .*ft\.form=factor"):
        built("ft", student=points[0], teacher=points[1], form="attention")
    built("ft", student=points[0], teacher=points[1])
    built("ft", student=points[0], teacher=points[1], form="attention", stage=0)
    with pytest.raises(UserError, match=r"distill\.terms\.cat_kd\.normalize=true: .*one position"):
        built("cat_kd", student=points[0], teacher=TEACHER, normalize=True)
    with pytest.raises(UserError, match=r"distill\.terms\.cat_kd\.normalize=true: .*one position"):
        built("cat_kd", normalize=True, size=1)
    built("cat_kd", student=points[0], teacher=points[1])


def test_factors_are_compared_by_direction_alone() -> None:
    student, teacher = seeded(3, 2, 4, 3), seeded(3, 2, 4, 3, seed=1)
    value = factor_distance(student, teacher)
    torch.testing.assert_close(factor_distance(7 * student, 0.1 * teacher), value, rtol=1e-12, atol=0)
    assert factor_distance(student, 3 * student).item() < 1e-16
    assert torch.autograd.gradcheck(lambda maps: factor_distance(maps, teacher), [student.requires_grad_()])


def test_preparing_teaches_the_paraphraser_alone_and_freezes_it() -> None:
    term, teacher = built("ft"), output(TEACHER, seed=1)
    before = digest(term.translator.state_dict())
    maps = teacher.stages[-1]

    def error() -> float:
        return nn.functional.mse_loss(term.paraphraser(maps), maps).item()

    first = error()
    term.float().prepare([Output(teacher.logits, None, {-1: maps.float()})] * 200)
    term.double()
    assert error() < 0.8 * first
    assert digest(term.translator.state_dict()) == before
    assert not any(parameter.requires_grad for parameter in term.paraphraser.parameters())
    value_of(term, output(STUDENT), teacher).backward()
    assert all(parameter.grad is None for parameter in term.paraphraser.parameters())
    assert all(parameter.grad is not None for parameter in term.translator.parameters())


@pytest.mark.parametrize(
    ("overrides", "epochs"), [(["distill=ft", "distill.terms.ft.prepare_epochs=2"], 2), (["distill=ofd"], 1)]
)
def test_a_term_is_prepared_once_and_stays_so_over_an_interruption(
    overrides: list[str], epochs: int, tmp_path: Path
) -> None:
    config = tiny(*overrides)
    asked: list[int] = []

    def counting(teacher: Any) -> Any:
        def answer(batch: Batch) -> Output:
            asked.append(len(batch.index))
            said: Output = teacher(batch)
            return said

        answer.repaired = 0  # type: ignore[attr-defined]
        return answer

    train(config, tmp_path / "whole", swap=counting)
    assert len(asked) == (epochs + 2) * STEPS
    with pytest.raises(Interrupted):
        train(config, tmp_path / "broken", Watch(stop_after=3))
    asked.clear()
    train(config, tmp_path / "broken", swap=counting)
    assert len(asked) == 2 * STEPS - 3
    for part in ("objective", "student"):
        assert digest(last(tmp_path / "broken")[part]) == digest(last(tmp_path / "whole")[part])


def test_a_stop_while_preparing_is_heard(tmp_path: Path) -> None:
    watch = Watch()
    watch.signal.exit_code = 130
    with pytest.raises(Interrupted):
        train(tiny("distill=ft"), tmp_path / "run", watch)
    assert watch.steps == 0


# --- ofd ----------------------------------------------------------------------------------------------------------


def np_partial(s: Array, t: Array, margins: Array) -> tuple[float, Array]:
    """The three cases of the paper, element by element: value, and gradient with respect to ``s``."""
    total, slope = 0.0, np.zeros_like(s)
    for place in np.ndindex(s.shape):
        cut = max(t[place], margins[place[1]])
        if t[place] > 0:
            difference = s[place] - t[place]
        elif s[place] > cut:
            difference = s[place] - cut
        else:
            difference = 0.0
        total += difference**2
        slope[place] = 2 * difference
    return total / len(s), slope / len(s)


@pytest.mark.parametrize("count", [1, 4])
def test_ofd_is_its_formula(count: int) -> None:
    term, student, teacher = built("ofd"), output(STUDENT, count), output(TEACHER, count, 1)
    term.margins.copy_(-seeded(2 + 6, seed=5).abs())
    expected = 0.0
    for layer, (stage, project) in enumerate(zip((-2, -1), term.projectors, strict=True)):
        weight = project[0].weight.detach().numpy()[:, :, 0, 0]
        guess = np_norm(np.einsum("oc,bchw->bohw", weight, student.stages[stage].numpy()))
        margins = term.margins.numpy()[slice(0, 2) if layer == 0 else slice(2, 8)]
        value = np_partial(guess, teacher.preactivations[stage].numpy(), margins)[0]
        expected += 2.0 ** -(1 - layer) * value
    assert value_of(term, student, teacher).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("scale", [0.1, 1.0, 1e4])
def test_ofd_has_the_three_cases_of_the_paper_and_their_gradients(scale: float) -> None:
    student, teacher = (scale * seeded(3, 4, 4, 3, seed=seed) for seed in (0, 1))
    margins = torch.tensor([-0.5, -2.0, -1e-3, 0.0]).double()
    cut = torch.maximum(teacher, margins[:, None, None])
    cases = [teacher > 0, (teacher <= 0) & (student > cut), (teacher <= 0) & (student <= cut)]
    assert all(case.any() for case in cases)
    student.requires_grad_()
    partial_distance(student, teacher, margins).backward()
    value, slope = np_partial(student.detach().numpy(), teacher.numpy(), margins.numpy())
    assert partial_distance(student, teacher, margins).item() == pytest.approx(value, rel=1e-12)
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), slope, rtol=1e-12, atol=0)
    assert not student.grad[cases[2]].any()
    assert student.grad[~cases[2]].all()


def test_ofd_is_zero_and_least_where_student_equals_teacher_and_where_both_are_cut_off() -> None:
    teacher, margins = seeded(3, 4, 4, 3), torch.tensor([-0.5, -2.0, -1e-3, 0.0]).double()
    assert partial_distance(teacher, teacher, margins).item() == 0
    for seed in range(10):
        assert partial_distance(teacher + 1e-3 * seeded(3, 4, 4, 3, seed=10 + seed), teacher, margins).item() > 0
    lower = torch.where(teacher > 0, teacher, teacher.clamp(max=-2) - 5)
    assert partial_distance(lower, teacher, margins).item() == 0


def test_a_channel_that_was_never_negative_is_compared_after_its_activation() -> None:
    student, teacher = seeded(3, 2, 4, 3), seeded(3, 2, 4, 3, seed=1)
    value = partial_distance(student, teacher, torch.zeros(2).double())
    torch.testing.assert_close(value, partial_distance(student, teacher.relu(), torch.zeros(2).double()))


def test_measured_margins_are_the_expected_negative_responses() -> None:
    """Of channels as a batch norm makes them, normal with mean beta and deviation |gamma|; the closed form of 5.7."""
    beta = np.array([0.0, -0.5, 0.8, -2.0, 1.0, 0.0, 0.3, 2.0])
    gamma = np.array([1.0, 2.0, 1.0, -0.5, 1.5, 3.0, -0.7, 1.0])
    expected = beta - abs(gamma) * stats.norm.pdf(beta / abs(gamma)) / stats.norm.cdf(-beta / abs(gamma))
    quantiles = stats.norm.ppf((np.arange(4800) + 0.5) / 4800)
    responses = torch.tensor(beta[:, None] + gamma[:, None] * quantiles).float()
    answers = []
    for part in responses.split(480, dim=1):
        maps = {-2: part[:2].reshape(2, -1, 8, 6).transpose(0, 1), -1: part[2:].reshape(6, -1, 4, 3).transpose(0, 1)}
        answers.append(Output(torch.zeros(0, 5), None, {}, preactivations=maps))
    term = built("ofd").float()
    term.prepare(answers)
    assert (term.margins < 0).all()
    np.testing.assert_allclose(term.margins.numpy(), expected, rtol=0.002)
    shifted = {-2: torch.full((2, 2, 8, 6), 3.0), -1: torch.full((2, 6, 4, 3), -3.0)}
    term.prepare([Output(torch.zeros(2, 5), None, {}, preactivations=shifted)])
    assert term.margins.tolist() == [0.0] * 2 + [-3.0] * 6


@pytest.mark.parametrize(("student", "size"), [("test_efficientnet", 64), ("test_vit", 64), ("test_vit", 32)])
def test_ofd_joins_a_convolutional_teacher_with_students_of_any_size(student: str, size: int) -> None:
    learner, expert = model(student, size), model("resnet18", 64)
    whole = objective({"ofd": {}}, learner.spec, expert.spec)
    teacher = FrozenTeacher(expert, "fp32", whole.teacher_taps)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    batch = Batch(images, torch.arange(2), torch.arange(2))
    whole.prepared_terms["ofd"].prepare([teacher(batch)])
    seen = learner(images[:, :, :size, :size], whole.student_taps)
    whole(seen, teacher(batch), batch, 0.0)[0].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in whole.parameters())


@pytest.mark.parametrize("name", ["test_vit", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_a_teacher_without_stages_before_an_activation_is_refused_in_one_line(name: str) -> None:
    said = rf"^distill\.terms\.ofd: stage -\d of {name} ends neither in an activation .*ResNet$"
    teacher = describe(ModelConfig(name), Inputs(5, 224), "teacher")
    with pytest.raises(UserError, match=said):
        objective({"ofd": {}}, STUDENT, teacher)


# --- cat_kd -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("count", "classes"), [(4, 5), (1, 2)])
def test_cat_kd_is_its_formula(normalize: bool, count: int, classes: int) -> None:
    student, teacher = seeded(count, classes, 4, 6), seeded(count, classes, 2, 2, seed=1)
    pooled = student.numpy().reshape(count, classes, 2, 2, 2, 3).mean(axis=(3, 5))
    mine, its = (maps.reshape(count, classes, 4) for maps in (pooled, teacher.numpy()))
    if normalize:
        mine, its = (maps / np.linalg.norm(maps, axis=2, keepdims=True) for maps in (mine, its))
    expected = ((mine - its) ** 2).mean()
    assert class_map_distance(student, teacher, 2, normalize).item() == pytest.approx(expected, rel=1e-12)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda maps: class_map_distance(maps, teacher, 2, normalize), [student])


def test_normalised_class_maps_ignore_the_scale_of_each_class() -> None:
    student, teacher = seeded(3, 5, 4, 4), seeded(3, 5, 4, 4, seed=1)
    scale = torch.rand(1, 5, 1, 1, generator=torch.Generator().manual_seed(0)).double() + 0.5
    value = class_map_distance(student, teacher, 2, True)
    torch.testing.assert_close(class_map_distance(scale * student, teacher, 2, True), value, rtol=1e-12, atol=0)
    assert class_map_distance(student, student, 2, False).item() == 0


def model(name: str, size: int = 64) -> Backbone:
    seed_everything(0)
    return build(ModelConfig(name=name), Inputs(7, size), "student")


@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "regnetx_002", "test_efficientnet", "dla34"])
def test_the_mean_of_the_class_maps_is_the_logits(name: str) -> None:
    backbone = model(name)
    backbone.check_class_maps()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for mode in (True, False):
        seen = backbone.train(mode)(images, Taps(class_maps=True))
        assert seen.class_maps is not None
        assert seen.class_maps.shape[:2] == (2, 7)
        torch.testing.assert_close(seen.class_maps.mean(dim=(2, 3)), seen.logits, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["mobilenetv3_small_050", "mobilenetv4_conv_small", "test_vit", "convnext_atto", "swin_tiny_patch4_window7_224"],
)
def test_a_model_with_another_head_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=rf"^distill\.terms\.cat_kd: {name} has no class maps.*ResNet$"):
        model(name).check_class_maps()


# --- all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_extreme_maps_are_finite(name: str, count: int, scale: float) -> None:
    term = built(name).float()
    student, teacher = (output(spec, count, 1, scale).float() for spec in (STUDENT, TEACHER))
    student = changed(student, lambda tensor: tensor.requires_grad_())
    value = value_of(term, student, teacher)
    value.backward()
    assert value.isfinite()
    slopes = [tensor.grad for tensor in parts(student) if tensor.grad is not None]
    assert slopes
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_autocast_is_the_value_in_float32(name: str, dtype: torch.dtype) -> None:
    def value(to: torch.dtype) -> Tensor:
        whole = objective({name: {}}, STUDENT, TEACHER)
        sides = [cast(cast(output(spec, seed=spec.embedding_width), dtype), to) for spec in (STUDENT, TEACHER)]
        return whole(*sides, batch_of(), 0.0)[0]

    with torch.autocast("cpu", torch.bfloat16):
        half = value(dtype)
    assert half.dtype == torch.float32
    assert half == value(torch.float32)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ab", {"margin": 0}, "distill.terms.ab.margin=0"),
        ("ab", {"stages": [5]}, "distill.terms.ab.stages=5"),
        ("ft", {"rate": 0}, "distill.terms.ft.rate=0"),
        ("ft", {"prepare_epochs": 0}, "distill.terms.ft.prepare_epochs=0"),
        ("ft", {"stage": 7}, "distill.terms.ft.stage=7"),
        ("cat_kd", {"size": 0}, "distill.terms.cat_kd.size=0"),
        ("ofd", {"stages": [5]}, "distill.terms.ofd.stages=5"),
        ("ofd", {"stages": []}, "distill.terms.ofd.stages=[]"),
    ],
)
def test_a_wrong_option_is_one_line(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        built(name, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)

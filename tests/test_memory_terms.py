"""The terms with a memory: values and gradients against float64 NumPy references, what they remember, and resuming."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillcli.config.terms import parse_options
from distillcli.errors import Interrupted, UserError
from distillcli.runtime import seed_everything
from distillcli.terms.base import Setting
from distillcli.terms.memory import MEMORY_TERMS, OtherClasses, contrast, queue_divergence, queue_length
from distillcli.types import Batch, Output, Spec
from tests import builders
from tests.builders import batch_of, cast, objective, output, seeded
from tests.tiny import Watch, digest, last, tiny, train

Array = NDArray[np.float64]

STUDENT = Spec("student", 5, 8, ((4, 8, 6),), 0, 0)
TEACHER = Spec("teacher", 5, 11, ((4, 9, 9),), 0, 0)
OPTIONS: dict[str, dict[str, Any]] = {
    "crd": {"negatives": 12, "width": 6, "tau": 0.3},
    "queue_kl": {"size": 10, "tau": 0.2},
}
IMAGES = 24


def built(name: str, images: int = IMAGES, **options: Any) -> Any:
    return builders.built(name, STUDENT, TEACHER, images, **{**OPTIONS[name], **options})


def step(term: Any, student: Output, teacher: Output, batch: Batch, seed: int = 0) -> Tensor:
    seed_everything(seed)
    value: Tensor = term(student, teacher, batch, 4.0)
    return value


def np_unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def np_linear(layer: Any, rows: Array) -> Array:
    return np.asarray(rows @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())


# --- crd ----------------------------------------------------------------------------------------------------------


def np_crd(term: Any, memories: Array, student: Array, teacher: Array, rows: NDArray[np.int64]) -> tuple[float, Array]:
    """Value and scales Z of a first batch, by probabilities as in the paper. ``rows``: the positive, then negatives."""
    count, drawn = memories.shape[1], rows.shape[1] - 1
    vectors = [np_unit(np_linear(term.maps[0], student)), np_unit(np_linear(term.maps[1], teacher))]
    value, scales = 0.0, []
    for side in (0, 1):
        exponential = np.exp(np.einsum("bd,bmd->bm", vectors[side], memories[1 - side][rows]) / term.tau)
        scales.append(exponential.mean() * count)
        p = exponential / scales[-1]
        c = drawn / count + 1e-7
        hit = np.log(p[:, 0] / (p[:, 0] + c))
        missed = np.log((drawn / count) / (p[:, 1:] + c)).sum(axis=1)
        value -= (hit + missed).mean()
    return value, np.array(scales)


@pytest.mark.parametrize("count", [1, 4])
def test_crd_is_its_formula_and_moves_its_memory(count: int) -> None:
    term, student, teacher, batch = built("crd"), output(STUDENT, count), output(TEACHER, count, 1), batch_of(count, 3)
    memories = term.memories.numpy().copy()
    seed_everything(0)
    rows = torch.cat([batch.index[:, None], term.others(batch.index, 12)], dim=1).numpy()
    assert student.embedding is not None
    assert teacher.embedding is not None
    expected, scales = np_crd(term, memories, student.embedding.numpy(), teacher.embedding.numpy(), rows)
    assert step(term, student, teacher, batch).item() == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(term.log_scales.exp().numpy(), scales, rtol=1e-10)
    seen = batch.index.numpy()
    for side, (layer, embedding) in enumerate(zip(term.maps, (student.embedding, teacher.embedding), strict=True)):
        moved = np_unit(0.5 * memories[side][seen] + 0.5 * np_unit(np_linear(layer, embedding.numpy())))
        np.testing.assert_allclose(term.memories[side][batch.index].numpy(), moved, rtol=1e-10)
        untouched = np.setdiff1d(np.arange(IMAGES), seen)
        np.testing.assert_array_equal(term.memories[side].numpy()[untouched], memories[side][untouched])
    np.testing.assert_allclose(term.memories[:, batch.index].norm(dim=2).numpy(), 1.0, rtol=1e-12)


def test_the_gradient_of_crd_agrees_with_finite_differences() -> None:
    teacher, batch = output(TEACHER, seed=1), batch_of()

    def value(embedding: Tensor) -> Tensor:
        return step(built("crd"), Output(torch.zeros(6, 5), embedding, {}), teacher, batch)

    # The scale follows the first batch; a second one meets a constant.
    def second(embedding: Tensor) -> Tensor:
        term = built("crd")
        step(term, output(STUDENT, seed=5), teacher, batch)
        return step(term, Output(torch.zeros(6, 5), embedding, {}), teacher, batch)

    assert torch.autograd.gradcheck(second, [seeded(6, 8).requires_grad_()])
    embedding = seeded(6, 8).requires_grad_()
    assert torch.autograd.grad(value(embedding), embedding)[0].abs().max() > 1e-3


@pytest.mark.parametrize(("negatives", "images"), [(16384, 50000), (16384, 100), (5, 7)])
def test_crd_of_equal_similarities_does_not_depend_on_the_number_of_images(negatives: int, images: int) -> None:
    """losses.md 6.5: P is then 1 / N, and the value log(1 + M) + M log(1 + 1 / M) on each side."""
    value = contrast(
        torch.zeros(3).double(), torch.zeros(3, negatives).double(), torch.tensor(math.log(images)), images
    )
    expected = math.log(1 + negatives) + negatives * math.log(1 + 1 / negatives)
    assert value.item() == pytest.approx(expected, rel=1e-3)  # 1e-7 beside M / N
    if negatives == 16384:
        assert 2 * expected == pytest.approx(21.408, abs=1e-3)


def test_contrast_is_finite_for_extreme_similarities() -> None:
    positive = torch.tensor([1e4, -1e4]).requires_grad_()
    negative = torch.tensor([[1e4, -1e4], [-1e4, 1e4]]).requires_grad_()
    value = contrast(positive, negative, torch.tensor(20.0), 100)
    value.backward()
    assert value.isfinite()
    assert positive.grad is not None
    assert negative.grad is not None
    assert positive.grad.isfinite().all()
    assert negative.grad.isfinite().all()


def test_negatives_are_of_other_classes_and_equally_likely() -> None:
    labels = np.array([2, 0, 1, 1, 0, 2, 1, 0, 1])
    seed_everything(0)
    drawn = OtherClasses(labels)(torch.arange(9), 40000).numpy()
    for image, rows in enumerate(drawn):
        shares = np.bincount(rows, minlength=9) / len(rows)
        allowed = labels != labels[image]
        assert not shares[~allowed].any()
        np.testing.assert_allclose(shares[allowed], 1 / allowed.sum(), atol=0.012)  # four standard deviations


def test_an_image_of_unknown_class_is_contrasted_with_all_others() -> None:
    seed_everything(0)
    drawn = OtherClasses(np.array([-1, 0, -1, 1, 0]))(torch.arange(5), 500).numpy()
    assert [set(rows) for rows in drawn] == [{1, 2, 3, 4}, {0, 2, 3}, {0, 1, 3, 4}, {0, 1, 2, 4}, {0, 2, 3}]


def test_the_same_seed_draws_the_same_negatives_and_another_others() -> None:
    values = [step(built("crd"), output(STUDENT), output(TEACHER, seed=1), batch_of(), seed) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_the_scale_of_crd_stays_that_of_the_first_batch() -> None:
    term = built("crd")
    assert term.log_scales.isnan().all()
    step(term, output(STUDENT), output(TEACHER, seed=1), batch_of())
    first = term.log_scales.clone()
    assert first.isfinite().all()
    step(term, output(STUDENT, seed=2), output(TEACHER, seed=3), batch_of(first=8))
    assert torch.equal(term.log_scales, first)


# --- queue_kl -----------------------------------------------------------------------------------------------------


def np_queue_kl(student: Array, teacher: Array, queue: Array, tau: float) -> float:
    def log_softmax(z: Array) -> Array:
        shifted = z - z.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

    log_s, log_t = (log_softmax(side @ queue.T / tau) for side in (student, teacher))
    return float((np.exp(log_t) * (log_t - log_s)).sum(axis=1).mean())


def test_queue_kl_is_its_formula_first_in_first_out() -> None:
    """Three batches of 4 in a queue of 10: filled with 4, 8, then 10 rows, the oldest two gone."""
    term, queue = built("queue_kl"), np.empty((0, 11))
    for seed in range(3):
        student, teacher = output(STUDENT, 4, seed), output(TEACHER, 4, 10 + seed)
        assert student.embedding is not None
        assert teacher.embedding is not None
        mine, its = np_unit(np_linear(term.map, student.embedding.numpy())), np_unit(teacher.embedding.numpy())
        queue = np.concatenate([its, queue])[:10]
        expected = np_queue_kl(mine, its, queue, 0.2)
        assert step(term, student, teacher, batch_of(4)).item() == pytest.approx(expected, rel=1e-10)
        assert term.filled == len(queue)
        np.testing.assert_allclose(term.queue.numpy()[: len(queue)], queue, rtol=1e-12)


def test_a_queue_shorter_than_the_batch_keeps_its_first_rows() -> None:
    term, teacher = built("queue_kl", size=3), output(TEACHER, 8, seed=1)
    step(term, output(STUDENT, 8), teacher, batch_of(8))
    assert teacher.embedding is not None
    np.testing.assert_allclose(term.queue.numpy(), np_unit(teacher.embedding.numpy())[:3], rtol=1e-12)


def test_the_gradient_of_queue_kl_agrees_with_finite_differences() -> None:
    teacher = output(TEACHER, seed=1)

    def value(embedding: Tensor) -> Tensor:
        term = built("queue_kl")
        step(term, output(STUDENT, seed=5), output(TEACHER, seed=6), batch_of())
        return step(term, Output(torch.zeros(6, 5), embedding, {}), teacher, batch_of())

    assert torch.autograd.gradcheck(value, [seeded(6, 8).requires_grad_()])


def test_queue_kl_is_zero_and_least_where_both_are_the_same() -> None:
    vectors, queue = torch.nn.functional.normalize(seeded(4, 6)), torch.nn.functional.normalize(seeded(9, 6, seed=1))
    filled = torch.tensor(7)
    assert queue_divergence(vectors, vectors, queue, filled, 0.07).item() == 0
    for seed in range(5):
        other = torch.nn.functional.normalize(vectors + 1e-2 * seeded(4, 6, seed=2 + seed))
        assert queue_divergence(other, vectors, queue, filled, 0.07).item() > 0


@pytest.mark.parametrize(("images", "length"), [(50, 16), (20480, 8192), (1281167, 8192), (3, 1), (1000, 256)])
def test_the_length_of_a_queue_grows_with_the_data(images: int, length: int) -> None:
    assert queue_length(images) == length < images


# --- both ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_extreme_embeddings_are_finite(name: str, count: int, scale: float) -> None:
    term = built(name).float()
    embedding = (scale * seeded(count, 8)).float().requires_grad_()
    value = step(term, Output(torch.zeros(count, 5), embedding, {}), output(TEACHER, count).float(), batch_of(count))
    value.backward()
    assert value.isfinite()
    assert embedding.grad is not None
    assert embedding.grad.isfinite().all()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_autocast_is_the_value_in_float32(name: str, dtype: torch.dtype) -> None:
    def value(to: torch.dtype) -> Tensor:
        whole = objective({name: OPTIONS[name]}, STUDENT, TEACHER, images=IMAGES)
        sides = [cast(cast(output(spec, seed=spec.embedding_width), dtype), to) for spec in (STUDENT, TEACHER)]
        return whole(*sides, batch_of(), 0.0)[0]

    with torch.autocast("cpu", torch.bfloat16):
        half = value(dtype)
    assert half.dtype == torch.float32
    assert half == value(torch.float32)


@pytest.mark.parametrize("name", OPTIONS)
def test_neither_memory_nor_teacher_gets_a_gradient(name: str) -> None:
    term, student, teacher = built(name), output(STUDENT), output(TEACHER, seed=1)
    assert student.embedding is not None
    student.embedding.requires_grad_()
    for _ in range(2):
        step(term, student, teacher, batch_of()).backward()
    assert not any(buffer.requires_grad for buffer in term.buffers())
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in term.parameters() if parameter.ndim > 1
    )


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("crd", {"negatives": 0}, "distill.terms.crd.negatives=0"),
        ("crd", {"tau": 0}, "distill.terms.crd.tau=0"),
        ("crd", {"momentum": 1}, "distill.terms.crd.momentum=1"),
        ("queue_kl", {"size": 24}, "distill.terms.queue_kl.size=24"),
        ("queue_kl", {"size": 0}, "distill.terms.queue_kl.size=0"),
        ("queue_kl", {"tau": 0}, "distill.terms.queue_kl.tau=0"),
    ],
)
def test_a_wrong_option_is_one_line(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        built(name, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mixing", ["augment.mixup=0.2", "augment.cutmix=1"])
def test_crd_is_refused_with_mixed_images_before_anything_is_opened(mixing: str) -> None:
    with pytest.raises(UserError, match=r"^distill\.terms\.crd: it cannot be used with mixup or CutMix"):
        tiny("distill=crd", mixing)
    tiny("distill=queue_kl", mixing)


def test_crd_refuses_data_of_one_class() -> None:
    with pytest.raises(UserError, match="one class"):
        MEMORY_TERMS["crd"](parse_options("crd", {}), Setting(STUDENT, TEACHER, np.zeros(9, np.int64), 1))


@pytest.mark.parametrize("name", OPTIONS)
def test_an_interrupted_run_ends_as_an_unbroken_one(name: str, tmp_path: Path) -> None:
    config = tiny(f"distill={name}")
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "broken", Watch(stop_after=3))
    train(config, tmp_path / "broken")
    assert digest(last(tmp_path / "broken")["objective"]) == digest(last(tmp_path / "whole")["objective"])
    assert digest(last(tmp_path / "broken")["student"]) == digest(last(tmp_path / "whole")["student"])


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"crd remembers .*train in one process"):
        tiny("distill=crd")

"""Numbers that are not finite, or out of all proportion: who made them, when, on which images; and nothing is saved."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Distill
from tiny import STEPS, Watch, files, last, tiny, train
from torch import Tensor

from distillcli.config import limits
from distillcli.errors import NumericError
from distillcli.models.weights import load_tensors
from distillcli.runs.result import read_result
from distillcli.runtime import Runtime
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.training import engine, evaluation
from distillcli.training.step import StepResult, Update
from distillcli.training.totals import Totals
from distillcli.types import Batch, Output
from distillcli.views.showing import Showing

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")

CPU = torch.device("cpu")


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
    """One weight of the student is ``value`` after optimizer step ``step``: too late for the loss to show it."""
    original, taken = Update.apply, []

    def broken(self: Update, model: Any) -> Tensor:
        norm = original(self, model)
        taken.append(1)
        if len(taken) == step:
            with torch.no_grad():
                next(model.parameters())[0, 0, 0, 0] = value
        return norm

    monkeypatch.setattr(Update, "apply", broken)


# --- weights and evaluation ----------------------------------------------------------------------------------------


@pytest.mark.fault("F1.7")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("override", ["trainer.ema=null", "trainer.ema=0.5"])
def test_weights_that_are_not_finite_are_never_saved(
    value: float, override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the last step of an epoch spoils them, no loss has seen them yet."""
    spoil(monkeypatch, 2 * STEPS, value)
    after_first: dict[str, str] = {}
    watch = Watch(after_epoch=lambda: after_first.update(files(tmp_path)))
    with pytest.raises(NumericError, match=r"^student: the weights are not finite after step 8 \(optimizer\.lr"):
        train(tiny(override), tmp_path, watch)
    assert files(tmp_path) == after_first
    assert last(tmp_path)["step"] == STEPS


@pytest.mark.fault("F1.7")
def test_a_checkpoint_within_an_epoch_has_finite_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 2, math.nan)
    with pytest.raises(NumericError, match="the weights are not finite after step 2 "):
        train(tiny("trainer.checkpoint_minutes=1e-9"), tmp_path)
    assert load_tensors(tmp_path / "checkpoints" / "last.pt")["step"] == 1


@pytest.mark.fault("F1.7")
def test_outputs_that_overflow_are_no_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite weights of 1e30 can have outputs that are not."""
    monkeypatch.setattr(engine, "evaluate", lambda *_, **__: {"top1": 10.0, "nll": math.nan})
    with pytest.raises(NumericError, match=r"student: its outputs are not finite after epoch 1 \(nll; "):
        train(tiny(), tmp_path)
    assert not (tmp_path / "checkpoints" / "best.pt").exists()


def test_one_image_without_a_finite_output_shows_in_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean over the images that are left would hide it."""
    original = evaluation.functional.cross_entropy

    def broken(logits: Tensor, *rest: Any, **options: Any) -> Tensor:
        value: Tensor = original(logits, *rest, **options)
        return value.index_fill(0, torch.tensor([0]), math.nan) if value.ndim and len(value) else value

    monkeypatch.setattr(evaluation.functional, "cross_entropy", broken)
    with pytest.raises(NumericError, match="its outputs are not finite after epoch 1"):
        train(tiny("distill=none", "distill.terms.ce.smoothing=0.1"), tmp_path)


@pytest.mark.fault("F1.7")
@pytest.mark.parametrize("rate", ["1e30", "1e308"])
def test_an_absurd_rate_ends_in_one_line_and_leaves_no_student(
    rate: str, distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate beyond any use is refused; here it stands for whatever else makes weights infinite."""
    monkeypatch.delitem(limits.HIGHEST, "optimizer.lr")
    answer = distill(
        *("train", "experiment=smoke", "distill=none", "student.name=test_efficientnet", "trainer.epochs=1"),
        *("trainer.batch_size=128", "baseline=false", "schedule=constant", f"optimizer.lr={rate}", "out=run"),
    )
    assert answer.code == 1
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert f"optimizer.lr={float(rate)}" in line
    assert "Traceback" not in answer.stderr
    result = read_result(tmp_path / "run")
    assert result is not None
    assert result.status == "failed"
    assert not (tmp_path / "run" / "student").exists()
    assert not (tmp_path / "run" / "checkpoints" / "best.pt").exists()


# --- which images, and whose fault ---------------------------------------------------------------------------------


def break_loss(monkeypatch: pytest.MonkeyPatch, step: int) -> list[list[int]]:
    """The loss of ``step`` is not finite; returns the images of every step."""
    original, images = engine.train_step, list[list[int]]()

    def broken(parts: list[Batch], *rest: Any) -> StepResult:
        result = original(parts, *rest)
        images.append([number for part in parts for number in part.index.tolist()])
        return StepResult(result.loss * (math.nan if len(images) == step else 1), result.values, result.norm)

    monkeypatch.setattr(engine, "train_step", broken)
    return images


@pytest.mark.fault("R30")
@pytest.mark.parametrize("override", ["trainer.accumulate=1", "trainer.accumulate=2"])
@pytest.mark.parametrize("step", [1, 6])
def test_the_images_of_the_first_bad_step_are_named(
    step: int, override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = break_loss(monkeypatch, step)
    with pytest.raises(NumericError, match=f"at step {step} "):
        train(tiny(override), tmp_path)
    found = json.loads((tmp_path / "nan_batch.json").read_text("utf-8"))
    assert (found["step"], found["epoch"]) == (step, 1 + step // STEPS)
    assert found["images"] == images[step - 1]
    assert found["views"] == [found["epoch"]] * 16


@pytest.mark.fault("R17")
def test_a_teacher_that_is_not_finite_is_not_taken_for_the_student(tmp_path: Path) -> None:
    """Its outputs for views may overflow where those for plain images, which were measured, did not."""

    class Broken:
        def __init__(self, teacher: FrozenTeacher) -> None:
            self.live = teacher

        def __call__(self, batch: Batch) -> Output:
            output = self.live(batch)
            return Output(output.logits / torch.zeros_like(output.logits), output.embedding, output.stages)

    def swapped(teacher: FrozenTeacher | None) -> Broken:
        assert teacher is not None
        return Broken(teacher)

    with pytest.raises(NumericError, match=r"^teacher, not student: its outputs were not finite at step 1 .*teacher"):
        train(tiny(), tmp_path, swap=swapped)


def test_all_ranks_together_see_the_batch_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: list[Showing] = []
    original = Showing.epoch

    def keep(self: Showing, *rest: int) -> Iterator[list[Batch]]:
        shown.append(self)
        return original(self, *rest)

    monkeypatch.setattr(Showing, "epoch", keep)
    train(tiny(), tmp_path)
    alone = shown[0]
    ranks = [replace(alone, loader=replace(alone.loader, runtime=Runtime(CPU, rank, 2))) for rank in range(2)]
    shares = [[part for parts in list(rank.epoch(2))[1:2] for part in parts] for rank in ranks]
    together = sorted(number for share in shares for part in share for number in part.index.tolist())
    for showing in ranks:
        assert sorted(showing.step_rows(STEPS + 2).index.tolist()) == together


# --- fp16 ----------------------------------------------------------------------------------------------------------


def result(loss: float, norm: float) -> StepResult:
    return StepResult(torch.tensor(loss), {"ce": torch.tensor(loss)}, torch.tensor(norm))


@pytest.mark.fault("R31")
def test_steps_that_the_scaler_skips_are_counted_and_are_no_failure() -> None:
    totals = Totals(CPU, skips_overflow=True)
    for step, norm in enumerate([math.inf, 2.0, math.nan, 4.0], 1):
        totals.add(step, result(1.0, norm))
    assert totals.first_bad.item() == math.inf
    assert totals.means(Runtime(CPU)) == {"loss": 1.0, "loss/ce": 1.0, "grad_norm": 3.0, "skipped_steps": 2.0}


@pytest.mark.fault("R31")
def test_a_loss_that_is_not_finite_is_a_failure_under_a_scaler_too() -> None:
    totals = Totals(CPU, skips_overflow=True)
    totals.add(7, result(math.nan, math.nan))
    assert totals.first_bad.item() == 7


@pytest.mark.fault("R31")
def test_gradients_that_overflow_at_every_scale_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scaler on the CPU stands for that of a GPU."""
    original = Update.of

    def with_scaler(*arguments: Any) -> Update:
        return replace(original(*arguments), scaler=torch.amp.GradScaler("cpu", init_scale=2.0**-15))

    monkeypatch.setattr(Update, "of", staticmethod(with_scaler))
    watch = Watch()
    train(tiny("trainer.epochs=1"), tmp_path / "fine", watch)
    assert watch.rows[0][0]["skipped_steps"] == 0
    overflow = Update.backward

    def overflowing(self: Update, loss: Tensor) -> None:
        overflow(self, loss * math.inf if loss.requires_grad else loss)

    monkeypatch.setattr(Update, "backward", overflowing)
    with pytest.raises(NumericError, match=r"gradients overflow fp16 at every scale .*4 of 4 steps were not taken"):
        train(tiny("trainer.epochs=1"), tmp_path / "over")


# --- the first gradient --------------------------------------------------------------------------------------------


@pytest.mark.fault("F1.10")
@pytest.mark.parametrize(("weight", "clip", "warned"), [(1, "null", False), (1e7, "null", True), (1e7, "1", False)])
def test_a_first_gradient_out_of_all_proportion_is_said(weight: float, clip: str, warned: bool, tmp_path: Path) -> None:
    watch = Watch()
    train(tiny(f"distill.terms.kl.weight={weight}", f"trainer.clip_grad={clip}"), tmp_path, watch)
    found = [line for line in watch.warnings if "first gradient" in line]
    assert bool(found) == warned
    assert all("kl(T=4)" in line and "trainer.clip_grad=1" in line for line in found)

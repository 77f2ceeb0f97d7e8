"""What training promises: frozen teachers, keyed randomness, exact averages, bounded gradients, no silent NaN."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import STEPS, Watch, digest, files, last, tiny, train
from torch import Tensor

from distillcli.config.schema import TrainConfig
from distillcli.distillation.recipes import control_recipe
from distillcli.distillation.students import new_backbone
from distillcli.errors import NumericError
from distillcli.models.weights import load_tensors, weights_fingerprint
from distillcli.runs.folder import read_metrics
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.terms.objective import Objective
from distillcli.training import engine
from distillcli.views.loader import Data
from distillcli.views.store import MemoryStore, StreamStore

# timm calls SGD without Nesterov "momentum".
SGD = (
    "optimizer=sgd",
    "optimizer.name=momentum",
    "optimizer.lr=0.05",
    "optimizer.momentum=0",
    "optimizer.weight_decay=0",
    "schedule=constant",
)
STREAMED = "dataset.memory_gb=0"

# python tests/test_engine.py prints these numbers again. Change them only with a change that is meant to change them.
GOLDEN = [2.113273, 2.104249, 2.183168, 2.220168, 1.686067, 1.461988, 1.573492, 1.597069, 0.920913, 0.710197]


def trained(folder: Path, *overrides: str) -> str:
    """The digest of all that training leaves behind."""
    train(tiny("trainer.keep_optimizer=true", *overrides), folder)
    content = last(folder)
    return digest({key: content[key] for key in ("student", "objective", "ema", "optimizer", "step")})


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Loss, norm and weights after each step of every fit from now on."""
    steps: list[dict[str, Any]] = []
    original = engine.train_step

    def recording(parts: Any, teacher: Any, model: Any, *rest: Any) -> Any:
        before = {name: value.clone() for name, value in model.student.net.named_parameters()}
        result = original(parts, teacher, model, *rest)
        after = {name: value.clone() for name, value in model.student.net.state_dict().items()}
        steps.append({"loss": result.loss.item(), "norm": result.norm.item(), "before": before, "after": after})
        return result

    monkeypatch.setattr(engine, "train_step", recording)
    return steps


# --- the teacher ---------------------------------------------------------------------------------------------------


def test_the_teacher_stays_frozen_and_the_student_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded(monkeypatch)
    seen: dict[str, Any] = {}

    def keep(teacher: FrozenTeacher | None, _objective: Objective, _data: Data) -> None:
        assert teacher is not None
        seen["net"] = teacher.backbone.net
        seen["before"] = weights_fingerprint(teacher.backbone.net.state_dict())

    train(tiny("distill=hint", "distill.terms.hint.stage=-1"), tmp_path, keep=keep)
    net = seen["net"]
    assert any("running_mean" in name for name in net.state_dict()), "the teacher needs batch norm for this test"
    assert weights_fingerprint(net.state_dict()) == seen["before"]
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert all(parameter.grad is None for parameter in net.parameters())
    first, final = steps[0]["before"], steps[-1]["after"]
    assert [name for name in first if torch.equal(first[name], final[name])] == []
    assert digest(steps[0]["after"]["bn1.running_mean"]) != digest(final["bn1.running_mean"])


def test_checkpoints_hold_no_teacher(tmp_path: Path) -> None:
    hint = ("distill=hint", "distill.terms.hint.stage=-1", "student.name=test_vit")
    train(tiny(*hint, "trainer.keep_optimizer=true"), tmp_path)
    content = last(tmp_path)
    assert {key.split(".")[0] for key in content["student"]} >= {"blocks"}
    assert not any(key.startswith(("layer1", "layer2")) for key in content["student"])
    assert sorted(content["objective"])[0].startswith("terms.hint.projector")
    for name in ("last.pt", "previous.pt", "best.pt"):  # plain tensors and values: nothing needs to be allowed
        torch.load(tmp_path / "checkpoints" / name, weights_only=True)


# --- randomness ----------------------------------------------------------------------------------------------------


def test_one_seed_gives_one_result(tmp_path: Path) -> None:
    dropout = "++student.args.drop_rate=0.3"
    once, again, other = (
        trained(tmp_path / name, dropout, f"seed={seed}") for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert once == again
    assert once != other


def test_global_generators_do_not_matter(tmp_path: Path) -> None:
    once = trained(tmp_path / "a", "++student.args.drop_rate=0.3")
    torch.manual_seed(99)
    torch.rand(7)
    assert trained(tmp_path / "b", "++student.args.drop_rate=0.3") == once


def test_workers_change_nothing(tmp_path: Path) -> None:
    stores: list[object] = []
    results = []
    for workers in (0, 2):
        config = tiny(STREAMED, f"trainer.workers={workers}")
        train(config, tmp_path / str(workers), keep=lambda _t, _o, data: stores.append(data.train.store))
        results.append(digest(last(tmp_path / str(workers))))
    assert all(isinstance(store, StreamStore) for store in stores)
    assert results[0] == results[1]


def test_evaluating_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training leaves the same weights when the evaluations between the epochs are not made."""
    dropout = "++student.args.drop_rate=0.3"
    assert isinstance(tiny(), TrainConfig)
    once = trained(tmp_path / "a", dropout)
    calls = []

    def skipped(*_: object, **__: object) -> dict[str, float]:
        calls.append(1)
        torch.rand(5)
        return {"top1": 0.0, "top5": 0.0, "nll": 0.0, "ece": 0.0}

    monkeypatch.setattr(engine, "evaluate", skipped)
    assert trained(tmp_path / "b", dropout) == once
    assert len(calls) == 2


def test_control_and_student_start_alike() -> None:
    config = tiny()
    data = _data(config)
    starts = [
        weights_fingerprint(new_backbone(each, data, "student").net.state_dict())
        for each in (config, control_recipe(config).config)
    ]
    other = new_backbone(tiny("seed=1"), data, "student")
    assert starts[0] == starts[1] != weights_fingerprint(other.net.state_dict())


def _data(config: TrainConfig) -> Data:
    from tiny import open_tiny

    data = open_tiny(config)
    assert isinstance(data.train.store, MemoryStore)
    return data


# --- arithmetic ----------------------------------------------------------------------------------------------------


def test_micro_batches_sum_to_the_batch(tmp_path: Path) -> None:
    """Without batch norm, a batch in four parts is the same step up to rounding."""
    vit = ("student.name=test_vit", "augment=none", *SGD)
    for parts in (1, 4):
        train(tiny(*vit, f"trainer.accumulate={parts}"), tmp_path / str(parts))
    whole, split = (last(tmp_path / name)["student"] for name in ("1", "4"))
    start = new_backbone(tiny(*vit), _data(tiny(*vit)), "student").net.state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(whole["head.weight"], start["head.weight"])


def test_ema_is_the_moving_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded(monkeypatch)
    fitted = train(tiny("trainer.ema=0.7"), tmp_path)
    average = {name: value.double() for name, value in steps[0]["after"].items()}  # the first step counts alone
    for number, step in enumerate(steps[1:], 1):
        decay = min(0.7, 1 - (1 + number) ** (-2 / 3))
        for name, value in step["after"].items():
            average[name] = decay * average[name] + (1 - decay) * value.double()
    deployed, content = fitted.backbone.net.state_dict(), last(tmp_path)
    for name, value in average.items():
        if deployed[name].is_floating_point():
            torch.testing.assert_close(deployed[name].double(), value, rtol=1e-5, atol=1e-6)
    assert digest(deployed) == digest(content["ema"]) != digest(content["student"])


def test_clipping_bounds_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under plain SGD a step is lr times the gradient."""
    steps = recorded(monkeypatch)

    def lengths() -> list[float]:
        moved = [
            math.sqrt(
                sum((step["after"][name] - value).square().sum().item() for name, value in step["before"].items())
            )
            for step in steps
        ]
        return [length / 0.05 for length in moved]

    train(tiny(*SGD), tmp_path / "free")
    free = lengths()
    assert max(free) > 0.5
    assert free == pytest.approx([step["norm"] for step in steps], rel=1e-3)
    steps.clear()
    train(tiny(*SGD, "trainer.clip_grad=0.1"), tmp_path / "clipped")
    assert max(lengths()) <= 0.1 * 1.001
    assert min(step["norm"] for step in steps) > 0.1, "the norm that is logged is the one before clipping"


def test_bf16_trains_on_the_cpu(tmp_path: Path) -> None:
    fitted = train(tiny("trainer.precision=bf16"), tmp_path)
    assert {value.dtype for value in fitted.backbone.net.parameters()} == {torch.float32}
    losses = [row["loss"] for row in read_metrics(tmp_path) if row["kind"] == "train"]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    train(tiny(), tmp_path / "fp32")
    assert losses != [row["loss"] for row in read_metrics(tmp_path / "fp32") if row["kind"] == "train"]


def test_the_memory_layout_only_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for layout in ("true", "false"):
        with monkeypatch.context() as patch:
            steps = recorded(patch)
            train(tiny(*SGD, "optimizer.lr=0.001", f"trainer.channels_last={layout}"), tmp_path / layout)
            losses.append([step["loss"] for step in steps])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# --- numbers that are none -----------------------------------------------------------------------------------------


def break_at(monkeypatch: pytest.MonkeyPatch, step: int, gradient_only: bool = False) -> None:
    """From ``step`` on (counted from 1) the loss is NaN, or it is sound and its gradient is NaN."""
    original, calls = Objective.forward, []

    def broken(self: Objective, student: Any, *rest: Any) -> tuple[Tensor, dict[str, Tensor]]:
        total, values = original(self, student, *rest)
        calls.append(1)
        if len(calls) < step:
            return total, values
        nothing = student.logits.sum() * 0
        return (total + nothing.sqrt() if gradient_only else total * float("nan")), values

    monkeypatch.setattr(Objective, "forward", broken)


@pytest.mark.fault("R30")
@pytest.mark.parametrize(("step", "gradient_only"), [(6, False), (8, False), (8, True)])
def test_nan_ends_the_run_and_spares_the_checkpoints(
    step: int, gradient_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of an epoch too: a gradient that is NaN spoils the weights after a loss that was sound."""
    break_at(monkeypatch, step, gradient_only)
    after_first: dict[str, str] = {}
    watch = Watch(after_epoch=lambda: after_first.update(files(tmp_path)))
    with pytest.raises(NumericError, match=rf"step {step} \(epoch 2") as raised:
        train(tiny(), tmp_path, watch)
    assert "student: " in str(raised.value)
    assert "optimizer.lr=0.003" in str(raised.value)
    assert f"the last checkpoint, {tmp_path}/checkpoints/last.pt, is from before" in str(raised.value)
    found = files(tmp_path)
    assert found.pop("nan_batch.json")
    assert found == after_first
    assert {"checkpoints/last.pt", "checkpoints/best.pt"} <= set(after_first)
    assert all(value.isfinite().all() for value in last(tmp_path)["student"].values())


def test_a_checkpoint_within_an_epoch_is_never_of_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_at(monkeypatch, 2)
    with pytest.raises(NumericError, match="step 2 "):
        train(tiny("trainer.checkpoint_minutes=1e-9"), tmp_path)
    assert load_tensors(tmp_path / "checkpoints" / "last.pt")["step"] == 1


# --- the golden run ------------------------------------------------------------------------------------------------


def golden_losses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Ten steps of the default recipe on one CPU thread."""
    steps = recorded(monkeypatch)
    train(tiny("dataset.samples=160", "trainer.epochs=1", "trainer.ema=0.9", "trainer.clip_grad=5"), folder)
    return [step["loss"] for step in steps]


def test_ten_steps_give_the_pinned_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = golden_losses(tmp_path, monkeypatch)
    assert len(losses) == 10
    assert losses == pytest.approx(GOLDEN, rel=1e-4)


def test_an_epoch_has_as_many_steps_as_the_tests_assume(tmp_path: Path) -> None:
    watch = Watch()
    train(tiny(), tmp_path, watch)
    assert watch.steps == 2 * STEPS


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        print(golden_losses(Path(scratch), patch))

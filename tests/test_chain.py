"""Teachers handed down (assistants, generations) and teachers that learn with the student (peers, its own average)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distillcli.config.job import Job
from distillcli.config.schema import ModelConfig
from distillcli.distillation.folders import Spent
from distillcli.distillation.plan import check_weights, make_plan
from distillcli.distillation.recipes import assistant_recipes, assistants_of
from distillcli.distillation.reopening import reopen_model, reopen_teacher
from distillcli.distillation.whole import distill
from distillcli.errors import Interrupted, UserError
from distillcli.models.backbone import Backbone, build
from distillcli.runs.result import Measured, Result
from distillcli.runtime import seed_everything
from distillcli.sources.open import open_source
from distillcli.terms.base import Setting
from distillcli.terms.objective import Objective
from distillcli.training.learners import MutualLearning
from distillcli.types import Batch, Inputs, Output
from tests.tiny import CPU, Watch, digest, last, tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("bare_ending")]

SHORT = ("trainer.epochs=2", "teacher.fit.epochs=1", "dataset.samples=32", "trainer.batch_size=16")
CHAIN = ("teacher.assistants=[{name: test_vit},{name: test_resnet, seed: 7}]",)


def run(folder: Path, *overrides: str, watch: Watch | None = None) -> tuple[Result, Watch]:
    watch = watch or Watch()
    config = tiny(f"runs={folder.parent / 'runs'}", *SHORT, *overrides)
    folder.mkdir(exist_ok=True)
    job = Job(overrides, "distill train", None, None)
    plan = make_plan(config, open_source(config.dataset))
    check_weights(plan)
    return distill(plan, job, folder, Spent.on(folder), watch.session), watch


# --- handed down -----------------------------------------------------------------------------------------------------


def test_assistants_are_fitted_once_and_explain_themselves(tmp_path: Path) -> None:
    result, watch = run(tmp_path / "first", *CHAIN)
    assert watch.labels == ["teacher", "assistant", "assistant", "student", "control"]
    assert [assistant.model for assistant in result.chain] == ["test_vit", "test_resnet"]
    folders = sorted((tmp_path / "runs" / "assistants").iterdir())
    assert sorted(str(assistant.run) for assistant in result.chain) == [str(folder) for folder in folders]

    again, watch = run(tmp_path / "second", *CHAIN)
    assert watch.labels == ["student"]
    assert (again.student or Measured()).nll == (result.student or Measured()).nll is not None


def test_the_student_learns_from_the_last_assistant(tmp_path: Path) -> None:
    """The chain gives the same weights as naming the last assistant's run as the teacher."""
    result, _ = run(tmp_path / "chain", *CHAIN)
    run(tmp_path / "direct", "teacher.name=test_resnet", f"teacher.checkpoint={result.chain[-1].run}")
    assert digest(last(tmp_path / "chain")["student"]) == digest(last(tmp_path / "direct")["student"])


def test_another_assistant_above_makes_all_below_others(tmp_path: Path) -> None:
    first, _ = run(tmp_path / "first", *CHAIN)
    other, watch = run(tmp_path / "other", CHAIN[0].replace("test_vit", "test_byobnet"))
    assert watch.labels == ["assistant", "assistant", "student"]
    assert first.chain[1].run != other.chain[1].run


def test_the_teacher_of_the_run_stays_the_measure(tmp_path: Path) -> None:
    """Agreement is that with the teacher the user trusts, also after the run is opened again."""
    result, _ = run(tmp_path / "run", *CHAIN)
    config = tiny(f"runs={tmp_path / 'runs'}", *SHORT, *CHAIN)
    teacher = reopen_teacher(tmp_path / "run", config, open_source(config.dataset), CPU)
    assert teacher is not None
    assert result.teacher is not None
    assert teacher.backbone.spec.name == config.teacher.name == result.teacher.model


@pytest.mark.parametrize("chain", ["generations=2", CHAIN[0]])
def test_assistants_that_nothing_would_give_a_head_are_refused(tmp_path: Path, chain: str) -> None:
    with pytest.raises(UserError, match=rf"^{chain.split('=[')[0]}: no term of distill=embedding trains a head"):
        run(tmp_path / "run", "distill=embedding", "distill.terms.ce.weight=0", chain)


def test_generations_are_the_student_again_each_with_its_seed() -> None:
    config = tiny("generations=3", "seed=10", "teacher.assistants=[{name: test_vit}]")
    assert [(model.name, model.seed) for model in assistants_of(config)] == [
        ("test_vit", None),
        (config.student.name, 12),
        (config.student.name, 11),
    ]
    recipes = [recipe.config for recipe in assistant_recipes(config)]
    assert [recipe.seed for recipe in recipes] == [10, 12, 11]
    assert [len(recipe.teacher.assistants) for recipe in recipes] == [0, 1, 2]
    assert [recipe.generations for recipe in recipes] == [1, 1, 1]


def test_a_shorter_family_is_part_of_a_longer_one(tmp_path: Path) -> None:
    """Two generations more continue nothing and repeat nothing that had the same seed and teacher."""
    result, watch = run(tmp_path / "three", "generations=3", "seed=10")
    assert watch.labels == ["teacher", "assistant", "assistant", "student", "control"]
    assert result.teacher is not None
    _, watch = run(tmp_path / "two", "generations=2", "seed=11", f"teacher.checkpoint={result.teacher.run}")
    assert "teacher" not in watch.labels
    assert watch.labels[0] == "student", "its first generation has seed 12, as that of the family of three"


def test_terms_that_an_assistant_cannot_serve_are_refused_before_any_fit(tmp_path: Path) -> None:
    watch = Watch()
    with pytest.raises(UserError, match="stage"):
        run(tmp_path / "run", *CHAIN, "distill=hint", "distill.terms.hint.student_stage=9", watch=watch)
    assert watch.labels == []


# --- learning together -----------------------------------------------------------------------------------------------


def pair(first: int, second: int) -> tuple[Backbone, Backbone, Objective]:
    models = []
    for seed in (first, second):
        seed_everything("peer", seed)
        models.append(build(ModelConfig("test_resnet"), Inputs(5, 32), "student").eval())
    config = tiny("distill=kd", "distill.alpha=null").distill
    objective = Objective(config, Setting(models[0].spec, models[1].spec, np.zeros(6, np.int64), 2))
    return models[0], models[1], objective


@pytest.fixture
def batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    return Batch(torch.rand(6, 3, 32, 32, generator=draw), torch.arange(6) % 5, torch.arange(6))


def test_each_learns_from_labels_and_from_the_other_held_fixed(batch: Batch) -> None:
    student, peer, objective = pair(0, 1)
    MutualLearning(student, [peer], objective)(batch, None, 1.0)[0].backward()
    for learner, other in ((student, peer), (peer, student)):
        found = [parameter.grad.clone() for parameter in learner.parameters() if parameter.grad is not None]
        learner.zero_grad()
        target = Output(other(batch.images).logits.detach(), None, {})
        objective(learner(batch.images), target, batch, 1.0)[0].backward()
        expected = [parameter.grad for parameter in learner.parameters() if parameter.grad is not None]
        assert len(found) == len(expected) > 10
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two)


def test_twins_teach_each_other_nothing(batch: Batch) -> None:
    student, twin, objective = pair(3, 3)
    _, values = MutualLearning(student, [twin], objective)(batch, None, 1.0)
    assert values["kl"].abs() < 1e-6 < values["ce"]


def test_three_average_over_the_others(batch: Batch) -> None:
    student, peer, objective = pair(0, 1)
    third = pair(2, 2)[0]
    total, values = MutualLearning(student, [peer, third], objective)(batch, None, 1.0)
    outputs = [Output(model(batch.images).logits.detach(), None, {}) for model in (student, peer, third)]
    expected = sum(
        objective(mine, other, batch, 1.0)[0] / 2 for mine in outputs for other in outputs if other is not mine
    )
    torch.testing.assert_close(total.detach(), expected)
    to_both = [objective(outputs[0], other, batch, 1.0)[1]["kl"] for other in outputs[1:]]
    torch.testing.assert_close(values["kl"], torch.stack(to_both).mean())


PEERS = ("peers=[{name: test_vit}]", "distill=kd", "distill.alpha=null")


def test_peers_are_measured_kept_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    whole, watch = run(tmp_path / "whole", *PEERS)
    assert watch.labels == ["student", "control"]
    assert whole.teacher is None
    assert [peer.model for peer in whole.peers] == ["test_vit"]

    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", *PEERS, watch=Watch(stop_after=3))
    run(tmp_path / "stopped", *PEERS)
    assert digest(last(tmp_path / "whole")["peers"]) == digest(last(tmp_path / "stopped")["peers"])
    assert digest(last(tmp_path / "whole")["student"]) == digest(last(tmp_path / "stopped")["student"])

    config = tiny(*SHORT)
    peer = reopen_model(str(tmp_path / "whole" / "peers" / "1"), open_source(config.dataset), config.dataset, True, CPU)
    assert digest(peer.net.state_dict()) == digest(last(tmp_path / "whole")["peers"][0])


def test_a_student_with_its_teachers_head_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    run(tmp_path / "whole", "distill=simkd")
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", "distill=simkd", watch=Watch(stop_after=3))
    run(tmp_path / "stopped", "distill=simkd")
    assert digest(last(tmp_path / "whole")["student"]) == digest(last(tmp_path / "stopped")["student"])


def test_features_of_peers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="logits only"):
        run(tmp_path / "run", PEERS[0], "distill=rkd")


# --- the student's own average ----------------------------------------------------------------------------------------

MEAN = ("teacher=mean", "trainer.ema=0.5", "distill=kd", "distill.alpha=0.5")


@pytest.mark.parametrize("term", ["ft", "ofd"])
def test_terms_that_learn_from_the_teacher_first_are_refused(tmp_path: Path, term: str) -> None:
    options = ("student.name=test_resnet", f"distill={term}", *MEAN[:2])
    with pytest.raises(UserError, match=rf"^distill\.terms\.{term}: it learns from the teacher before the first step"):
        run(tmp_path / "run", *options)


def test_the_average_teaches_and_the_control_has_none(tmp_path: Path) -> None:
    result, watch = run(tmp_path / "mean", *MEAN)
    assert watch.labels == ["student", "control"]
    assert result.teacher is None
    values = [train["loss/kl"] for train, _ in watch.rows[:2]]
    assert all(value > 0 for value in values)
    assert "loss/kl" not in watch.rows[2][0]
    assert result.baseline is not None


def test_an_average_that_follows_at_once_teaches_nothing(tmp_path: Path) -> None:
    """With a decay near 0 the average is the student: what is left of the divergence is train mode against eval."""
    _, near = run(tmp_path / "near", *MEAN, "trainer.ema=1e-6", "student.name=test_vit")
    _, far = run(tmp_path / "far", *MEAN, "trainer.ema=0.9999", "student.name=test_vit")
    assert near.rows[1][0]["loss/kl"] < 1e-5 < far.rows[1][0]["loss/kl"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("teacher=mean",), "trainer.ema"),
        (("teacher=mean", "trainer.ema=0.9", "generations=2"), "generations"),
        (("peers=[{name: test_vit}]", "teacher.assistants=[{name: test_vit}]"), "teacher.assistants"),
        (("peers=[{name: test_vat}]",), r"peers\[0\].name=test_vat"),
        (("teacher.assistants=[{name: nothing}]",), r"teacher.assistants\[0\].name"),
        (("generations=0",), "generations=0"),
        (("peers=[{name: test_vit}]", "teacher=mean", "trainer.ema=0.9"), "choose one"),
    ],
)
def test_what_cannot_be_combined_is_named(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny(*overrides)

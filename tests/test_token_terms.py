"""Students with a distillation token: the token answers to the teacher, the class token to the labels."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distillcli.config.schema import DistillConfig, ModelConfig
from distillcli.models.backbone import Backbone, build
from distillcli.runtime import seed_everything
from distillcli.terms import TERMS
from distillcli.terms.base import LogitTerm
from distillcli.terms.objective import Objective
from distillcli.types import Batch, Inputs, Output, Taps
from tests.tiny import digest, last, setting, tiny, train

DEIT = {"embed_dim": 16, "depth": 2, "num_heads": 2}
STUDENT = ["student.name=deit_tiny_distilled_patch16_224", *(f"+student.args.{key}={DEIT[key]}" for key in DEIT)]
ANSWERING = [name for name, term in TERMS.items() if issubclass(term, LogitTerm)] + ["hard"]


def deit() -> Backbone:
    seed_everything(0)
    config = ModelConfig(name="deit_tiny_distilled_patch16_224", args=DEIT)
    backbone = build(config, Inputs(5, 32), "student")
    torch.nn.init.normal_(backbone.net.head_dist.weight)
    torch.nn.init.normal_(backbone.net.head.weight)
    return backbone.train()


def images(size: int = 32) -> Tensor:
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def teacher_output() -> Output:
    return Output(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), None, {})


@pytest.mark.parametrize("stages", [(), (-1,)])
def test_in_training_both_heads_answer_apart_and_in_evaluation_their_mean(stages: tuple[int, ...]) -> None:
    backbone = deit()
    apart = backbone(images(), Taps(stages, token=True))
    assert (apart.logits - apart.token_logits).abs().max() > 0.1
    mean = (apart.logits + apart.token_logits) / 2
    torch.testing.assert_close(backbone(images(), Taps(stages)).logits, mean)
    assert backbone(images(), Taps(stages)).token_logits is None
    seen = backbone.eval()(images(), Taps(stages, token=True))
    torch.testing.assert_close(seen.logits, mean)
    assert seen.token_logits is None


def test_levit_answers_with_both_of_its_heads_too() -> None:
    seed_everything(0)
    seen = build(ModelConfig(name="levit_128s"), Inputs(5, 64), "student").train()(images(64), Taps(token=True))
    assert seen.token_logits is not None
    assert seen.token_logits.shape == seen.logits.shape == (4, 5)


def test_a_model_without_a_token_has_no_logits_of_it() -> None:
    seed_everything(0)
    seen = build(ModelConfig(name="test_vit"), Inputs(5, 32), "student").train()(images(), Taps(token=True))
    assert seen.token_logits is None
    assert seen.taught_logits is seen.logits


def gradients(terms: dict[str, dict[str, float]]) -> dict[str, Tensor]:
    """Of both classifiers, after one backward pass."""
    backbone = deit()
    built = Objective(DistillConfig(name="test", alpha=None, terms=terms), setting(backbone.spec, backbone.spec))
    batch = Batch(images(), torch.arange(4) % 5, torch.arange(4))
    built(backbone(batch.images, built.student_taps), teacher_output(), batch, 0.0)[0].backward()
    heads = {"class": backbone.net.head.weight, "token": backbone.net.head_dist.weight}
    return {name: torch.zeros_like(weight) if weight.grad is None else weight.grad for name, weight in heads.items()}


@pytest.mark.parametrize("name", ANSWERING)
def test_terms_of_the_teacher_train_the_token_and_labels_the_class_token(name: str) -> None:
    """Adding the teacher leaves the gradient of the labels as it was, head by head."""
    both, alone = gradients({"ce": {}, name: {}}), gradients({name: {}})
    assert not alone["class"].any()
    assert alone["token"].any()
    torch.testing.assert_close(both["token"], alone["token"])
    assert both["class"].any()


def test_labels_alone_train_both_heads_by_their_mean() -> None:
    seen = gradients({"ce": {}})
    assert seen["class"].any()
    assert seen["token"].any()


def test_hard_distillation_by_the_token_is_the_mean_of_two_cross_entropies() -> None:
    backbone = deit()
    config = DistillConfig(name="hard", alpha=0.5, terms={"ce": {}, "hard": {}})
    built = Objective(config, setting(backbone.spec, backbone.spec))
    batch = Batch(images(), torch.arange(4) % 5, torch.arange(4))
    seen, said = backbone(batch.images, built.student_taps), teacher_output()
    labels = torch.nn.functional.cross_entropy(seen.logits, batch.targets)
    decisions = torch.nn.functional.cross_entropy(seen.token_logits, said.logits.argmax(dim=1))
    torch.testing.assert_close(built(seen, said, batch, 0.0)[0], (labels + decisions) / 2)


def test_a_run_trains_both_heads_and_its_last_checkpoint_is_the_same_again(tmp_path: Path) -> None:
    config = tiny(*STUDENT, "distill=hard", "trainer.epochs=1", "trainer.ema=0.5")
    fitted = train(config, tmp_path / "one")
    train(copy.deepcopy(config), tmp_path / "two")
    state = last(tmp_path / "one")
    assert digest(state) == digest(last(tmp_path / "two"))
    assert not torch.equal(state["student"]["head.weight"], state["student"]["head_dist.weight"])
    assert fitted.backbone.eval()(images()).token_logits is None

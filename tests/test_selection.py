"""Which epoch becomes the student: the last one, or with trainer.select=best the one that was best on val."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Distill
from safetensors.torch import load_file
from tiny import CPU, digest, last, open_tiny, tiny, train

from distillcli.distillation.plan import make_plan
from distillcli.distillation.recipes import assistant_recipes, control_recipe, ingredients, teacher_recipe
from distillcli.distillation.students import new_backbone
from distillcli.errors import UserError
from distillcli.runs.folder import fingerprint
from distillcli.runs.result import from_json, read_result
from distillcli.sources.open import open_source
from distillcli.sources.source import Source
from distillcli.teachers.frozen import members_of
from distillcli.training import state
from distillcli.training.checkpoint import read_checkpoint

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")

BEST = "trainer.select=best"


@pytest.fixture
def first_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "merit", lambda numbers: (-numbers["epoch"],))


def best_of(folder: Path) -> dict[str, Any]:
    return read_checkpoint(folder / "checkpoints" / "best.pt")


@pytest.mark.fault("F6.1")
@pytest.mark.usefixtures("first_is_best")
@pytest.mark.parametrize("average", [(), ("trainer.ema=0.9",)])
def test_the_chosen_epoch_is_the_student_and_the_other_is_there_too(average: tuple[str, ...], tmp_path: Path) -> None:
    chosen, usual = (train(tiny(*average, *more), tmp_path / str(len(more))) for more in ((BEST,), ()))
    part = "ema" if average else "student"
    of_best, of_last = digest(best_of(tmp_path / "1")[part]), digest(last(tmp_path / "1")[part])
    assert of_best != of_last
    assert (chosen.epoch, usual.epoch) == (1, 2)
    assert chosen.other is not None
    assert usual.other is not None
    assert digest(chosen.backbone.net.state_dict()) == digest(usual.other.net.state_dict()) == of_best
    assert digest(usual.backbone.net.state_dict()) == digest(chosen.other.net.state_dict()) == of_last


@pytest.mark.usefixtures("first_is_best")
def test_best_is_not_replaced_by_last_where_its_weights_are_damaged(tmp_path: Path) -> None:
    train(tiny(BEST), tmp_path)
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"best\.pt.*; trainer\.select=best has no weights to take: remove .*checkpoints"
    ):
        train(tiny(BEST), tmp_path)


def test_only_student_and_control_are_chosen() -> None:
    """Their recipes get names of their own; those of teachers and assistants, and of all by default, stay."""
    config, chosen = (tiny("teacher.assistants=[{name: test_vit}]", *more) for more in ((), (BEST,)))
    data = open_tiny(config)
    names = {
        run.trainer.select: fingerprint(ingredients(run, data, new_backbone(run, data, "student"), CPU))
        for run in (control_recipe(config).config, control_recipe(chosen).config)
    }
    assert len(set(names.values())) == 2
    assert teacher_recipe(members_of(chosen)[0], CPU.device) == teacher_recipe(members_of(config)[0], CPU.device)
    assert assistant_recipes(chosen)[0].config.trainer == assistant_recipes(config)[0].config.trainer


def unlabelled(source: Source) -> Source:
    """Without labels in val."""
    assert source.val is not None
    return replace(source, val=replace(source.val, labels=np.full_like(source.val.labels, -1)))


@pytest.mark.fault("F6.1")
@pytest.mark.parametrize(
    ("overrides", "change", "why"),
    [
        (("distill=none",), lambda whole: replace(whole, val=None, test=whole.val), "no images are held out"),
        (("distill=embedding", "distill.terms.ce.weight=0"), lambda whole: whole, "the student has no classifier"),
        (("distill=none",), unlabelled, "val has no labels, and no fixed teacher"),
    ],
)
def test_best_is_refused_where_val_cannot_choose(
    overrides: tuple[str, ...], change: Callable[[Source], Source], why: str
) -> None:
    config = tiny(BEST, *overrides)
    with pytest.raises(UserError, match=f"trainer.select=best: {why}"):
        make_plan(config, change(open_source(config.dataset)))


def test_another_word_is_refused(distill: Distill) -> None:
    answer = distill("train", "trainer.select=first")
    assert answer.code == 2
    assert "trainer.select" in answer.stderr


def test_the_numbers_of_the_student_are_of_its_epoch() -> None:
    content = {"best": {"epoch": 1, "val_top1": 60.0}, "last": {"epoch": 2, "val_top1": 50.0}}
    for epoch, top1 in ((1, 60.0), (2, 50.0), (None, 50.0)):
        assert from_json(content | {"student_epoch": epoch}).student_numbers.val_top1 == top1


@pytest.mark.slow
@pytest.mark.fault("F6.1")
@pytest.mark.usefixtures("first_is_best")
def test_a_run_exports_measures_and_compares_what_it_chose(tmp_path: Path, distill: Distill) -> None:
    small = ("dataset.samples=64", "trainer.batch_size=16", "trainer.epochs=2", "teacher.fit.epochs=1")
    answer = distill("train", "experiment=smoke", *small, "trainer.threads=1", "trainer.device=cpu", BEST, "out=run")
    assert answer.code == 0, answer.stderr
    (control,) = (tmp_path / "runs" / "controls").iterdir()
    for folder in (tmp_path / "run", control):
        result = read_result(folder)
        assert result is not None
        assert (result.student_epoch, result.best and result.best.epoch) == (1, 1)
        assert result.student is not None
        assert result.best is not None
        assert result.best.top1 == result.student.top1
        assert result.last is not None
        assert result.last.top1 is not None
        exported, best = load_file(folder / "student" / "model.safetensors"), best_of(folder)["student"]
        assert {name: digest(value) for name, value in exported.items()} == {name: digest(best[name]) for name in best}
    assert "The student is that of epoch 1, the best on val" in answer.stdout
    assert distill("eval", "checkpoint=run", "trainer.device=cpu").code == 0

"""The model card of an exported student."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from distillcli.report.format import clean
from distillcli.report.hub_card import hub_card, write_hub_card
from distillcli.runs.result import ClassAccuracy, DatasetFacts, Measured, Result, Verdict

RESULT = Result(
    status="ok",
    name="clothes",
    command="distill train dataset=folder dataset.root='my photos'",
    evaluated_on="test",
    student=Measured(
        model="mobilenetv3_small_100",
        top1=91.234,
        top5=99.5,
        nll=0.3,
        ece=0.02,
        per_class={"hat": ClassAccuracy(80, 50)},
    ),
    teacher=Measured(model="resnet50", top1=94.0, per_class={"hat": ClassAccuracy(90, 50)}),
    baseline=Measured(model="mobilenetv3_small_100", top1=90.0, per_class={"hat": ClassAccuracy(86, 50)}),
    verdict=Verdict("helps", 1.2, 0.4, 2.0, 0.003, 40, 28, 1000, 900),
    objective="0.1·ce + 0.9·kl(T=4)",
    dataset=DatasetFacts(name="folder", classes=10, train=6000, test=1000),
    fingerprints=None,
)


def test_the_hub_reads_the_metadata() -> None:
    data = ModelCard(hub_card(RESULT, Path("run"))).data
    assert (data.library_name, data.pipeline_tag) == ("timm", "image-classification")
    assert data.eval_results is not None
    first, second = data.eval_results
    assert (first.metric_value, second.metric_value) == (91.23, 99.5)
    assert (first.dataset_name, first.dataset_split) == ("folder", "test")


def test_a_licence_is_left_for_a_person() -> None:
    card = hub_card(RESULT, Path("run"))
    metadata = card.split("---\n")[1]
    assert "license" not in yaml.safe_load(metadata)
    assert "# license: CHOOSE ONE" in metadata
    assert "To be completed by a person" in card


def test_verdict_harm_and_command_are_told() -> None:
    card = hub_card(RESULT, Path("run"))
    assert "Distilling helps" in card
    assert re.search(r"\| hat \| 50 \| 86.0 \| 80.0 \| -6.0 \|", card)
    assert "distill train dataset=folder dataset.root='my photos'" in card


@pytest.mark.parametrize("classes", [10, None])
def test_the_lines_that_use_it_are_python(classes: int | None) -> None:
    result = dataclasses.replace(RESULT, dataset=dataclasses.replace(RESULT.dataset, classes=classes))
    card = hub_card(result, Path("run"))
    lines = card.split("```python\n")[1].split("```")[0]
    ast.parse(lines)
    assert ("softmax" in lines) == (classes is not None)
    assert (ModelCard(card).data.pipeline_tag == "image-classification") == (classes is not None)


@pytest.mark.parametrize("evil", ["a\n---\nlicense: mit", "<script>x</script>", "`b` | *c*", "x: [y"])
def test_names_stay_text(evil: str) -> None:
    result = dataclasses.replace(RESULT, name=evil, dataset=dataclasses.replace(RESULT.dataset, name=evil))
    card = hub_card(result, Path("run"))
    data = ModelCard(card).data
    assert data.eval_results is not None
    assert data.eval_results[0].dataset_name == clean(evil)
    assert "license" not in data.to_dict()
    body = card.split("\n---\n\n", 1)[1]
    assert "<script>" not in body
    assert "\n---\n" not in body


def test_what_is_not_known_is_left_out() -> None:
    card = hub_card(Result(status="ok"), Path("run"))
    assert "None" not in card
    assert ModelCard(card).data.eval_results is None


def test_a_run_without_an_exported_student_has_no_card(tmp_path: Path) -> None:
    write_hub_card(tmp_path, RESULT)
    assert not list(tmp_path.iterdir())
    (tmp_path / "student").mkdir()
    write_hub_card(tmp_path, RESULT)
    assert (tmp_path / "student" / "README.md").read_text("utf-8") == hub_card(RESULT, tmp_path)

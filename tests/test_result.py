"""``result.json``: what is written is read again, and what is broken is missing."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from wrong_values import WRONG, places, replaced

from distillcli.runs.result import (
    Calibrated,
    ClassAccuracy,
    ClassVerdict,
    DatasetFacts,
    EpochNumbers,
    Fingerprints,
    Measured,
    Result,
    Verdict,
    from_json,
    read_result,
    to_json,
    write_result,
)

EPOCH = EpochNumbers(epoch=3, val_top1=81.5, top1=80, val_kl_to_teacher=None, kl_to_teacher=0.25)
STUDENT = Measured(
    model="test_resnet",
    params=1000,
    macs=20_000,
    top1=93.5,
    per_class={"a cat": ClassAccuracy(top1=50.0, count=4)},
    latency_ms=1.5,
    latency_spread_ms=0.1,
    latency_setting="batch of 1, fp32, cuda",
)
FULL = Result(
    status="ok",
    role="student",
    name="a run",
    command="distill train",
    overrides=("seed=1",),
    evaluated_on="test",
    student=STUDENT,
    teacher=dataclasses.replace(STUDENT, runs=(None, "runs/teachers/x")),
    chain=(dataclasses.replace(STUDENT, run="runs/assistants/x"),),
    peers=(STUDENT,),
    baseline=dataclasses.replace(STUDENT, run="runs/controls/x", best=EPOCH, knn_top1=70.0, probe_top1=75.0),
    gap_closed=0.5,
    verdict=Verdict("helps", 2.5, 0.4, 4.6, 0.01, 20, 5, 300, 250, 0.2, 0.8),
    student_epoch=3,
    best=EPOCH,
    last=EPOCH,
    epochs=3,
    images_per_second=900.0,
    seconds=25.1,
    timings={"student": 25.0},
    temperature=4.0,
    alpha=0.9,
    seed=0,
    channels_last=False,
    cache="off",
    objective="ce",
    images="224 x 224 pixels",
    dataset=DatasetFacts(name="digits", classes=10, train=1297, labelled=1297, val=200, test=300, skipped=0),
    warnings=("careful",),
    versions={"torch": "2.15.0"},
    fingerprints=Fingerprints(data="1a2b", recipe="3c4d"),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    assert all(getattr(FULL, entry.name) not in (None, (), {}) for entry in dataclasses.fields(Result)[2:])
    for result in (FULL, Result(status="ok", role="teacher"), Result(status="failed", error="x", overrides=("a=1",))):
        write_result(tmp_path, result)
        assert read_result(tmp_path) == result


def test_a_finished_run_writes_every_key_and_another_only_what_is_known() -> None:
    keys = [entry.name for entry in dataclasses.fields(Result)]
    assert list(to_json(Result(status="ok"))) == keys
    assert to_json(Result(status="failed", error="x", overrides=("seed=1",))) == {
        "status": "failed",
        "error": "x",
        "overrides": ["seed=1"],
    }
    stopped = to_json(Result(status="interrupted", name="a", seed=0))
    assert stopped == {"status": "interrupted", "error": None, "name": "a", "overrides": [], "seed": 0}


def test_what_only_some_models_have_is_left_out_and_the_rest_is_null() -> None:
    plain = to_json(STUDENT)
    assert plain["top5"] is None
    assert not {"runs", "best", "knn_top1", "probe_top1"} & set(plain)
    content = to_json(FULL)
    assert content["teacher"]["runs"] == [None, "runs/teachers/x"]
    assert content["baseline"]["best"]["epoch"] == 3


def test_nothing_that_stands_in_a_result_breaks_its_reader() -> None:
    """Each place in turn, and some at random, hold something else; the rest is read as before."""
    names = [entry.name for entry in dataclasses.fields(Result)]
    content = to_json(FULL)
    for node, key in list(places(content)):
        for wrong in WRONG:
            with replaced(node, key, wrong):
                read = from_json(content)
            json.dumps(to_json(read), allow_nan=False)
            assert from_json(to_json(read)) == read
            assert sum(getattr(read, name) != getattr(FULL, name) for name in names) <= 1
    assert from_json(content) == FULL
    draws = random.Random(0)
    for _ in range(200):
        content = to_json(FULL)
        for _ in range(10):
            node, key = draws.choice(list(places(content)))
            node[key] = copy.deepcopy(draws.choice(WRONG))
        from_json(content)


@pytest.mark.parametrize("value", [None, "93.5", True, float("nan"), float("inf"), 10**400, [1], {}])
def test_what_is_not_a_finite_number_is_missing(value: Any) -> None:
    assert from_json({"student": {"model": "m", "top1": value}}).student == Measured(model="m")
    assert from_json({"student": {"params": value}}).student == Measured()


@pytest.mark.parametrize(("value", "read"), [(5, 5), (5.0, 5), (5.5, None), (-1, -1)])
def test_whole_numbers_are_whole(value: float, read: int | None) -> None:
    found = from_json({"epochs": value}).epochs
    assert (found, type(found)) == (read, type(read))


@pytest.mark.parametrize("content", ["", "[]", "null", '{"status": "ok", "stu', "\x00"])
def test_a_file_that_is_no_object_is_no_result(content: str, tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    (tmp_path / "result.json").write_text(content)
    assert read_result(tmp_path) is None


def test_numbers_that_json_does_not_have_are_null() -> None:
    measured = to_json(Measured(nll=float("nan"), ece=float("inf"), top1=5.0))
    assert (measured["nll"], measured["ece"], measured["top1"]) == (None, None, 5.0)


def test_pandas_reads_a_result_as_one_row() -> None:
    pandas = pytest.importorskip("pandas")
    (row,) = pandas.json_normalize(to_json(FULL)).to_dict("records")
    assert (row["student.top1"], row["baseline.best.epoch"], row["fingerprints.data"]) == (93.5, 3, "1a2b")


def test_the_document_says_what_every_key_means() -> None:
    document = (ROOT / "docs" / "result.md").read_text("utf-8")
    made = runpy.run_path(str(ROOT / "scripts" / "document_result.py"))["document"]()
    assert document == made, "run python scripts/document_result.py"
    parts = document.split("\n## ")[1:]
    documented = [re.findall(r"^\| `(\w+)` \| [^|]+ \| .{5,} \|$", part, re.MULTILINE) for part in parts]
    kinds = (
        *(Result, Measured, ClassAccuracy, Calibrated, EpochNumbers, Verdict, ClassVerdict, DatasetFacts),
        Fingerprints,
    )
    assert documented == [[entry.name for entry in dataclasses.fields(kind)] for kind in kinds]

"""The commands as a user types them, in temporary folders, and the files they leave.

Loading torch and timm takes ten seconds in a new process; so what only looks at files, messages and exit codes runs the
command line inside the test process, and signals go to processes that are forked from one that has loaded both.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, Distill
from forked import begin
from PIL import Image
from tiny import digest, files, last

from distillcli.runs.folder import read_metrics
from distillcli.runs.predictions import read_predictions
from distillcli.runs.result import read_result, to_json

pytestmark = pytest.mark.slow

QUICK = ("trainer.threads=1", "trainer.device=cpu", "trainer.epochs=2")
PLAIN = ("train", "experiment=smoke", *QUICK)
SMOKE = (*PLAIN, "teacher.fit.epochs=2", "dataset.samples=64")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DISTILL_CONFIG_DIR": ""}

CONTRACT = {
    "result.json",
    "metrics.jsonl",
    "config.yaml",
    "command.txt",
    "environment.json",
    "data.json",
    "classes.txt",
    "train.log",
}
CONTRACT |= {"checkpoints/last.pt", "checkpoints/best.pt", "student/config.json", "student/model.safetensors"}
CONTRACT |= {"report.md", "curves.png"}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(distill: Distill) -> Run:
    """``distill ARGUMENTS`` in a folder, inside this process: exit code, stdout, stderr."""

    def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
        answer = distill(*arguments, cwd=folder)
        return answer.code, answer.stdout, answer.stderr

    return run


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with one finished smoke run, made by a real command."""
    folder = tmp_path_factory.mktemp("work")
    done = subprocess.run(
        [sys.executable, "-m", "distillcli", *SMOKE],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def smoke(work: Path) -> Path:
    return (work / "runs" / "smoke" / "latest").resolve()


# --- what a run leaves ---------------------------------------------------------------------------------------------


def test_a_run_leaves_the_files_of_the_contract(work: Path, smoke: Path) -> None:
    assert set(files(smoke)) >= CONTRACT
    assert not [name for name in files(smoke) if ".tmp." in name or ".probe" in name]
    assert {path.name for path in work.iterdir()} == {"runs", "said.txt"}, "nothing outside of the runs"
    assert {path.name for path in (work / "runs").iterdir()} >= {"smoke", "teachers", "controls"}
    assert (work / "runs" / "smoke" / "latest").readlink() == Path(smoke.name)
    assert (smoke / "classes.txt").read_text().splitlines() == [f"pattern {number}" for number in range(4)]
    assert (smoke / "command.txt").read_text().startswith("distill train experiment=smoke ")
    assert "control:" in (smoke / "train.log").read_text()


def test_the_result_says_everything(work: Path, smoke: Path) -> None:
    content = json.loads((smoke / "result.json").read_text())
    expected = {"status", "name", "command", "student", "teacher", "baseline", "gap_closed", "best", "last", "epochs"}
    expected |= {"seconds", "images_per_second", "temperature", "alpha", "seed", "fingerprints", "versions", "error"}
    assert set(content) >= expected
    model = {"model", "params", "macs", "top1", "top5", "nll", "ece", "agreement", "kl_to_teacher"}
    for who in ("student", "teacher", "baseline"):
        assert set(content[who]) >= model
        assert 0 <= content[who]["top1"] <= content[who]["top5"] <= 100
    assert (content["status"], content["name"], content["epochs"]) == ("ok", "smoke", 2)
    assert (content["temperature"], content["alpha"], content["seed"]) == (4.0, 0.9, 0)
    assert content["student"]["model"] == content["baseline"]["model"] == "test_efficientnet"
    assert content["student"]["params"] < content["teacher"]["params"]
    result = read_result(smoke)
    assert result is not None
    assert to_json(result) == content, "reading loses nothing"
    for kind in ("train", "eval"):
        assert [row["epoch"] for row in read_metrics(smoke) if row["kind"] == kind] == [1, 2]
    said = (work / "said.txt").read_text()
    assert f"{content['student']['top1']:.1f}" in said
    assert "control (no teacher)" in said
    assert "timm.create_model('local-dir:" in said


def test_the_verdict_rests_on_the_predictions_that_the_run_keeps(work: Path, smoke: Path) -> None:
    result = read_result(smoke)
    assert result is not None
    assert result.student is not None
    assert result.baseline is not None
    assert result.verdict is not None
    student, control = read_predictions(smoke), read_predictions(work / str(result.baseline.run))
    assert student is not None
    assert control is not None
    assert [100 * answers.hits.mean() for answers in (student, control)] == pytest.approx(
        [result.student.top1, result.baseline.top1]
    )
    assert -np.log(student.likelihood).mean() == pytest.approx(result.student.nll, rel=1e-4)
    assert result.verdict.difference == pytest.approx(100 * (student.hits.mean() - control.hits.mean()))
    assert result.verdict.images == len(student.labels) == 16


def test_the_exported_student_is_the_trained_one(smoke: Path) -> None:
    """By timm alone, and the logits are those of the checkpoint."""
    exported = timm.create_model(f"local-dir:{smoke / 'student'}", pretrained=True).eval()
    checkpoint = timm.create_model("test_efficientnet", num_classes=4).eval()
    checkpoint.load_state_dict(last(smoke)["student"])
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(exported(images), checkpoint(images))
    assert exported.pretrained_cfg["input_size"] == (3, 32, 32)


@pytest.mark.parametrize("what", ["", "student", "checkpoints/last.pt", "latest"])
def test_evaluating_gives_the_numbers_of_the_result(what: str, work: Path, smoke: Path, run: Run) -> None:
    checkpoint = "runs/smoke/latest" if what == "latest" else str(smoke / what)
    before = files(work)
    code, out, err = run(work, "eval", f"checkpoint={checkpoint}", "format=json", *QUICK[:2])
    assert (code, err) == (0, "")
    assert files(work) == before
    numbers, result = json.loads(out), read_result(smoke)
    assert result is not None
    assert result.student is not None
    compared = {"params", "macs", "top1", "top5", "nll", "ece", "agreement", "kl_to_teacher"}
    assert {key: numbers[key] for key in compared} == {key: to_json(result.student)[key] for key in compared}


def test_evaluating_prints_a_table(work: Path, run: Run) -> None:
    code, out, err = run(work, "eval", "checkpoint=runs/smoke/latest", *QUICK[:2])
    assert (code, err) == (0, "")
    assert "top-1" in out


def test_a_finished_run_is_not_run_again(work: Path, smoke: Path, run: Run) -> None:
    before = files(smoke)
    code, out, _ = run(work, "train", "resume=runs/smoke/latest")
    assert code == 0
    assert "is finished already" in out
    assert {name for name, content in files(smoke).items() if before[name] != content} <= {".lock"}


# --- sweeps --------------------------------------------------------------------------------------------------------


def test_a_sweep_fits_teacher_and_control_once(tmp_path: Path, run: Run) -> None:
    code, out, err = run(tmp_path, "train", "-m", *SMOKE[1:], "distill.temperature=1,4")
    assert code == 0, err
    assert [len(list((tmp_path / "runs" / role).iterdir())) for role in ("teachers", "controls")] == [1, 1]
    assert out.count("teacher: training") == out.count("control: training") == 1
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    results = [read_result(sweep / str(job)) for job in range(2)]
    assert [result and result.temperature for result in results] == [1.0, 4.0]
    assert set(files(sweep / "1")) >= CONTRACT
    with (sweep / "sweep.csv").open(newline="") as handle:
        assert len(list(csv.DictReader(handle))) == 2
    assert json.loads((sweep / "sweep.json").read_text())


@pytest.mark.fault("R51")
def test_a_failing_job_ends_only_itself(tmp_path: Path, run: Run) -> None:
    swept = ("distill=hint", "distill.terms.hint.stage=9,-1", "trainer.epochs=1", "teacher.fit.epochs=1")
    code, _, err = run(tmp_path, "train", "-m", *SMOKE[1:], "baseline=false", f"out={tmp_path / 'sweep'}", *swept)
    assert code == 1
    results = [read_result(tmp_path / "sweep" / str(job)) for job in range(2)]
    assert [result and result.status for result in results] == ["failed", "ok"]
    assert "error: job 0: distill.terms.hint.stage=9" in err
    assert "Traceback" not in err
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as handle:
        assert len(list(csv.DictReader(handle))) == 2


# --- signals -------------------------------------------------------------------------------------------------------


def interrupt(folder: Path, number: signal.Signals, pattern: str, *arguments: str) -> tuple[int | None, str]:
    """Start a training, send a signal as soon as a file like ``pattern`` appears; exit code and stderr."""
    said = folder / "stderr.txt"
    process = begin(*SMOKE, "baseline=false", *arguments, cwd=folder, stderr=str(said))
    try:
        while not list(folder.glob(pattern)):
            assert process.is_alive(), said.read_text()
            time.sleep(0.02)
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(60)
        return process.exitcode, said.read_text()
    finally:
        process.kill()
        process.join()


def status(folder: Path) -> Any:
    result = read_result(folder)
    return result and result.status


@pytest.mark.fault("R47")
def test_ctrl_c_saves_and_the_run_can_go_on(tmp_path: Path, run: Run) -> None:
    long = ("trainer.epochs=10", "teacher.fit.epochs=1", "++student.args.drop_rate=0.3", "trainer.keep_optimizer=true")
    code, err = interrupt(tmp_path, signal.SIGINT, "stopped/metrics.jsonl", "out=stopped", *long)
    folder = tmp_path / "stopped"
    assert code == 130
    assert "continue with: distill train resume=" in err
    assert "Traceback" not in err
    assert status(folder) == "interrupted"
    assert 0 < last(folder)["step"] < 10 * 2, "the run was over before the signal came"
    assert run(tmp_path, "train", f"resume={folder}")[0] == 0
    assert status(folder) == "ok"
    assert run(tmp_path, *SMOKE, "baseline=false", "out=whole", *long)[0] == 0
    parts = ("student", "optimizer", "step", "best", "last")
    resumed, whole = last(folder), last(tmp_path / "whole")
    assert digest([resumed[part] for part in parts]) == digest([whole[part] for part in parts])
    for kind in ("train", "eval"):
        assert [row["epoch"] for row in read_metrics(folder) if row["kind"] == kind] == list(range(1, 11))
    code, _, err = run(tmp_path, "train", f"resume={folder}", "seed=1")
    assert code == 2
    assert "seed: 0 -> 1" in err


@pytest.mark.fault("R47")
def test_sigterm_while_the_teacher_is_fitted(tmp_path: Path, run: Run) -> None:
    long = ("teacher.fit.epochs=15", "out=stopped")
    code, err = interrupt(tmp_path, signal.SIGTERM, "runs/teachers/*/metrics.jsonl", *long)
    assert code == 143
    assert "Traceback" not in err
    assert status(tmp_path / "stopped") == "interrupted"
    (teacher,) = (tmp_path / "runs" / "teachers").iterdir()
    assert 0 < last(teacher)["step"] < 15 * 2
    assert run(tmp_path, "train", f"resume={tmp_path / 'stopped'}")[0] == 0
    assert (status(tmp_path / "stopped"), status(teacher)) == ("ok", "ok")
    assert [row["epoch"] for row in read_metrics(teacher) if row["kind"] == "eval"] == list(range(1, 16))


# --- mistakes ------------------------------------------------------------------------------------------------------


def refused(answer: tuple[int, str, str], *expected: str) -> None:
    """Exit 2, and one line on stderr that says what and where."""
    code, _, err = answer
    assert code == 2, err
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for words in expected:
        assert words in lines[0]


def images(folder: Path, classes: int = 2, each: int = 8) -> Path:
    random = np.random.RandomState(0)
    for part in ("train", "val"):
        for label in range(classes):
            (folder / part / f"class{label}").mkdir(parents=True)
            for number in range(each):
                pixels = random.randint(0, 255, (20, 20, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / f"class{label}" / f"{number}.png")
    return folder


@pytest.mark.fault("R50")
def test_an_existing_folder_is_not_touched(work: Path, smoke: Path, run: Run) -> None:
    before = files(smoke)
    refused(run(work, *SMOKE, f"out={smoke}"), f"out={smoke}", f"resume={smoke}")
    assert files(smoke) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["dataset=folder", "dataset.root=nowhere"], ["dataset.root=nowhere: does not exist"]),
        (["distill.temperature=0"], ["distill.temperature=0", "above 0"]),
        (["distill.alpha=2"], ["distill.alpha=2", "[0, 1]"]),
        (["trainer.device=gpu"], ["trainer.device='gpu'", "did you mean 'cuda'"]),
        (["student.name=resnt18"], ["student.name=resnt18", "'resnet18'"]),
        (["teacher.checkpoint=nowhere.pt"], ["teacher.checkpoint=nowhere.pt: does not exist"]),
        (["trainer.batch_size=0"], ["trainer.batch_size=0"]),
    ],
)
def test_a_mistake_in_the_config(arguments: list[str], expected: list[str], tmp_path: Path, run: Run) -> None:
    refused(run(tmp_path, *SMOKE, *arguments), *expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["distill.terms.kll.weight=1"], ["distill.terms.kll: no such term", "'kl'"]),
        (["distill.terms.kl.temprature=2"], ["distill.terms.kl.temprature", "'temperature'"]),
        (["distill.terms.kl.weight=heavy"], ["distill.terms.kl.weight=heavy", "float"]),
        (["distill.terms.hint.stage=9"], ["distill.terms.hint.stage=9", "stages 0 to"]),
        (["teacher.fit.mode=never"], ["teacher.fit.mode=never"]),
        (["distill=cat_kd", "student.name=test_vit"], ["distill.terms.cat_kd: test_vit has no class maps"]),
        (["distill=cat_kd", "teacher.assistants=[{name: test_vit}]"], ["cat_kd: test_vit has no class maps"]),
        (["distill=ofd", "teacher.name=test_vit"], ["distill.terms.ofd", "test_vit ends neither in an activation"]),
    ],
)
def test_a_mistake_that_needs_the_models(arguments: list[str], expected: list[str], tmp_path: Path, run: Run) -> None:
    refused(run(tmp_path, *SMOKE, *arguments), *expected)
    assert list(tmp_path.iterdir()) == [], "before a folder is claimed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
@pytest.mark.fault("R32")
def test_a_device_that_is_absent(device: str, tmp_path: Path, run: Run) -> None:
    refused(run(tmp_path, *SMOKE, f"trainer.device={device}"), f"trainer.device={device}", "which has cpu")


def test_broken_images(tmp_path: Path, run: Run) -> None:
    root = images(tmp_path / "images")
    folder = ("dataset=folder", f"dataset.root={root}", "dataset.image_size=32")
    (root / "train" / "class1" / "3.png").write_bytes(b"no image at all")
    refused(run(tmp_path, *PLAIN, *folder), "3.png")
    (root / "train" / "class1" / "3.png").unlink()
    shutil.rmtree(root / "train" / "class1")
    (root / "train" / "class1").mkdir()
    refused(run(tmp_path, *PLAIN, *folder), "class1")


@pytest.mark.fault("R8")
def test_a_teacher_of_other_classes(work: Path, smoke: Path, tmp_path: Path, run: Run) -> None:
    root = images(tmp_path / "images", classes=4)
    teacher = ("teacher.name=test_efficientnet", f"teacher.checkpoint={smoke}")
    refused(run(tmp_path, *PLAIN, *teacher, "dataset=digits", "dataset.image_size=32"), str(smoke), "10 of the data")
    # As many classes, but others: their names travel with the weights.
    data = ("dataset=folder", f"dataset.root={root}", "dataset.image_size=32")
    refused(run(tmp_path, *PLAIN, *teacher, *data), "its classes are not the 4 of the data", "pattern 0")
    refused(run(tmp_path, *PLAIN, f"teacher.checkpoint={smoke}"), "test_efficientnet", "test_resnet")
    refused(run(tmp_path, "eval", f"checkpoint={smoke}", *data), "its 4 classes are not the 4 of")


def test_damaged_weights(smoke: Path, tmp_path: Path, run: Run) -> None:
    broken = tmp_path / "weights.pt"
    content = bytearray((smoke / "checkpoints" / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    data = ("dataset=fake", "dataset.classes=4", "dataset.samples=64")
    for change, words in ((None, "checksum"), (b"", "empty"), (b"<html>", "web page"), (content[:999], "truncated")):
        if change is not None:
            broken.write_bytes(change)
        refused(run(tmp_path, "eval", f"checkpoint={broken}", *data), "weights.pt", words)


# --- other data ----------------------------------------------------------------------------------------------------


def test_images_without_labels_are_learned_from_the_student_of_another_run(
    smoke: Path, tmp_path: Path, run: Run
) -> None:
    random = np.random.RandomState(0)
    for number in range(24):
        folder = tmp_path / "photos" / ("holiday" if number % 2 else "")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 256, (32, 40, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    arguments = ("train", "dataset=unlabeled", "dataset.root=photos", "dataset.image_size=32", *QUICK)
    arguments += ("teacher.name=test_efficientnet", f"teacher.checkpoint={smoke}", "student.name=test_resnet")
    arguments += ("trainer.batch_size=8",)
    code, _, err = run(tmp_path, *arguments, "out=refused")
    assert (code, err.strip().endswith("set distill.alpha=1, or distill.terms.ce.weight=0")) == (2, True), err
    code, out, err = run(tmp_path, *arguments, "out=run", "distill.alpha=1")
    assert code == 0, err
    assert "control: none, as no training image has a label" in out
    result = read_result(tmp_path / "run")
    assert result is not None
    assert result.student is not None
    assert result.dataset is not None
    assert (result.student.top1, result.baseline) == (None, None)
    assert result.student.agreement is not None
    assert (result.dataset.train, result.dataset.val, result.dataset.labelled) == (22, 2, 0)
    code, out, err = run(tmp_path, "eval", "checkpoint=run", "format=json", *QUICK[:2])
    assert code == 0, err
    numbers = json.loads(out)
    assert numbers["agreement"] == result.student.agreement
    assert numbers["kl_to_teacher"] == result.student.kl_to_teacher
    exported = json.loads((tmp_path / "run" / "student" / "config.json").read_text())
    assert exported["label_names"] == [f"pattern {number}" for number in range(4)]

"""Forty mistakes that users make: each is one line with the key, the value and the fix, exit code 2, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

# The command line; then what the line must hold: the key, the value, and the fix.
MISTAKES: list[tuple[str, str, str, str]] = [
    # Keys.
    ("train lr=0.1", "lr", "0.1", "optimizer.lr=0.1"),
    ("train epochs=5", "epochs", "5", "trainer.epochs=5"),
    ("train batch_size=32", "batch_size", "32", "trainer.batch_size=32"),
    ("train T=4", "T", "4", "distill.temperature=4"),
    ("train temperature=2", "temperature", "2", "distill.temperature=2"),
    ("train distill.temprature=2", "distill.temprature", "2", "distill.temperature=2"),
    ("train +distill.temprature=2", "distill.temprature", "2", "distill.temperature=2"),
    ("train model=resnet18", "model", "resnet18", "student.name=resnet18"),
    ("train trainer.num_workers=4", "trainer.num_workers", "4", "trainer.workers=4"),
    ("train learning_rate=1e-3", "learning_rate", "1e-3", "optimizer.lr=1e-3"),
    ("train output_dir=here", "output_dir", "here", "out=here"),
    ("train +trainer.gpus=2", "trainer.gpus", "2", "torchrun --nproc-per-node"),
    ("train num_classes=10", "num_classes", "10", "leave it out"),
    ("train dataset.path=photos", "dataset.path", "photos", "dataset=hf"),
    ("train dataset.root=photos", "dataset.root", "photos", "dataset=folder"),
    ("train optimizer.momentum=0.8", "optimizer.momentum", "0.8", "optimizer=sgd"),
    ("train schedule.milestones=[2,4]", "schedule.milestones", "[2,4]", "multistep"),
    ("train distill=none teacher.checkpoint=photos", "teacher.checkpoint", "photos", "distill=kd"),
    ("train distill.name=dkd", "distill.name", "dkd", "distill=dkd"),
    ("train 'teacher.members=[{nam: resnet18}]'", "teacher.members", "nam", "'name'"),
    # Groups and models.
    ("train teacher=resnet34", "teacher", "resnet34", "teacher.name=resnet34"),
    ("train student.name=resnt18", "student.name", "resnt18", "'resnet18'"),
    ("train distill=kl", "distill", "kl", "distill.terms.kl.weight=1"),
    ("train augment=mixup", "augment", "mixup", "augment.mixup=1"),
    ("train dataset=photos", "dataset", "photos", "dataset=folder dataset.root=photos"),
    ("train experiment=smok", "experiment", "smok", "'smoke'"),
    ("train optimizer=adam", "optimizer", "adam", "'adamw'"),
    ("train teacher.members=[resnet18]", "teacher.members", "resnet18", "[{name: resnet18}]"),
    # Values.
    ("train distill.temperature=hot", "distill.temperature", "hot", "expected number"),
    ("train trainer.epochs=ten", "trainer.epochs", "ten", "expected whole number"),
    ("train baseline=maybe", "baseline", "maybe", "expected true or false"),
    ("train seed=1,2", "seed", "1,2", "add -m"),
    ("train trainer.device=gpu", "trainer.device", "gpu", "'cuda'"),
    ("train dataset=folder dataset.root=C:\\\\photos", "dataset.root", "C:\\photos", "with /"),
    ("train dataset=folder dataset.root=phtos", "dataset.root", "phtos", "'photos'"),
    ("train schedule=multistep schedule.milestones=\"'[2,4]'\"", "schedule.milestones", "[2,4]", "list of whole"),
    # Words and flags.
    ("trian", "command", "trian", "'train'"),
    ("train --epochs 10", "--epochs", "10", "trainer.epochs=10"),
    ("train --lr=0.1", "--lr", "0.1", "optimizer.lr=0.1"),
    ("train seed = 3", "seed", "3", "seed=3"),
    ("train resnet18", "form key=value", "resnet18", "student=resnet18"),
    ("train kd", "form key=value", "kd", "distill=kd"),
    ("eval photos", "form key=value", "photos", "checkpoint=photos"),
    ("train -m seed=3", "-m", "swept", "leave -m out"),
    ("train --mutlirun", "flag", "--mutlirun", "'--multirun'"),
    ("show modles", "topic", "modles", "'models'"),
]
# All of them in one process in which torch, torchvision and timm cannot be imported.
DRIVER = """
import contextlib, io, json, shlex, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision") or name.startswith("timm."):
            raise RuntimeError("imported too early: " + name)

sys.meta_path.insert(0, Block())
from distillcli.cli import run

answers = []
for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(shlex.split(line))
    answers.append([code, out.getvalue(), err.getvalue()])
json.dump(answers, sys.stdout)
"""


@dataclass(frozen=True)
class Told:
    code: int
    stdout: str
    stderr: str


def told(lines: list[str], folder: Path) -> list[Told]:
    """What the command line answers to each line, in ``folder``, in a process that can import nothing heavy."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(lines),
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "COLUMNS": "80", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [Told(*answer) for answer in json.loads(done.stdout)]


@pytest.mark.fault("F1.2", "F5.11", "R1", "R2", "R3", "R32")
def test_common_mistakes_are_one_line_with_key_value_and_fix(tmp_path: Path) -> None:
    assert len(MISTAKES) >= 40
    (tmp_path / "photos").mkdir()
    wrong = []
    for (line, key, value, fix), answer in zip(MISTAKES, told([line for line, *_ in MISTAKES], tmp_path), strict=True):
        one_line = answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1 and not answer.stdout
        if answer.code != 2 or not one_line or not all(part in answer.stderr for part in (key, value, fix)):
            wrong.append((line, answer))
    assert wrong == []
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]

"""distill runs: what it lists, what it deletes and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Distill

from distillcli.commands import runs, show
from distillcli.errors import UserError
from distillcli.runs.inventory import describe


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_run(folder: str, result: dict[str, object] | None = None, changed: int = 0) -> Path:
    """A run folder as its files would be, last changed ``changed`` seconds after the start of time."""
    path = Path(folder)
    path.mkdir(parents=True)
    config = {"name": "kd", "seed": 3, "student": {"name": "resnet18"}, "teacher": {"name": "resnet50"}}
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"dataset": {"name": "digits"}}))
    (path / "environment.json").write_text(json.dumps({"overrides": ["seed=3", "optimizer.lr=0.1"]}))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    for file in path.iterdir():
        os.utime(file, (changed, changed))
    return path


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    capsys.readouterr()
    runs.run(["ls", *words, "--json"])
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


HOLD = """
import sys
from pathlib import Path
from distillcli.runs.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    """Another process works in the folder, and is killed in the end."""
    command = [sys.executable, "-c", HOLD, str(folder.absolute())]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "held"
        yield
        process.kill()


@pytest.mark.fault("F3.5", "F6.10")
def test_every_folder_with_a_config_is_listed_with_its_state(capsys: pytest.CaptureFixture[str]) -> None:
    ok = {"status": "ok", "seed": 1, "student": {"model": "resnet18", "top1": 91.0}, "baseline": {"top1": 90.5}}
    make_run("runs/kd/1", ok, changed=1)
    make_run("runs/kd/2", changed=2)
    make_run("runs/kd/3", {"status": "interrupted"}, changed=3)
    make_run("runs/kd/4", {"status": "failed"}, changed=4)
    held = make_run("runs/kd/5")
    Path("runs/kd/latest").symlink_to("5")
    with held_by_another(held):
        found = listed(capsys)
    assert [(run["run"], run["state"]) for run in found] == [
        ("runs/kd/1", "ok"),
        ("runs/kd/2", "killed"),
        ("runs/kd/3", "interrupted"),
        ("runs/kd/4", "failed"),
        ("runs/kd/5", "running"),
    ]
    assert describe(held).state == "killed", "a lock ends with its process"
    assert [found[0][key] for key in ("top1", "control_top1", "seed")] == [91.0, 90.5, 1]
    planned = {"student": "resnet18", "teacher": "resnet50", "dataset": "digits", "seed": 3}
    assert [{key: run[key] for key in planned} for run in found[1:]] == [planned] * 4
    assert found[1]["overrides"] == ["seed=3", "optimizer.lr=0.1"]


def test_runs_are_filtered_and_sorted(capsys: pytest.CaptureFixture[str]) -> None:
    for number, top1 in enumerate((50.0, 70.0, 60.0)):
        make_run(f"runs/a{number}", {"status": "ok", "student": {"top1": top1}}, changed=number)
    make_run("runs/b", {"status": "failed"})
    assert [run["run"] for run in listed(capsys, "state=ok", "sort=top1")] == ["runs/a0", "runs/a2", "runs/a1"]
    assert [run["run"] for run in listed(capsys, "runs/b")] == ["runs/b"]
    assert listed(capsys, "runs=elsewhere") == []
    runs.run(["ls", "a1"])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["run", "state", "student"]
    assert row.startswith("runs/a1  ok")
    show.run(["runs"])
    assert "runs/a0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: distill runs ls"),
        (["list"], "usage: distill runs ls"),
        (["ls", "state=done"], "state=done: one of ok, failed, interrupted, running, killed"),
        (["ls", "sort=topl"], "did you mean 'top1'"),
        (["ls", "--jsn"], "unknown flag '--jsn'"),
        (["show", "runs/kd/2"], "runs/kd/2: does not exist; did you mean 'runs/kd/1'"),
        (["show", "runs"], "runs: is no run folder"),
        (["rm", "runs"], "runs: is no run folder"),
        (["prune", "runs/kd/1"], "runs/kd/1: killed; only a finished run"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str) -> None:
    make_run("runs/kd/1")
    with pytest.raises(UserError) as caught:
        runs.run(words)
    assert message in str(caught.value)
    assert Path("runs/kd/1/config.yaml").exists()


def test_a_removed_run_leaves_latest_at_one_that_exists() -> None:
    for number in (1, 2):
        make_run(f"runs/kd/{number}")
    Path("runs/kd/latest").symlink_to("2")
    runs.run(["rm", "runs/kd/latest"])
    assert sorted(path.name for path in Path("runs/kd").iterdir()) == ["1", "latest"]
    assert Path("runs/kd/latest").resolve().name == "1"
    runs.run(["rm", "runs/kd/1"])
    assert list(Path("runs/kd").iterdir()) == []


def test_a_running_run_is_not_removed() -> None:
    held = make_run("runs/kd/1")
    with held_by_another(held), pytest.raises(UserError, match="a process is working in it"):
        runs.run(["rm", str(held)])
    assert (held / "config.yaml").exists()


def test_a_fit_that_other_runs_were_made_with_goes_only_with_them() -> None:
    make_run("runs/teachers/resnet50-abc", {"status": "ok", "role": "teacher"})
    user = {"status": "ok", "teacher": {"top1": 9, "runs": ["/elsewhere/runs/teachers/resnet50-abc"]}}
    make_run("runs/kd/1", user)
    with pytest.raises(UserError, match=r"runs/kd/1 was made with it"):
        runs.run(["rm", "runs/teachers/resnet50-abc"])
    runs.run(["rm", "runs/teachers/resnet50-abc", "runs/kd/1"])
    assert not Path("runs/kd/1").exists()
    assert not Path("runs/teachers/resnet50-abc").exists()


@pytest.mark.slow
@pytest.mark.fault("F6.11")
def test_a_real_run_is_pruned_and_still_known_to_be_finished(distill: Distill, tmp_path: Path) -> None:
    arguments = ("experiment=smoke", "distill=none", "baseline=false", "trainer.epochs=1", "dataset.samples=32")
    assert distill("train", *arguments, "trainer.threads=1", "trainer.keep_optimizer=true", "out=run").code == 0
    assert distill("runs", "prune", "run", "runs=.").stdout.startswith("freed: ")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["best.pt", "last.pt"]
    assert distill("runs", "prune", "run").stdout == "nothing to free\n"
    (tmp_path / "run" / "result.json").unlink()
    resumed = distill("train", "resume=run", "trainer.keep_optimizer=false")
    assert (resumed.code, "resumed after its last epoch, 1" in resumed.stdout) == (0, True)


def test_a_sweep_is_removed_with_its_jobs() -> None:
    for job in (0, 1):
        make_run(f"runs/sweeps/1/{job}", {"status": "ok"})
    Path("runs/sweeps/1/multirun.yaml").write_text("")
    runs.run(["rm", "runs/sweeps/1"])
    assert not Path("runs/sweeps/1").exists()

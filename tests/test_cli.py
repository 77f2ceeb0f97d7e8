"""The real command in a process of its own: exit codes, one-line errors, and nothing heavy before it is needed."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Answer, Distill
from test_mistakes import told

from distillcli.cli import run
from distillcli.commands.table import COMMANDS
from distillcli.errors import Interrupted, NumericError, UserError


@pytest.fixture
def light(distill_process: Distill, tmp_path: Path) -> Distill:
    """``distill`` in a Python where importing torch, timm or torchvision is an error."""
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'torchvision') or name.startswith('timm.'):\n"
        "            raise RuntimeError('imported too early: ' + name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )

    def run(*args: str, cwd: Path | None = None) -> Answer:
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        return distill_process(
            *args, cwd=cwd or folder, env={"PYTHONPATH": f"{blocker}:{Path(__file__).parent.parent}"}
        )

    return run


def test_the_blocker_blocks(light: Distill) -> None:
    assert "imported too early" in light("doctor").stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], *[[name, "--help"] for name in COMMANDS]])
def test_help_needs_nothing_heavy(light: Distill, arguments: list[str]) -> None:
    answer = light(*arguments)
    assert answer.code == 0
    assert "distill" in answer.stdout
    assert answer.stderr == ""


def test_help_imports_no_library() -> None:
    code = (
        "import sys; from distillcli.cli import run; run(['train', '--help']); "
        "print([m for m in ('rich', 'hydra', 'omegaconf', 'numpy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_config_is_shown_without_torch(light: Distill) -> None:
    answer = light("train", "seed=3", "--cfg", "job", "--package", "trainer")
    assert (answer.code, answer.stderr) == (0, "")
    assert "epochs: 10" in answer.stdout


MISTAKES = [
    (["trian"], "unknown command 'trian'; did you mean 'train'?"),
    (["--halp"], "unknown flag '--halp'"),
    (["train", "distill.temprature=2"], "unknown key distill.temprature=2; did you mean distill.temperature=2?"),
    (["train", "+distill.temprature=2"], "unknown key distill.temprature=2; did you mean distill.temperature=2?"),
    (["train", "temperature=2"], "did you mean distill.temperature=2?"),
    (["train", "student.name=resnt18"], "did you mean 'resnet18'"),
    (["train", "dataset=folder"], "dataset.root is missing"),
    (["train", "dataset=folder", "dataset.root=nowhere"], "dataset.root=nowhere: does not exist"),
    (["train", "distill.terms.kll.weight=2"], "distill.terms.kll: no such term; did you mean 'kl'?"),
    (["train", "distill.terms.kl.weigt=2"], "unknown key distill.terms.kl.weigt=2; did you mean 'weight'?"),
    (["train", "distill.terms.kl.weight=high"], "distill.terms.kl.weight=high: expected float"),
    (["train", "distill=at", "distill.terms.at.power=0"], "distill.terms.at.power=0: must be above 0"),
    (["train", "distill=at", "distill.terms.at.form=cod"], "one of code, paper; did you mean 'code'?"),
    (["train", "distill.alpha=0", "distill.terms.ce.weight=0"], "every term has weight 0"),
    (["bench", "distill.terms.kl.weigt=2"], "unknown key distill.terms.kl.weigt=2; did you mean 'weight'?"),
    (["show", "views", "distill.terms.kl.weigt=2"], "unknown key distill.terms.kl.weigt=2; did you mean 'weight'?"),
    (["train", "distill.temperature=hot"], "distill.temperature=hot: expected number"),
    (["train", "seed=1.5"], "seed=1.5: expected whole number"),
    (["train", "seed=${oc.env:DISTILL_ABSENT}"], "seed: "),
    (["train", "seed=1,2"], "add -m"),
    (["train", "name=[1,2"], "quote the value"),
    (["train", "--mutlirun"], "unknown flag --mutlirun; did you mean '--multirun'?"),
    (["train", "--cfg"], "--cfg needs one of job"),
    (["train", "--cfg", "job", "--package", "trainr"], "did you mean trainer"),
    (["train", "word"], "'word' is not of the form key=value"),
    (["train", "my_token=abc"], "HF_TOKEN"),
    (["train", "--config-dir", "nowhere"], "nowhere is not a folder"),
    (["eval"], "distill eval needs checkpoint="),
    (["eval", "checkpoint=resnt18"], "did you mean 'resnet18'"),
    (["eval", "checkpoint=resnet18", "dataset.root=x"], "dataset=folder dataset.root=PATH"),
    (["show", "modles"], "did you mean 'models'?"),
    (["show", "models", "resnt18"], "did you mean 'resnet18'"),
    (["configs", "cp", "kd", "x"], "did you mean distill/kd?"),
    (["completion", "tcsh"], "bash, zsh, fish"),
]


@pytest.mark.fault("R1", "R2")
def test_a_mistake_is_one_line_and_two(tmp_path: Path) -> None:
    lines = [shlex.join(arguments) for arguments, _ in MISTAKES]
    for (arguments, expected), answer in zip(MISTAKES, told(lines, tmp_path), strict=True):
        assert (answer.code, answer.stdout) == (2, ""), (arguments, answer)
        assert answer.stderr.startswith("error: "), arguments
        assert answer.stderr.count("\n") == 1, arguments
        assert expected in answer.stderr, arguments
        assert "abc" not in answer.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("F2.4")
def test_a_misspelt_option_of_a_term_leaves_the_runs_as_they_were(light: Distill, tmp_path: Path) -> None:
    runs = tmp_path / "work" / "runs" / "smoke"
    (runs / "before").mkdir(parents=True)
    (runs / "latest").symlink_to("before")
    for out in (["out=typo"], []):
        answer = light("train", "experiment=smoke", "distill.terms.kl.weigt=2", *out)
        assert (answer.code, answer.stdout) == (2, "")
        assert answer.stderr == "error: unknown key distill.terms.kl.weigt=2; did you mean 'weight'?\n"
    assert [path.name for path in runs.parent.parent.iterdir()] == ["runs"]
    assert {path.name for path in runs.iterdir()} == {"before", "latest"}
    assert (runs / "latest").readlink() == Path("before")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("mend\nthis"), 2, "error: mend this\n"),
        (NumericError("loss is nan"), 1, "error: loss is nan\n"),
        (Interrupted("resume with ...", 143), 143, "resume with ...\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ZeroDivisionError("bug"), 1, None),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    message: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(config: object, job: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, COMMANDS["train"].module, SimpleNamespace(run=fail))
    assert run(["train"]) == code
    stderr = capsys.readouterr().err
    assert stderr == message or (message is None and stderr.startswith("Traceback"))


def test_a_config_error_is_quick(distill_process: Distill) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    distill_process("train", "distill.temprature=2")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Time of the processor, which other processes do not lengthen.
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 1.5


@pytest.mark.fault("R66")
def test_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    line = f"{sys.executable} -m distillcli show models | head -1"
    done = subprocess.run(
        line, shell=True, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("model")
    assert done.stderr == ""


def test_doctor_survives_a_broken_torchvision(distill_process: Distill, tmp_path: Path) -> None:
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    answer = distill_process("doctor", env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parent.parent}"})
    assert answer.code == 0, answer.stderr
    assert "BROKEN" in answer.stdout
    assert "nms does not exist" in answer.stdout

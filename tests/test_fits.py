"""Teachers and controls: fitted once, found again by their recipe, continued where they stopped, one at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from safetensors.torch import load_file
from tiny import CPU, STEPS, Watch, digest, files, last, open_tiny, tiny

from distillcli.config.schema import TrainConfig
from distillcli.distillation import folders
from distillcli.distillation.fits import fit_once
from distillcli.distillation.recipes import control_recipe, teacher_recipe
from distillcli.distillation.teaching import find_teacher
from distillcli.errors import Interrupted, UserError
from distillcli.runs.folder import locked
from distillcli.runs.result import Result, read_result
from distillcli.teachers.frozen import members_of
from distillcli.types import LOGITS_ONLY

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")


def config_in(folder: Path, *overrides: str) -> TrainConfig:
    return tiny(f"runs={folder}", "teacher.fit.epochs=1", "trainer.epochs=1", *overrides)


def control(config: TrainConfig, watch: Watch | None = None) -> Path:
    return fit_once(control_recipe(config), open_tiny(config), (watch or Watch()).session)


def teacher(config: TrainConfig, watch: Watch | None = None) -> Path:
    return fit_once(teacher_recipe(members_of(config)[0], CPU.device), open_tiny(config), (watch or Watch()).session)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def known(runs: Path) -> dict[str, Path]:
    """The teacher and the control of the default recipe, fitted."""
    config = config_in(runs)
    return {"teacher": teacher(config), "control": control(config)}


def test_a_fit_is_a_run_folder(known: dict[str, Path], runs: Path) -> None:
    for role, folder in known.items():
        assert folder.parent == runs / f"{role}s"
        result = read_result(folder)
        assert result is not None
        assert (result.status, result.role, result.objective) == ("ok", role, "1·ce")
        expected = {"config.yaml", "command.txt", "environment.json", "classes.txt", "metrics.jsonl"}
        expected |= {"checkpoints/last.pt", "checkpoints/best.pt", "student/config.json", "student/model.safetensors"}
        assert expected <= set(files(folder))


def test_a_fit_is_found_again(known: dict[str, Path], runs: Path) -> None:
    before = files(runs)
    watch = Watch()
    config = config_in(runs)
    assert {"teacher": teacher(config, watch), "control": control(config, watch)} == known
    assert watch.labels == []
    changed = {name for name, content in files(runs).items() if before[name] != content}
    assert {Path(name).name for name in changed} <= {".lock"}


# What only the distilled student knows, or what changes where and how fast and not what is computed.
SAME = ("distill.temperature=2", "distill.alpha=0.5", "distill=hard", "name=other", "trainer.workers=1")
SAME += (
    "baseline=false",
    "trainer.checkpoint_minutes=1",
    "trainer.keep_optimizer=true",
    "trainer.threads=1",
    "teacher.name=test_vit",
)


@pytest.mark.parametrize("override", SAME)
def test_what_is_not_the_controls_business(override: str, known: dict[str, Path], runs: Path) -> None:
    watch = Watch()
    assert control(config_in(runs, override), watch) == known["control"]
    assert watch.labels == []


# The same names are the same folder wherever the runs live.
def test_the_place_is_no_part_of_the_recipe(known: dict[str, Path], tmp_path: Path) -> None:
    assert control(config_in(tmp_path)).name == known["control"].name


OTHER = ("seed=1", "trainer.epochs=2", "augment=none", "student.name=test_resnet", "dataset.samples=80")
OTHER += ("optimizer.lr=0.01", "trainer.batch_size=32", "dataset.image_size=40", "distill.terms.ce.smoothing=0.1")
OTHER += ("student.image_size=24", "trainer.ema=0.9", "schedule=constant", "trainer.precision=bf16")


def test_what_makes_another_control(known: dict[str, Path], runs: Path) -> None:
    """Each change names a folder of its own. The fit itself is cut short: only the names count."""
    names = {known["control"].name}
    for override in OTHER:
        with pytest.raises(Interrupted):
            control(config_in(runs, override), Watch(stop_after=1))
        found = {path.name for path in (runs / "controls").iterdir()}
        assert len(found - names) == 1, override
        names = found


@pytest.mark.parametrize("override", ["student.name=test_resnet", "trainer.epochs=2", "distill.alpha=0.3"])
def test_what_is_not_the_teachers_business(override: str, known: dict[str, Path], runs: Path) -> None:
    assert teacher(config_in(runs, override)) == known["teacher"]


@pytest.mark.parametrize("override", ["teacher.fit.epochs=2", "teacher.fit.lr=0.1", "teacher.name=test_vit"])
def test_what_makes_another_teacher(override: str, known: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        teacher(config_in(tmp_path, override), Watch(stop_after=1))
    assert [path.name for path in (tmp_path / "teachers").iterdir()] != [known["teacher"].name]


def test_an_interrupted_fit_is_continued(known: dict[str, Path], tmp_path: Path) -> None:
    config = config_in(tmp_path)
    with pytest.raises(Interrupted):
        control(config, Watch(stop_after=2))
    (folder,) = (tmp_path / "controls").iterdir()
    assert (read_result(folder) or Result()).status == "interrupted"
    watch = Watch()
    assert control(config, watch) == folder
    assert watch.steps == STEPS - 2
    assert digest(last(folder)) == digest(last(known["control"]))


def test_a_teacher_that_was_fitted_teaches(known: dict[str, Path], runs: Path) -> None:
    config = config_in(runs)
    found, run = find_teacher(config, open_tiny(config), LOGITS_ONLY, Watch().session)
    assert run == [str(known["teacher"])]
    assert digest(found.backbone.net.state_dict()) == digest(last(known["teacher"])["student"])


def test_a_teacher_is_not_fitted_against_the_will(runs: Path) -> None:
    config = config_in(runs, "teacher.fit.mode=never")
    with pytest.raises(UserError, match=r"teacher\.fit\.mode=never: test_resnet has no weights for the 4 classes"):
        find_teacher(config, open_tiny(config), LOGITS_ONLY, Watch().session)


def test_weights_that_are_given_are_not_fitted(known: dict[str, Path], tmp_path: Path) -> None:
    config = config_in(tmp_path, f"teacher.checkpoint={known['teacher']}")
    watch = Watch()
    found, run = find_teacher(config, open_tiny(config), LOGITS_ONLY, watch.session)
    assert (run, watch.labels) == ([None], [])
    assert digest(found.backbone.net.state_dict()) == digest(last(known["teacher"])["student"])


# --- damage ------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the weights": lambda folder: flip(folder / "student" / "model.safetensors"),
    "no weights": lambda folder: (folder / "student" / "model.safetensors").unlink(),
    "a torn card": lambda folder: os.truncate(folder / "student" / "config.json", 100),
    "no export": lambda folder: shutil.rmtree(folder / "student"),
    "a torn result": lambda folder: os.truncate(folder / "result.json", 100),
    "a bit of the result": lambda folder: flip(folder / "result.json"),
    "a result of other types": lambda folder: (folder / "result.json").write_text('{"status": "ok", "student": 3}'),
}


@pytest.mark.fault("F1.8", "F4.5")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_fit_is_made_again_from_its_checkpoint(
    damage: Callable[[Path], object], known: dict[str, Path], runs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(runs, tmp_path / "runs") / known["control"].relative_to(runs)
    damage(folder)
    watch, config = Watch(), config_in(tmp_path / "runs")
    assert control(config, watch) == folder
    assert watch.steps == 0
    found, whole = read_result(folder), read_result(known["control"])
    assert found is not None
    assert whole is not None
    assert found.student is not None
    assert whole.student is not None
    assert (found.student.nll, found.last, found.best) == (whole.student.nll, whole.last, whole.best)
    assert load_file(folder / "student" / "model.safetensors").keys()
    watch = Watch()
    assert control(config, watch) == folder
    assert (watch.labels, watch.warnings) == ([], [])


def test_a_damaged_fit_without_a_checkpoint_is_trained_again(
    known: dict[str, Path], runs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(runs, tmp_path / "runs") / known["teacher"].relative_to(runs)
    flip(folder / "student" / "model.safetensors")
    shutil.rmtree(folder / "checkpoints")
    watch = Watch()
    assert teacher(config_in(tmp_path / "runs"), watch) == folder
    assert watch.steps == STEPS
    assert len(watch.warnings) == 2
    assert "model.safetensors is broken" in watch.warnings[0]
    assert "no checkpoint is left; beginning at epoch 1" in watch.warnings[1]
    assert digest(last(folder)) == digest(last(known["teacher"]))


@pytest.mark.fault("F4.4")
def test_a_finished_fit_is_only_read(known: dict[str, Path], runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is its folder made nor its lock taken: it may be somebody else's."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "locked", refuse)
        patch.setattr(Path, "mkdir", refuse)
        assert control(config_in(runs)) == known["control"]


@pytest.mark.fault("F4.4")
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "controls").write_text("in the way")
    with pytest.raises(UserError, match=r"controls/.* cannot be written .*runs="):
        control(config_in(tmp_path))


# --- the lock ------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from distillcli.runs.folder import locked
with locked(Path(sys.argv[1]), (lambda _: time.sleep(0.05)) if sys.argv[2] == "wait" else None):
    print("held", flush=True)
    sys.stdin.read()
print("freed", flush=True)
"""


def holder(folder: Path, how: str = "refuse") -> subprocess.Popen[str]:
    """A process that wants the folder, holds it until its stdin closes, and loads no torch."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.fault("R49")
def test_a_folder_belongs_to_one_process(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        assert line(first) == "held"
        taken = rf"another process is working in this folder \(pid {first.pid} on "
        with pytest.raises(UserError, match=taken), locked(tmp_path):
            pass
        with holder(tmp_path, "wait") as second:
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(1)  # it waits: it neither gives up nor goes on
            assert first.stdin is not None
            first.stdin.close()
            assert line(first) == "freed"
            assert line(second) == "held"
            with pytest.raises(UserError, match=rf"pid {second.pid} "), locked(tmp_path):
                pass
            second.kill()
    with locked(tmp_path):  # however it died, the folder is free
        assert (tmp_path / ".lock").read_text().startswith(f"pid {os.getpid()} on ")

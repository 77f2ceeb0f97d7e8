"""Every objective in configs/distill trains on real images and ends in a whole run; terms are combined by overrides."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import Distill
from sklearn.datasets import load_digits

from distillcli.config.job import Job
from distillcli.config.search import builtin_folder
from distillcli.distillation.folders import Spent
from distillcli.distillation.plan import check_weights, make_plan
from distillcli.distillation.whole import distill as distill_plan
from distillcli.runs.folder import read_metrics
from distillcli.runs.result import read_result
from distillcli.sources.open import open_source
from tests.tiny import Watch, tiny, train

pytestmark = pytest.mark.slow

PRESETS = sorted(path.stem for path in (builtin_folder() / "distill").glob("*.yaml"))
FEATURES = {"hint", "at", "nst", "fsp", "vid", "reviewkd", "embedding", "ab", "ft", "cat_kd", "ofd"}
QUICK = ("trainer.device=cpu", "trainer.threads=1", "trainer.channels_last=false", "trainer.batch_size=32")
QUICK += ("trainer.epochs=1", "baseline=false", "dataset=npz", "dataset.image_size=32", "teacher.trust=true")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits, a few of each of the ten classes."""
    pixels, labels = load_digits(return_X_y=True)
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=(pixels[:100] * 15).astype(np.uint8).reshape(-1, 8, 8), labels=labels[:100])
    return path


def fitted_teacher(name: str, digits: Path, folder: Path) -> Path:
    train(tiny("distill=none", f"student.name={name}", f"dataset.root={digits}", *QUICK), folder)
    return folder


@pytest.fixture(scope="module")
def taught_by(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its run folder."""
    return fitted_teacher("test_resnet", digits, tmp_path_factory.mktemp("teacher"))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_whole_run(
    preset: str, digits: Path, taught_by: Path, bare_ending: None, tmp_path: Path
) -> None:
    """Planned, trained, measured, exported and reported."""
    given = (f"teacher.checkpoint={taught_by}", "student.name=test_efficientnet", "teacher.name=test_resnet")
    config = tiny(f"distill={preset}", *given, *QUICK, f"dataset.root={digits}")
    plan = make_plan(config, open_source(config.dataset))
    check_weights(plan)
    result = distill_plan(plan, Job((), "distill train", None, None), tmp_path, Spent.on(tmp_path), Watch().session)
    assert result.status == "ok"
    assert (tmp_path / "student" / "model.safetensors").exists()
    assert "| student" in (tmp_path / "report.md").read_text("utf-8")
    row, numbers = read_metrics(tmp_path)
    assert {f"loss/{name}" for name in config.distill.terms} <= row.keys()
    assert math.isfinite(row["loss"])
    assert 0 < row["grad_norm"] < math.inf
    assert math.isfinite(numbers["nll"])


@pytest.mark.parametrize(
    ("teacher", "student", "refused"),
    [("test_resnet", "test_vit", {"cat_kd"}), ("test_vit", "test_resnet", {"cat_kd", "ofd"})],
)
def test_terms_of_features_join_convolutions_and_transformers(
    teacher: str, student: str, refused: set[str], digits: Path, distill: Distill, tmp_path: Path
) -> None:
    """All that are not refused (tests/test_end_to_end.py), in one objective."""
    terms = sorted(FEATURES - refused)
    added = [f"+distill.terms.{name}.weight=1" for name in terms] + ["+distill.terms.ft.prepare_epochs=1"]
    given = fitted_teacher(teacher, digits, tmp_path / "teacher")
    models = (f"student.name={student}", f"teacher.name={teacher}", f"teacher.checkpoint={given}")
    answer = distill("train", *models, *added, *QUICK, f"dataset.root={digits}", "out=run")
    assert answer.code == 0, answer.stderr
    row = next(row for row in read_metrics(tmp_path / "run") if row["kind"] == "train")
    assert all(math.isfinite(row[f"loss/{name}"]) for name in terms)
    assert "Load the student:" in answer.stdout


def test_terms_are_combined_by_overrides(digits: Path, taught_by: Path, distill: Distill, tmp_path: Path) -> None:
    added = ("+distill.terms.hint.weight=1", "+distill.terms.rkd.weight=0.5")
    models = ("student.name=test_efficientnet", "teacher.name=test_resnet")
    data = (*QUICK, f"dataset.root={digits}", f"teacher.checkpoint={taught_by}")
    answer = distill("train", "distill=kd", *added, *models, *data, "out=run")
    assert answer.code == 0, answer.stderr
    result = read_result(tmp_path / "run")
    assert result is not None
    assert (result.status, result.objective) == ("ok", "0.1·ce + 0.9·kl(T=4) + 0.9·hint + 0.45·rkd")
    row = next(row for row in read_metrics(tmp_path / "run") if row["kind"] == "train")
    parts = [share * row[f"loss/{name}"] for name, share in {"ce": 0.1, "kl": 0.9, "hint": 0.9, "rkd": 0.45}.items()]
    assert row["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert "Load the student:" in answer.stdout

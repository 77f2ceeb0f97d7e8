"""Every objective in configs/distill trains on real images, and terms are combined, by the command itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from conftest import Distill

from distillcli.config.search import builtin_folder
from distillcli.runs.folder import read_metrics
from distillcli.runs.result import read_result

pytestmark = pytest.mark.slow

PRESETS = sorted(path.stem for path in (builtin_folder() / "distill").glob("*.yaml"))
FEATURES = {"hint", "at", "nst", "fsp", "vid", "reviewkd", "embedding", "ab", "ft", "cat_kd", "ofd"}
DIGITS = (
    *(
        "dataset=digits",
        "trainer.device=cpu",
        "trainer.threads=1",
        "trainer.channels_last=false",
        "trainer.batch_size=128",
    ),
    *("trainer.epochs=1", "teacher.fit.epochs=1", "baseline=false"),
)


@pytest.mark.parametrize("first", range(6))
def test_every_preset_trains_and_ends_with_a_table(first: int, distill: Distill, tmp_path: Path) -> None:
    """In six sweeps, one after the other or beside each other."""
    presets = PRESETS[first::6]
    models = ("student.name=test_efficientnet", "teacher.name=test_resnet")
    answer = distill("train", "-m", f"distill={','.join(presets)}", *models, *DIGITS, "out=sweep")
    assert answer.code == 0, answer.stderr
    assert answer.stdout.count("Load the student:") == len(presets)
    for job, preset in enumerate(presets):
        folder = tmp_path / "sweep" / str(job)
        result, config = read_result(folder), yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
        assert result is not None
        assert (result.status, config["distill"]["name"]) == ("ok", preset)
        row, numbers = read_metrics(folder)
        assert {f"loss/{name}" for name in config["distill"]["terms"]} <= row.keys()
        assert math.isfinite(row["loss"])
        assert 0 < row["grad_norm"] < math.inf
        assert math.isfinite(numbers["nll"])


@pytest.mark.parametrize(
    ("teacher", "student", "refused"),
    [("test_resnet", "test_vit", {"cat_kd"}), ("test_vit", "test_resnet", {"cat_kd", "ofd"})],
)
def test_terms_of_features_join_convolutions_and_transformers(
    teacher: str, student: str, refused: set[str], distill: Distill, tmp_path: Path
) -> None:
    """All that are not refused (tests/test_end_to_end.py), in one objective."""
    terms = sorted(FEATURES - refused)
    added = [f"+distill.terms.{name}.weight=1" for name in terms] + ["+distill.terms.ft.prepare_epochs=1"]
    answer = distill("train", f"student.name={student}", f"teacher.name={teacher}", *added, *DIGITS, "out=run")
    assert answer.code == 0, answer.stderr
    row = next(row for row in read_metrics(tmp_path / "run") if row["kind"] == "train")
    assert all(math.isfinite(row[f"loss/{name}"]) for name in terms)
    assert "Load the student:" in answer.stdout


def test_terms_are_combined_by_overrides(distill: Distill, tmp_path: Path) -> None:
    added = ("+distill.terms.hint.weight=1", "+distill.terms.rkd.weight=0.5")
    models = ("student.name=test_efficientnet", "teacher.name=test_resnet")
    answer = distill("train", "distill=kd", *added, *models, *DIGITS, "out=run")
    assert answer.code == 0, answer.stderr
    result = read_result(tmp_path / "run")
    assert result is not None
    assert (result.status, result.objective) == ("ok", "0.1·ce + 0.9·kl(T=4) + 0.9·hint + 0.45·rkd")
    row = next(row for row in read_metrics(tmp_path / "run") if row["kind"] == "train")
    parts = [share * row[f"loss/{name}"] for name, share in {"ce": 0.1, "kl": 0.9, "hint": 0.9, "rkd": 0.45}.items()]
    assert row["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert "Load the student:" in answer.stdout

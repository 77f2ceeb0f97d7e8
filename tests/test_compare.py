"""``distill compare``: seeds together, tests that hold, and what it writes."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Distill
from test_page import Page
from test_report import make_result

from distillcli.report.pareto import Point, front
from distillcli.runs.predictions import Predictions, write_predictions

TEMPERATURES, ALPHAS, SEEDS = (1, 4, 16), (0.3, 0.6, 0.9), (0, 1)


def write_one(folder: Path, overrides: list[str], share: float, seed: int, val: float, **changes: object) -> Path:
    """A finished run that gets ``share`` of 400 images right, and its control."""
    labels = np.arange(400) % 10
    result = {**make_result(), "seed": seed, "overrides": [*overrides, f"seed={seed}"], **changes}
    for run, right in ((folder, share), (folder.parent / f"control{seed}", 0.7)):
        run.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(zlib.crc32(run.name.encode()))
        hits = generator.random(400) < right
        write_predictions(run, Predictions(labels, np.where(hits, labels, (labels + 1) % 10), np.ones(400, np.float32)))
        role = "student" if run == folder else "baseline"
        result[role] = {**result[role], "top1": 100 * float(hits.mean())}
    result["baseline"]["run"] = str(folder.parent / f"control{seed}")
    result["last"] = {"epoch": 10, "val_top1": val}
    result["teacher"]["macs"] *= 50
    (folder / "result.json").write_text(json.dumps(result), "utf-8")
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three temperatures, three alphas, two seeds; T=4 with alpha 0.9 is best on val, T=16 is bad."""
    for temperature in TEMPERATURES:
        for alpha in ALPHAS:
            for seed in SEEDS:
                share = 0.5 if temperature == 16 else 0.9 if (temperature, alpha) == (4, 0.9) else 0.8
                overrides = [f"distill.temperature={temperature}", f"distill.alpha={alpha}"]
                folder = tmp_path / "sweep" / f"{temperature}-{alpha}-{seed}"
                write_one(folder, overrides, share, seed, val=100 * share)
    return tmp_path / "sweep"


def test_a_sweep_over_two_keys_and_seeds(sweep: Path, distill: Distill, tmp_path: Path) -> None:
    answer = distill("compare", "sweep", "out=comparison")
    assert (answer.code, answer.stderr) == (0, "")
    assert "18 runs: 9 settings with 2 seeds each" in answer.stdout
    folder = tmp_path / "comparison"
    groups = json.loads((folder / "compare.json").read_text("utf-8"))["groups"]
    assert len(groups) == 9
    assert groups[0]["settings"] == {"distill.temperature": "4", "distill.alpha": "0.9"}
    assert groups[0]["to_best"] is None
    for group in groups:
        assert group["mean_top1"] == pytest.approx(np.mean(group["top1"]))
        assert group["to_control"]["difference"] == pytest.approx(group["mean_top1"] - group["mean_control_top1"])
        if group is not groups[0]:
            difference = group["mean_top1"] - groups[0]["mean_top1"]
            assert group["to_best"]["difference"] == pytest.approx(difference)
            assert group["to_best"]["adjusted_p_value"] >= group["to_best"]["p_value"]
        bad = group["settings"]["distill.temperature"] == "16"
        assert bad == (group["to_control"]["difference"] < 0 and group["to_control"]["adjusted_p_value"] < 0.05)
    with (folder / "compare.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [float(row["mean_top1"]) for row in rows] == [group["mean_top1"] for group in groups]
    html = Page((folder / "report.html").read_text("utf-8"))
    assert html.labels == ["Top-1 over distill.temperature and distill.alpha", "Top-1 against cost"]
    assert "Best on val: distill.temperature=4, distill.alpha=0.9" in html.words
    assert "Best on val: distill.temperature=4, distill.alpha=0.9" in (folder / "report.md").read_text("utf-8")


def test_json_is_all_that_is_printed(sweep: Path, distill: Distill) -> None:
    answer = distill("compare", "sweep/4-0.9-0", "sweep/4-0.9-1", "sweep/4-0.9-1", "--json")
    (group,) = json.loads(answer.stdout)
    assert sorted(group["seeds"]) == [0, 1], "a run that is named twice counts once"


def test_one_seed_each_is_compared_over_images_alone(sweep: Path, distill: Distill) -> None:
    answer = distill("compare", "sweep/4-0.9-0", "sweep/16-0.9-0")
    assert "over images, not over seeds" in " ".join(answer.stdout.split())
    assert "1 of 1 other settings are worse than the best beyond chance" in " ".join(answer.stdout.split())


def change(folder: Path, edit: Callable[[dict[str, object]], None]) -> None:
    result = json.loads((folder / "result.json").read_text("utf-8"))
    edit(result)
    (folder / "result.json").write_text(json.dumps(result), "utf-8")


def test_runs_that_only_their_results_tell_apart_are_not_one_group(sweep: Path, distill: Distill) -> None:
    change(sweep / "4-0.9-1", lambda result: result.update(objective="another"))
    answer = distill("compare", "sweep/4-0.9-0", "sweep/4-0.9-1", "--json")
    assert [list(group["settings"]) for group in json.loads(answer.stdout)] == [["objective"], ["objective"]]


def test_unfinished_runs_are_named_and_others_images_are_not_tested(sweep: Path, distill: Distill) -> None:
    change(sweep / "1-0.3-0", lambda result: result.update(status="failed", error="x"))
    labels = np.arange(300) % 10
    write_predictions(sweep / "1-0.6-0", Predictions(labels, labels, np.ones(300, np.float32)))
    answer = distill("compare", "sweep")
    words = " ".join(answer.stdout.split())
    assert "17 runs" in words
    assert "1-0.3-0: failed, not compared" in words
    assert "Nothing is tested: not all of these runs keep predictions for the same images" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "usage: distill compare RUN"),
        (("sweep", "--csv"), "unknown flag '--csv'"),
        (("nowhere",), "nowhere: does not exist"),
        (("sweep/4-0.9-0",), "one run that finished, and two are needed"),
        (("sweep", "out=sweep"), "out=sweep: the folder is not empty"),
        (("sweep", "out=a", "out=b"), "usage: distill compare RUN"),
    ],
)
def test_mistakes_are_one_line(sweep: Path, distill: Distill, arguments: tuple[str, ...], words: str) -> None:
    answer = distill("compare", *arguments)
    assert answer.code == 2
    assert words in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_nothing_on_the_front_is_beaten_and_all_else_is() -> None:
    generator = np.random.default_rng(0)
    points = [Point("student", "", float(top1), {"MACs": float(cost)}) for top1, cost in generator.random((40, 2))]
    points.append(Point("student", "unknown cost", 1.0, {"MACs": None}))

    def beaten(one: Point) -> bool:
        mine = one.costs["MACs"] or 0
        others = [other for other in points if other.costs["MACs"] is not None and other is not one]
        return any(other.top1 >= one.top1 and (other.costs["MACs"] or 0) <= mine for other in others)

    best = front(points, "MACs")
    assert {id(point) for point in best} == {id(point) for point in points[:-1] if not beaten(point)}

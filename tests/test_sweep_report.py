"""The table and the files at the end of a sweep."""

# ruff: noqa: RUF001

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from test_report import EVIL, make_result, picture

from distillcli.report import console
from distillcli.report.sweep import close_sweep
from distillcli.report.sweep_csv import csv_cell
from distillcli.report.sweep_jobs import Spread, parse_overrides, read_jobs, seed_summary, varying_keys


def write_sweep(folder: Path, jobs: Sequence[tuple[list[str], dict[str, Any]]]) -> Path:
    for index, (overrides, result) in enumerate(jobs):
        job = folder / str(index)
        job.mkdir(parents=True)
        result["overrides"] = ["+experiment=x", *overrides]
        (job / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def temperatures(folder: Path, top1: Sequence[float]) -> Path:
    return write_sweep(folder, [([f"distill.temperature={2**i}"], make_result(value)) for i, value in enumerate(top1)])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def failed(error: str) -> dict[str, Any]:
    return {
        **make_result(),
        "status": "failed",
        "error": error,
        "student": None,
        "best": None,
        "last": None,
        "seconds": None,
    }


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.CONSOLE, "_width", 100)


def test_nothing_happens_when_no_job_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "multirun.yaml").write_text("a: 1", encoding="utf-8")
    (tmp_path / ".submitit").mkdir()
    close_sweep(tmp_path)
    close_sweep(tmp_path / "missing")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "sweep.csv").exists()


def test_the_best_student_comes_first_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = temperatures(tmp_path, [92.0, 95.0, 91.0, 93.0])
    close_sweep(folder)
    assert [row["job"] for row in rows(folder)] == ["1", "3", "0", "2"]
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if line[:1].isdigit()]
    assert [line[0] for line in lines] == ["1", "3", "0", "2"]
    assert [line[1] for line in lines] == ["2", "8", "1", "4"]
    assert "experiment" not in out  # the same in every job
    assert out.count("teacher: resnet50") == 1
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert report.index("| 1 | 2 | 95.0") < report.index("| 2 | 4 | 91.0")
    assert "(sweep.png)" in report
    content = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    assert content["folder"] == str(folder)
    assert [entry["student"]["top1"] for entry in content["results"]] == [92.0, 95.0, 91.0, 93.0]


@pytest.mark.fault("F6.3")
def test_validation_orders_the_jobs_and_the_test_data_choose_nothing(tmp_path: Path) -> None:
    jobs = []
    for temperature, (val, test) in enumerate([(80.0, 99.0), (90.0, 50.0), (85.0, 70.0)], 1):
        result = make_result(test)
        result["last"]["val_top1"] = val
        jobs.append(([f"distill.temperature={temperature}", "seed=0"], result))
        jobs.append(([f"distill.temperature={temperature}", "seed=1"], result))
    close_sweep(write_sweep(tmp_path, jobs))
    assert [row["distill.temperature"] for row in rows(tmp_path)] == ["2", "2", "3", "3", "1", "1"]
    summary = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["summary"]
    assert [entry["student"]["mean"] for entry in summary] == [50.0, 70.0, 99.0]
    assert "val chose the order of the jobs" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_without_validation_data_the_order_is_said_to_be_optimistic(tmp_path: Path) -> None:
    jobs = [([f"a={number}"], {**make_result(50.0 + number), "last": {"epoch": 10}}) for number in range(3)]
    close_sweep(write_sweep(tmp_path, jobs))
    assert [row["a"] for row in rows(tmp_path)] == ["2", "1", "0"]
    assert "which also orders the jobs" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_only_overrides_that_vary_are_columns(tmp_path: Path) -> None:
    jobs = [(["a=1", "b=2", "c=3"], make_result()), (["a=1", "b=4"], make_result()), (["b=2", "a=1"], make_result())]
    read = read_jobs(write_sweep(tmp_path, jobs))
    assert varying_keys(read) == ["b", "c"]
    close_sweep(tmp_path)
    assert {"b", "c"} <= rows(tmp_path)[0].keys()
    assert "a" not in rows(tmp_path)[0]


def test_overrides_are_read_as_hydra_writes_them() -> None:
    parsed = parse_overrides(["+experiment=x", "++a.b='c=d'", "~e", "f=[1,2]", 'g="h"', "i="])
    assert parsed == {"experiment": "x", "a.b": "c=d", "~e": "", "f": "[1,2]", "g": "h", "i": ""}


def test_jobs_are_read_in_their_order(tmp_path: Path) -> None:
    for name in ["10", "9", "1", "lr=0.1", "lr=0.01"]:
        (tmp_path / name).mkdir()
    (tmp_path / "latest").symlink_to("10")
    assert [job.name for job in read_jobs(tmp_path)][:3] == ["1", "9", "10"]
    assert len(read_jobs(tmp_path)) == 5


@pytest.mark.fault("R68")
def test_failed_interrupted_torn_and_missing_jobs_are_listed_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = {**make_result(90.0), "status": "interrupted"}
    jobs = [
        (["t=1"], failed("boom [bold]x")),
        (["t=2"], make_result(93.0)),
        (["t=4"], stopped),
        (["t=8"], make_result()),
    ]
    write_sweep(tmp_path, jobs)
    (tmp_path / "3/result.json").write_text('{"status": "ok", "stud', encoding="utf-8")
    (tmp_path / "4").mkdir()
    close_sweep(tmp_path)
    assert [row["job"] for row in rows(tmp_path)] == ["1", "2", "0", "3", "4"]
    assert [row["status"] for row in rows(tmp_path)] == ["ok", "interrupted", "failed", "no result", "no result"]
    out = capsys.readouterr().out
    assert "job 0: failed, boom [bold]x" in out
    assert "job 4: no result" in out
    assert "–" in out
    assert "4 of them not finished" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert picture(tmp_path / "sweep.png").size


def test_a_sweep_in_which_every_job_failed(tmp_path: Path) -> None:
    write_sweep(tmp_path, [(["t=1"], failed("a")), (["t=2"], failed("b"))])
    close_sweep(tmp_path)
    assert len(rows(tmp_path)) == 2
    assert not (tmp_path / "sweep.png").exists()


def test_controls_that_differ_get_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [
        ([f"student.name={name}"], make_result(93.0, 96.0, control)) for name, control in (("a", 88.8), ("b", 77.7))
    ]
    close_sweep(write_sweep(tmp_path, jobs))
    out = capsys.readouterr().out
    assert "control" in out
    assert "88.8" in out
    assert "77.7" in out
    assert "control (no teacher):" not in out


@pytest.mark.parametrize("columns", [60, 80])
def test_narrow_terminals_lose_columns_and_say_so(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.CONSOLE, "_width", columns)
    jobs = [([f"distill.temperature={i}", "dataset.root=/a" + "/very/long" * i], make_result(90.0 + i)) for i in (1, 9)]
    close_sweep(write_sweep(tmp_path, jobs))
    out = capsys.readouterr().out
    assert "No room here for ECE" in out
    assert all(len(line) <= columns for line in out.splitlines() if "sweep.csv" not in line)
    assert "ok" in out
    assert rows(tmp_path)[0]["dataset.root"].endswith("/very/long")


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.fault("R29")
def test_user_text_is_neutral_on_screen_and_in_every_file(
    evil: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [([f"name={evil}"], make_result()), (["name=b"], failed(evil))]
    close_sweep(write_sweep(tmp_path, jobs))
    out = capsys.readouterr().out
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    table = (tmp_path / "sweep.csv").read_text(encoding="utf-8")
    assert not {"\x1b", "\x07"} & set(out + report + table)
    assert "<script" not in report
    for row in rows(tmp_path):
        assert not any(cell.startswith(("=", "+", "@")) for cell in row.values())


def test_cells_that_are_formulas_are_neutralised_and_numbers_are_not() -> None:
    for cell in ["=1+1", "+x", "-x", "@sum", " =1", "\t=1", "\r=1", "\uff1d1"]:
        assert csv_cell(cell).startswith("'")
    for value in [-0.5, 3, "-0.5", "1e-3", "resnet50", "a=b"]:
        assert csv_cell(value) == value
    assert csv_cell(None) == ""


def test_seeds_are_summarised_as_numpy_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    top1 = generator.uniform(80, 95, size=(2, 3, 3)).round(2)  # temperature, seed, model
    jobs = [
        ([f"distill.temperature={t}", f"seed={seed}"], {**make_result(*map(float, top1[i, seed])), "seed": seed})
        for i, t in enumerate((2, 4))
        for seed in range(3)
    ]
    close_sweep(write_sweep(tmp_path, jobs))
    summary = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["summary"]
    assert len(summary) == 2
    out, report = capsys.readouterr().out, (tmp_path / "report.md").read_text(encoding="utf-8")
    for entry in summary:
        at = {"2": 0, "4": 1}[entry["overrides"]["distill.temperature"]]
        for column, name in enumerate(("student", "teacher", "baseline")):
            values = top1[at, :, column]
            assert entry[name]["mean"] == pytest.approx(values.mean())
            assert entry[name]["std"] == pytest.approx(values.std(ddof=1))
            assert entry[name]["n"] == 3
            shown = f"{values.mean():.2f} ± {values.std(ddof=1):.2f} (3)"
            assert shown in out
            assert shown in report
    assert summary[0]["student"]["mean"] >= summary[1]["student"]["mean"]
    assert picture(tmp_path / "sweep.png").size
    assert list(rows(tmp_path)[0]).count("seed") == 1


def test_one_seed_has_no_deviation_and_failed_jobs_do_not_count(tmp_path: Path) -> None:
    jobs = [(["seed=0"], make_result(93.0)), (["seed=1"], failed("x"))]
    read = read_jobs(write_sweep(tmp_path, jobs))
    (entry,) = seed_summary(read, varying_keys(read))
    assert entry.spreads["student"] == Spread(mean=93.0, std=None, n=1)
    assert seed_summary(read, ["distill.temperature"]) == []
    close_sweep(tmp_path)


@pytest.mark.parametrize("values", [["1", "2"], ["0", "0.5"], ["-1", "1"], ["0.001", "1000"], ["null", "1"], ["7"]])
def test_the_picture_is_drawn_where_one_number_varies(values: list[str], tmp_path: Path) -> None:
    close_sweep(write_sweep(tmp_path, [([f"a$b={value}"], make_result()) for value in values]))
    assert (tmp_path / "sweep.png").exists() == (len(values) > 1 and "null" not in values)
    if (tmp_path / "sweep.png").exists():
        height, width = picture(tmp_path / "sweep.png").shape
        assert height >= 400
        assert width >= 700


@pytest.mark.fault("F6.19")
@pytest.mark.parametrize(
    ("swept", "drawn"),
    [
        (["a=1 b=x", "a=2 b=x", "a=1 b=y", "a=2 b=y"], True),
        (["a=1 b=x", "a=2 b=y"], True),
        (["a=x b=$y", "a=<z> b=null"], True),
        (["a=1 b=x seed=0", "a=2 b=y seed=1", "a=2 b=y seed=2"], True),
        (["a=1", "a=2 b=y"], True),
        (["a=1 b=1 c=1", "a=2 b=2 c=2"], False),
        (["a=x", "a=y"], False),
    ],
)
def test_the_picture_of_two_keys_is_a_map(swept: list[str], drawn: bool, tmp_path: Path) -> None:
    close_sweep(write_sweep(tmp_path, [(overrides.split(), make_result()) for overrides in swept]))
    assert (tmp_path / "sweep.png").exists() == drawn
    assert ("sweep.png" in (tmp_path / "report.md").read_text("utf-8")) == drawn
    if drawn:
        assert picture(tmp_path / "sweep.png").std() > 5


@pytest.mark.fault("F6.19")
def test_the_map_says_the_mean_over_seeds_and_leaves_out_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    original = Axes.text

    def kept(self: Axes, x: float, y: float, words: str, **how: Any) -> Any:
        written.append(f"{x},{y} {words}")
        return original(self, x, y, words, **how)

    monkeypatch.setattr(Axes, "text", kept)
    jobs = [("10", "x", 0, 90.0), ("10", "x", 1, 92.0), ("2", "x", 0, 80.0), ("2", "y", 0, 85.0)]
    found = [([f"a={a}", f"b={b}", f"seed={seed}"], make_result(top1)) for a, b, seed, top1 in jobs]
    close_sweep(write_sweep(tmp_path, [*found, (["a=10", "b=y", "seed=0"], failed("x"))]))
    assert sorted(written) == ["0.5,0.5 80.0", "0.5,1.5 91.0", "1.5,0.5 85.0"], "2 comes before 10"


def test_numbers_that_json_does_not_know_do_not_reach_the_files(tmp_path: Path) -> None:
    close_sweep(
        write_sweep(tmp_path, [(["a=1"], make_result(float("nan"))), (["a=2"], {**make_result(), "name": "\ud800"})])
    )
    content = json.loads(
        (tmp_path / "sweep.json").read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name)
    )
    assert content["results"][0]["student"]["top1"] is None
    assert rows(tmp_path)[1]["student_top1"] == ""

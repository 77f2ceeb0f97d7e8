"""What a person reads about one run: console, curves, Markdown."""

# ruff: noqa: RUF001

from __future__ import annotations

import ast
import copy
import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distillcli.report import console
from distillcli.report.blocks import Bullets, Code, Picture, Section, Sentence, Table
from distillcli.report.curves import draw_curves
from distillcli.report.documents import write_report
from distillcli.report.format import DASH, byte_count, clean, count, seconds, size_words
from distillcli.report.grids import lost_classes_grid
from distillcli.report.markdown import escaped, fenced
from distillcli.report.sections import load_expression, report_sections, verdict_block
from distillcli.report.sentences import best_sentence, exported_sentence, gap_sentence
from distillcli.report.stream import Stream
from distillcli.runs.result import DatasetFacts, Measured, Result, from_json

EVIL = [
    "[bold]x[/bold]",
    "[/]",
    "=cmd|' /C calc'!A0",
    "a\x1b[31mred\x1b]0;t\x07",
    "<script>alert(1)</script>",
    "$x_1$ | `y`",
]


def model(name: str, top1: float | None, params: int | None = 1_528_106) -> dict[str, Any]:
    measured = {"top5": 99.7, "nll": 0.21, "ece": 0.03, "agreement": 94.0, "kl_to_teacher": 0.1, "latency_ms": 4.2}
    return {"model": name, "params": params, "macs": 57_000_000, "top1": top1, "run": None, **measured}


def make_result(
    student: float | None = 93.5, teacher: float | None = 96.0, control: float | None = 91.0
) -> dict[str, Any]:
    gap = None
    if student is not None and teacher is not None and control is not None and teacher != control:
        gap = (student - control) / (teacher - control)
    return {
        "status": "ok",
        "error": None,
        "role": "student",
        "name": "resnet50_to_mobilenet",
        "command": "distill train +experiment=resnet50_to_mobilenet",
        "overrides": ["+experiment=resnet50_to_mobilenet"],
        "evaluated_on": "test",
        "student": model("mobilenetv3_small_100", student),
        "teacher": None if teacher is None else model("resnet50", teacher, 23_528_522),
        "baseline": None if control is None else model("mobilenetv3_small_100", control),
        "gap_closed": gap,
        "best": {"epoch": 9, "top1": 93.7, "val_top1": 94.5},
        "last": {"epoch": 10, "top1": student, "val_top1": student},
        "epochs": 10,
        "seconds": 25.1,
        "images_per_second": 900.0,
        "temperature": 4.0,
        "alpha": 0.9,
        "seed": 0,
        "objective": "0.1·ce + 0.9·kl(T=4)",
        "dataset": {"name": "digits", "classes": 10, "train": 1297, "val": 200, "test": 300},
        "warnings": [],
        "timings": {"teacher": 52.0, "student": 25.0, "control": 12.0},
        "versions": {"distillcli": "0.1.0", "torch": "2.15.0"},
        "fingerprints": {"data": "1a2b", "recipe": "3c4d"},
    }


def write_run(folder: Path, result: dict[str, Any] | None, epochs: int = 3, top1: float = 80.0) -> Path:
    (folder / "student").mkdir(parents=True)
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    rows: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        loss = {"loss": 2.0 / epoch, "loss/ce": 2.3 / epoch, "loss/kl": 5.0 / epoch}
        rows.append({"kind": "train", "epoch": epoch, "step": 20 * epoch, **loss, "lr": 0.003})
        rows.append({"kind": "eval", "epoch": epoch, "step": 20 * epoch, "split": "val", "top1": top1 + epoch})
    lines = [json.dumps(row) for row in rows] + ['{"kind": "tra']
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(params=[60, 80, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(console.CONSOLE, "_width", request.param)
    return int(request.param)


def picture(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image.convert("L"))


# --- numbers and words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, DASH),
        (0, "0"),
        (850, "850"),
        (1528106, "1.5 M"),
        (12_345_678, "12.3 M"),
        (999_960, "1.0 M"),
        (4.09e9, "4.1 G"),
    ],
)
def test_counts_have_one_decimal_and_a_unit(value: float | None, words: str) -> None:
    assert count(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(9.97, "10 s"), (25.1, "25 s"), (59.7, "1 min 00 s"), (7500, "2 h 05 min")]
)
def test_durations(value: float, words: str) -> None:
    assert seconds(value) == words


def test_sizes_are_compared_in_the_direction_that_is_true() -> None:
    assert size_words(27e6, 2e6, 4e9, 1e8) == "13.5× smaller, 40× fewer MACs"
    assert size_words(1e6, 2e6, None, 1e8) == "2× larger"
    assert size_words(1e6, 1e6, 0, 0) == "same size"


def test_clean_text_has_no_control_characters() -> None:
    hostile = "".join(map(chr, range(0x2100))) + "\ud800\u2028\u202e\u2066"
    assert not {unicodedata.category(char) for char in clean(hostile)} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert not set(clean(hostile)) & {"\x1b", "\x9b", "\x07", "\n", "\r", "\u202e"}
    clean(hostile).encode("utf-8")


@pytest.mark.parametrize(
    ("student", "teacher", "control", "words"),
    [
        (93.5, 96.0, 91.0, "closed 50 % of the gap"),
        (
            90.0,
            96.0,
            91.0,
            "below the control (the same student trained without a teacher): distillation did not help",
        ),
        (91.0, 96.0, 91.0, "none of the gap"),
        (97.0, 96.0, 91.0, "1.0 points above the teacher and 6.0 points above the control"),
        (92.0, 91.0, 91.0, "there is no gap to close. The student is 1.0 points above"),
        (90.0, 89.0, 91.0, "there is no gap to close. The student is 1.0 points below"),
        (93.5, 96.0, None, "There is no control"),
        (96.0, 96.0, None, "The student is as accurate as the teacher"),
        (None, 96.0, 91.0, "not measured"),
    ],
)
def test_the_gap_is_told_honestly(
    student: float | None, teacher: float | None, control: float | None, words: str
) -> None:
    said = gap_sentence(from_json(make_result(student, teacher, control)))
    assert words in said
    assert ("closed 50 %" in said) == (words.startswith("closed"))


def test_without_a_teacher_there_is_no_gap() -> None:
    """Plain training, or a teacher that trains with the student, against one whose accuracy nobody knows."""
    alone = from_json(make_result(teacher=None, control=None))
    assert gap_sentence(alone) == ""
    compared = "The student is 2.5 points above the control (the same student trained without a teacher)"
    assert gap_sentence(from_json(make_result(teacher=None))) == f"{compared}."
    unknown = Measured(model="resnet50")
    beside = dataclasses.replace(from_json(make_result()), teacher=unknown)
    assert gap_sentence(beside) == f"{compared}; the teacher was not measured."
    said = gap_sentence(dataclasses.replace(alone, teacher=unknown))
    assert said.startswith("There is no control")
    assert "the teacher's accuracy was not measured" in said


def test_a_best_epoch_chosen_on_the_reported_data_says_so() -> None:
    result = from_json(make_result())
    assert "chosen on val (94.5 % there): epoch 9 of 10, top-1 93.7 % on test" in best_sentence(result)
    assert "optimistic" not in best_sentence(result)
    on_val = dataclasses.replace(result, evaluated_on="val")
    assert "chosen on the data it is reported on" in best_sentence(on_val)


def test_the_line_that_loads_the_student_is_python_for_any_path() -> None:
    for name in ["runs/a b", "it's", 'quo"te', "new\nline", "émile"]:
        line = load_expression(Path(name))
        assert "\n" not in line
        found = eval(line, {"timm": type("Timm", (), {"create_model": staticmethod(lambda path, pretrained: path)})})
        assert found == f"local-dir:{name}/student"


# --- console --------------------------------------------------------------------------------------------------------


def test_closing_table_holds_every_number_at_any_width(
    tmp_path: Path, width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    console.closing_table(from_json(make_result()), write_run(tmp_path / "run", None))
    out = capsys.readouterr().out
    for words in [
        "93.5",
        "96.0",
        "91.0",
        "99.7",
        "94.0",
        "1.5 M",
        "23.5 M",
        "57.0 M",
        "4.2",
        "control (no teacher)",
        "agreement",
    ]:
        assert words in out
    assert f"  student = {load_expression(tmp_path / 'run')}\n" in out  # in one piece, for copying
    assert all(len(line) <= width for line in out.splitlines() if "local-dir" not in line)


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_did_not_finish_is_marked(status: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console.closing_table(Result(status=status, error="the loss is [not] finite", role="student"), tmp_path)
    out = capsys.readouterr().out
    assert "incomplete" in out
    assert ("the loss is [not] finite" in out) == (status == "failed")
    assert "gap" not in out


def test_missing_numbers_are_dashes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    console.closing_table(dataclasses.replace(from_json(make_result()), student=Measured()), tmp_path)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("student "))
    assert row.split()[1:] == [DASH] * 6


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.fault("R29")
def test_user_text_reaches_the_terminal_as_text(evil: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = console.Opening(evil, 1, 1, evil, 2, 2, DatasetFacts(evil, 10, 1, 1, 1, 0), evil, "cpu", "fp32", evil)
    console.opening(facts)
    console.say(evil)
    console.warn(evil)
    result = make_result()
    result["student"]["model"] = result["dataset"]["name"] = evil
    typed = from_json(result)
    assert typed.student is not None
    console.closing_table(typed, tmp_path)
    console.evaluation_table([(evil, typed.student), ("b", typed.student)])
    out, err = capsys.readouterr()
    assert clean(evil) in out
    assert clean(evil) in err
    assert not {"\x1b", "\x07"} & set(out + err)
    assert err.count("\n") == 1


def test_opening_says_how_much_smaller_the_student_is(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    facts = console.Opening(
        student="s",
        student_params=2_000_000,
        student_macs=100,
        teacher="t",
        teacher_params=27_000_000,
        teacher_macs=4000,
        dataset=DatasetFacts("digits", 10, 1297, 1297, 200, 300),
        objective="ce",
        device="cpu",
        precision="fp32",
        run="runs/x",
    )
    console.opening(facts)
    out = capsys.readouterr().out
    assert "13.5× smaller, 40× fewer MACs" in out
    assert all(len(line) <= width for line in out.splitlines())


def test_one_plain_line_per_epoch_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    train = {"epoch": 3, "loss": 1.2341, "loss/ce": 0.9, "loss/kl": None, "lr": 0.00291, "images_per_second": 911.6}
    with console.Progress("student", 10, 5, done=10) as progress:
        for _ in range(5):
            progress.step(None)
        progress.epoch(train, {"split": "val", "top1": 81.5})
    expected = "student  epoch  3/10  loss 1.234  ce 0.900  kl –  val top-1 81.5  lr 0.0029  912 img/s\n"
    assert capsys.readouterr().out == expected


@pytest.mark.fault("F6.13")
def test_a_long_epoch_is_told_of_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed in the middle of the second epoch of three; a step takes 25 s."""
    clock = itertools.count(0, 25)
    monkeypatch.setattr(console, "TELL_SECONDS", 30)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with console.Progress("student", 3, 4, done=6) as progress:
        for _ in range(3):
            now[0] = float(next(clock)) + 25
            progress.step(None)
    assert capsys.readouterr().out.splitlines() == ["student  epoch 2/3  step 4/4  1 min 40 s left"]


@pytest.mark.fault("F6.16")
@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
def test_a_line_of_an_epoch_fits_the_terminal(columns: int) -> None:
    """The label, the epoch, the loss and the accuracy stay; the terms of the loss in their order."""
    terms = {f"loss/{name}": 0.123 for name in ("ce", "kl", "hint", "rkd", "class_correlation", "batch_correlation")}
    train = {"epoch": 3, "loss": 1.2341, **terms, "lr": 0.00291, "images_per_second": 911.6}
    full = console.epoch_line("student", 10, train, {"split": "val", "top1": 81.5})
    line = console.epoch_line("student", 10, train, {"split": "val", "top1": 81.5}, width=columns)
    assert len(line) <= max(columns, len("student  epoch  3/10  loss 1.234  val top-1 81.5"))
    assert line.startswith("student  epoch  3/10  loss 1.234  ")
    assert "val top-1 81.5" in line
    cells = iter(full.split("  "))
    assert all(cell in cells for cell in line.split("  "))
    assert (line == full) == (columns == 200)


@pytest.mark.fault("F6.16")
def test_the_log_and_a_pipe_get_all_of_a_line(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.CONSOLE, "_width", 30)
    caplog.set_level("INFO", "distillcli")
    for terminal in (False, True):
        monkeypatch.setattr(console, "is_terminal", lambda terminal=terminal: terminal)
        progress = console.Progress("student", 10, 5)
        progress.epoch({"epoch": 3, "loss": 1.0, "lr": 0.1, "images_per_second": 7.0}, {})
    whole = "student  epoch  3/10  loss 1.000  lr 0.1  7 img/s"
    assert capsys.readouterr().out.splitlines() == [whole, "student  epoch  3/10  loss 1.000"]
    assert caplog.messages == [whole, whole]


@pytest.mark.fault("F6.17")
@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (770, "770 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9216, "9.2 kB"),
        (4.1e9, "4.1 GB"),
        (2e12, "2.0 TB"),
    ],
)
def test_a_size_has_a_unit_that_suits_it(size: float, words: str) -> None:
    assert byte_count(size) == words


@pytest.mark.fault("F6.18")
def test_the_lines_that_load_the_student_say_where_they_hold(tmp_path: Path) -> None:
    """And hold as they stand, comment included."""
    folder = write_run(tmp_path / "run", make_result())
    blocks = [block for section in report_sections(from_json(make_result()), folder) for block in section.blocks]
    (lines,) = (block.text for block in blocks if isinstance(block, Code) and "timm" in block.text)
    assert "once the run has moved" in lines
    assert ast.parse(lines).body
    assert lines in write_report(folder).read_text("utf-8")


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_the_bar_leaves_only_the_epoch_lines_and_warnings_pass_it(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = _Terminal(), _Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(console, "CONSOLE", console._console(Stream("stdout", console._lost_stdout)))
    monkeypatch.setattr(console.CONSOLE, "_width", 80)
    monkeypatch.setenv("TERM", "xterm")
    with console.Progress("student", 2, 3) as progress:
        for epoch in (1, 2):
            for _ in range(3):
                progress.step(0.5)
            console.warn("careful")
            progress.epoch({"epoch": epoch, "loss": 0.5}, {})
    assert "epoch 1/2" in out.getvalue()
    assert out.getvalue().count("img/s") == 2
    assert "careful" not in out.getvalue()
    assert err.getvalue().count("careful") == 2
    assert not console.live_bars
    assert "left" in out.getvalue()


SCRIPT = """
import sys
from distillcli.report import console
from distillcli.report.blocks import Bullets, Code, Picture, Section, Sentence, Table
with console.Progress("student", 3000, 1) as progress:
    for epoch in range(3000):
        progress.step(1.0)
        progress.epoch({"epoch": epoch, "loss": 1.0}, {})
console.say("13.5× smaller – ± done")
print("finished", file=sys.stderr)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("redirect", ["| head -n 1", ">&-", "> /dev/null"])
@pytest.mark.fault("R66")
def test_a_run_goes_on_when_nobody_reads_its_output(redirect: str) -> None:
    command = f"{{ '{sys.executable}' -c \"$SCRIPT\"; echo code $? >&2; }} {redirect}"
    done = subprocess.run(["sh", "-c", command], env={**os.environ, "SCRIPT": SCRIPT}, capture_output=True, text=True)
    assert done.stderr.split() == ["finished", "code", "0"]


@pytest.mark.fault("R66")
def test_a_terminal_without_unicode_gets_plain_letters() -> None:
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    script = "from distillcli.report.console import say; say('13.5\\xd7 \\u2013 \\xb1 \\u2192 \\u4e2d')"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=True)
    assert done.stdout.decode("ascii").strip() == "13.5x - +/- -> ?"


def test_evaluation_of_one_model_has_two_columns_and_all_metrics(
    width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    student = from_json(make_result()).student
    assert student is not None
    console.evaluation_table([("mobilenetv3_small_100", student)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[2:]] == [
        "93.5",
        "99.7",
        "–",  # a run from before the balanced accuracy was measured
        "0.210",
        "0.030",
        "94.0",
        "0.100",
        "M",
        "M",
        "4.2",
    ]
    console.evaluation_table([])
    assert capsys.readouterr().out == ""


# --- curves ---------------------------------------------------------------------------------------------------------


def test_curves_show_student_control_and_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = make_result()
    plain = draw_curves(write_run(tmp_path / "plain", result))
    result["teacher"]["run"], result["baseline"]["run"] = "runs/teacher", "runs/control"  # relative to here
    write_run(tmp_path / "runs/teacher", None, top1=95)
    write_run(tmp_path / "runs/control", None, top1=70)
    full = draw_curves(write_run(tmp_path / "full", result))
    assert full == tmp_path / "full/curves.png"
    assert picture(full).shape == picture(plain).shape
    assert picture(full).shape[0] >= 400
    assert picture(full).shape[1] >= 1000
    assert (picture(full) != picture(plain)).any()
    assert picture(full).std() > 5


@pytest.mark.parametrize("epochs", [0, 1, 40])
def test_curves_of_any_length_and_without_a_result(epochs: int, tmp_path: Path) -> None:
    assert picture(draw_curves(write_run(tmp_path / "run", None, epochs))).size


@pytest.mark.parametrize("evil", [*EVIL, "$\\frac{", "数字 🙂", "a$b"])
def test_curves_take_any_name(evil: str, tmp_path: Path) -> None:
    assert picture(draw_curves(write_run(tmp_path / "run", {**make_result(), "name": evil}))).size


# --- Markdown -------------------------------------------------------------------------------------------------------


def test_report_holds_the_numbers_the_picture_and_the_way_to_use_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a run", {**make_result(), "warnings": ["the teacher was trained with BCE"]})
    without = write_report(folder).read_text(encoding="utf-8")
    draw_curves(folder)
    report = write_report(folder).read_text(encoding="utf-8")
    assert "curves.png" not in without
    assert "(curves.png)" in report
    for words in [
        "| student | 93.5 | 99.7 | 94.0 |",
        "closed 50 % of the gap",
        "- the teacher was trained with BCE",
        load_expression(folder),
        f"distill eval checkpoint='{folder}'",
        "| temperature | 4 |",
        "torch 2.15.0",
    ]:
        assert words in report
    assert report.count("distill train +experiment=resnet50_to_mobilenet") == 1


@pytest.mark.fault("R68")
def test_report_of_a_torn_result_says_incomplete(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", None)
    (folder / "result.json").write_text('{"status": "ok", "stu', encoding="utf-8")
    assert "incomplete" in write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.fault("R29")
def test_user_text_is_text_in_the_report(evil: str, tmp_path: Path) -> None:
    result = make_result()
    result["name"] = result["dataset"]["name"] = result["student"]["model"] = evil
    result["warnings"] = result["overrides"] = [evil, "a\n\n# heading"]
    report = write_report(write_run(tmp_path / "run", result)).read_text(encoding="utf-8")
    assert "<script" not in report
    assert "\x1b" not in report
    assert "\n# heading" not in report
    for line in report.splitlines():
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") in {3, 5, 7, 8}  # a pipe in a name makes no further column


def test_what_the_terminal_shows_is_in_the_report_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Same sentences and same cells: a section is written once."""
    folder = write_run(tmp_path / "run", make_result())
    result = from_json(make_result())
    console.closing_table(result, folder)
    out = " ".join(capsys.readouterr().out.split())
    report = write_report(folder).read_text(encoding="utf-8")
    shown = [block for section in report_sections(result, folder) if section.brief for block in section.blocks]
    assert {type(block) for block in shown} == {Sentence, Table, Code}
    for block in shown:
        match block:
            case Sentence(words):
                assert words in out
                assert words in report
            case Table(grid):
                cells = [cell for row in grid for cell in row]
                assert all(" ".join(cell.split()) in report for cell in cells)
                assert all(cell in out for row in grid[1:] for cell in row)
            case Code(text):
                assert text in report
                assert " ".join(text.split()) in out


def test_a_section_keeps_user_text_as_it_is_and_the_renderers_make_it_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "<b>*x*\x1b[31m"
    blocks = (
        Sentence(evil),
        Table([["", evil], [evil, "1"]]),
        Bullets((evil,)),
        Code(evil, "sh"),
        Picture(evil, list, tmp_path),
    )

    def sections(*_: object) -> list[Section]:
        return [Section("All of them", blocks, brief=True)]

    monkeypatch.setattr("distillcli.report.documents.report_sections", sections)
    monkeypatch.setattr(console, "report_sections", sections)
    console.closing_table(Result(), tmp_path)
    assert capsys.readouterr().out.count("<b>*x*[31m") == 6
    report = write_report(tmp_path).read_text(encoding="utf-8")
    assert "\x1b" not in report
    assert report.count("&lt;b&gt;\\*x\\*\\[31m") == 5
    assert report.count("<b>") == 1, "in the code block, where it is text"


def test_a_section_that_has_nothing_to_show_is_left_out(tmp_path: Path) -> None:
    titles = [section.title for section in report_sections(Result(), tmp_path)]
    assert titles == [""]  # that the run is incomplete
    full = [section.title for section in report_sections(from_json(make_result()), write_run(tmp_path / "run", None))]
    after = ["Calibration and fidelity", "Cost", "Use the student", "", "Settings", "Run it again"]
    assert full == ["", "", "Result", *after], "the verdict comes before the numbers"


def test_escaping_leaves_model_names_readable_and_fences_closed() -> None:
    assert escaped("mobilenetv3_small_100") == "mobilenetv3_small_100"
    assert escaped("_a_ *b*") == "\\_a\\_ \\*b\\*"
    assert fenced("a ``` b").splitlines()[0] == "````"


def verdict(conclusion: str, difference: float, low: float, high: float, needed: int | None) -> dict[str, Any]:
    numbers = {"difference": difference, "low": low, "high": high, "images_to_settle": needed}
    return {"conclusion": conclusion, "images": 300, "p_value": 0.0123, "gap_low": 0.2, "gap_high": 0.8, **numbers}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            verdict("helps", 2.5, 0.4, 4.6, 250),
            "Distilling helps: +2.5 points to the control, 95 % interval +0.4 to +4.6 over 300 test images "
            "(McNemar p = 0.012).",
        ),
        (
            verdict("hurts", -2.5, -4.6, -0.4, 250),
            "Distilling hurts: -2.5 points to the control, 95 % interval -4.6 to -0.4 over 300 test images "
            "(McNemar p = 0.012).",
        ),
        (
            verdict("not settled", 1.0, -1.5, 3.6, 1130),
            "Not settled whether distilling helps: +1.0 points to the control, 95 % interval -1.5 to +3.6 over 300 "
            "test images. About 1,100 test images would settle a difference of this size, or the same over several "
            "seeds: -m seed=0,1,2,3,4.",
        ),
        (
            verdict("not settled", 0.0, -1.5, 1.5, None),
            "Not settled whether distilling helps: +0.0 points to the control, 95 % interval -1.5 to +1.5 over 300 "
            "test images. No test set would settle a difference of zero; try the same over several seeds: "
            "-m seed=0,1,2,3,4.",
        ),
    ],
)
def test_the_verdict_says_how_sure_it_is_and_what_would_settle_it(found: dict[str, Any], words: str) -> None:
    block = verdict_block(from_json({**make_result(), "verdict": found}))
    assert block is not None
    assert f"{block.headline}: {block.words}" == words


@pytest.mark.fault("F6.2")
def test_the_share_of_the_gap_carries_its_uncertainty() -> None:
    sure, unsure = verdict("helps", 2.5, 0.4, 4.6, 250), verdict("not settled", 2.5, -1, 6, 250) | {"gap_low": None}
    assert "closed 50 % (95 % interval 20 % to 80 %) of the gap" in gap_sentence(
        from_json({**make_result(), "verdict": sure})
    )
    assert "closed 50 % (a gap that so few images do not settle) of the gap" in gap_sentence(
        from_json({**make_result(), "verdict": unsure})
    )


@pytest.mark.fault("F6.4")
def test_the_report_says_how_far_probabilities_can_be_trusted(tmp_path: Path) -> None:
    report = write_report(write_run(tmp_path / "run", make_result())).read_text(encoding="utf-8")
    section = report.split("## Calibration and fidelity")[1].split("##")[0]
    student = make_result()["student"]
    for number in (student["nll"], student["ece"], student["kl_to_teacher"]):
        assert f"{number:.3f}" in section


@pytest.mark.fault("F6.1")
def test_the_student_is_said_to_be_of_the_last_epoch_where_another_was_better() -> None:
    result = make_result()
    result["best"], result["last"] = {"epoch": 3, "val_top1": 50.0}, {"epoch": 10, "val_top1": 34.4}
    words = "The student is that of the last epoch, 10; epoch 3 was better on val."
    assert exported_sentence(from_json(result)) == words
    result["student_epoch"] = 10
    assert exported_sentence(from_json(result)) == words
    result["student_epoch"] = 3
    chosen = "The student is that of epoch 3, the best on val, and not of the last one, 10."
    assert exported_sentence(from_json(result)) == chosen
    result["best"] = result["last"]
    assert exported_sentence(from_json(result)) == ""


def test_null_everywhere_breaks_nothing(tmp_path: Path) -> None:
    full = make_result()
    for key in full:
        holed = copy.deepcopy(full)
        holed[key] = None
        console.closing_table(from_json(holed), tmp_path)
        folder = write_run(tmp_path / key, holed)
        draw_curves(folder) if key in {"student", "teacher", "baseline", "best", "name"} else None
        write_report(folder)


@pytest.mark.fault("F6.6")
def test_the_classes_that_distilling_harms_most() -> None:
    """Compared with the control; only where there is none, with the teacher."""
    result = make_result()
    top1 = {
        "student": [50.0, 90.0, 99.0, 0.0],
        "teacher": [60.0, 90.0, 90.0, 80.0],
        "baseline": [40.0, 91.0, 99.0, 0.0],
    }
    for name, values in top1.items():
        result[name]["per_class"] = {f"*{k}*": {"top1": value, "count": 10 + k} for k, value in enumerate(values)}
    assert lost_classes_grid(from_json(result)) == [
        ["class", "images", "control %", "student %", "difference"],
        ["*1*", "11", "91.0", "90.0", "-1.0"],
    ]
    result["baseline"] = None
    assert lost_classes_grid(from_json(result)) == [
        ["class", "images", "teacher %", "student %", "difference"],
        ["*3*", "13", "80.0", "0.0", "-80.0"],
        ["*0*", "10", "60.0", "50.0", "-10.0"],
    ]
    assert len(lost_classes_grid(from_json(make_result()))) == 1

"""The report of one run as a list of sections.

A new section is one more entry in ``report_sections``.
"""

from __future__ import annotations

import functools
import shlex
from pathlib import Path

from distillcli.report.blocks import (
    Block,
    Bullets,
    Code,
    Gallery,
    Interval,
    Picture,
    Section,
    Sentence,
    Table,
    known,
    section,
)
from distillcli.report.class_plot import class_figures
from distillcli.report.curves import curve_figures
from distillcli.report.grids import (
    calibrated_grid,
    closing_grid,
    cost_grid,
    environment_grid,
    lost_classes_grid,
    quality_grid,
    settings_grid,
)
from distillcli.report.models import measured_models
from distillcli.report.sentences import (
    CALIBRATED_WORDS,
    QUALITY_WORDS,
    best_sentence,
    classes_sentence,
    exported_sentence,
    gap_sentence,
    heading,
    latency_sentence,
    status_sentence,
    time_sentence,
    verdict_headline,
    verdict_words,
)
from distillcli.runs.disagreements import NAME, read_disagreements
from distillcli.runs.reading import try_json
from distillcli.runs.result import Result

PLACE = "# the path from here; another one once the run has moved"
INTERVAL = "95 %\ninterval"


def report_sections(result: Result, folder: Path) -> list[Section]:
    """The sections of a run's report in their order, without those that have nothing to show."""
    command = Code(result.command or "", "sh")
    return known(
        [
            section("", Sentence(heading(result), "strong"), Sentence(status_sentence(result), "alarming"), brief=True),
            section("", verdict_block(result), Sentence(gap_sentence(result)), brief=True),
            section(
                "Result",
                Table(closing_grid(result), spare=(INTERVAL,)),
                Sentence(exported_sentence(result)),
                Sentence(best_sentence(result)),
                brief=True,
            ),
            section("Curves", _curves(result, folder)),
            section("Gains and losses by class", *_classes(result)),
            section("Calibration and fidelity", *_quality(result, folder)),
            section(_disagreements_title(folder), _disagreements(folder)),
            section(
                "Cost",
                Table(cost_grid(result, folder)),
                Sentence(latency_sentence(measured_models(result))),
                Sentence(time_sentence(result)),
            ),
            section("Warnings", Bullets(result.warnings)),
            section("Use the student", *_loading(folder), brief=True),
            section("", *_measuring(folder)),
            section("Settings", Table(settings_grid(result), numbers_from=2), folded=True),
            section("Environment", Table(environment_grid(folder), numbers_from=2), folded=True),
            section("Run it again", command),
        ]
    )


def verdict_block(result: Result) -> Interval | None:
    """Whether distilling helped; None where it was not compared."""
    found = result.verdict
    if found is None or found.difference is None or found.low is None or found.high is None:
        return None
    return Interval(verdict_headline(found), verdict_words(result), found.difference, found.low, found.high)


def _curves(result: Result, folder: Path) -> Picture:
    draw = functools.partial(curve_figures, folder, result)
    return Picture("Accuracy on val and training loss per epoch", draw, folder / "curves.png")


def _classes(result: Result) -> list[Block | None]:
    if result.student is None:
        return []
    by_class = result.verdict.by_class if result.verdict else None
    bars = (
        None if not by_class else Picture("Student less control per class", functools.partial(class_figures, by_class))
    )
    lost = Table(lost_classes_grid(result))
    other = "its teacher" if result.baseline is None else "the same student trained without a teacher"
    title = Sentence(f"Classes in which the student falls behind {other}:") if len(lost.grid) > 1 else None
    return [Sentence(classes_sentence(result)), bars, title, lost]


def _quality(result: Result, folder: Path) -> list[Block | None]:
    table, after = Table(quality_grid(result)), Table(calibrated_grid(result))
    if len(table.grid) == 1:
        return []
    from distillcli.report.reliability import reliability_figures, reliability_of  # NumPy takes a moment to import

    found = reliability_of(result, folder)
    diagram = Picture(
        "How often the models are right, by how sure they are", functools.partial(reliability_figures, found)
    )
    words = Sentence(CALIBRATED_WORDS) if len(after.grid) > 1 else None
    return [table, Sentence(QUALITY_WORDS), diagram if found else None, after, words]


def _disagreements_title(folder: Path) -> str:
    found = read_disagreements(folder)
    return f"Images on which student and {found.other} disagree" if found else ""


def _disagreements(folder: Path) -> Gallery | None:
    found = read_disagreements(folder)
    if found is None:
        return None
    rows = [(folder / NAME / one.image, (one.name, one.label, one.student, one.other)) for one in found.shown]
    return Gallery(("image", "label", "student", found.other), tuple(rows))


def _loading(folder: Path) -> list[Block]:
    if not (folder / "student").is_dir():
        return []
    lines = ["import timm", *own_imports(folder), PLACE, f"student = {load_expression(folder)}"]
    return [Sentence("Load the student:"), Code("\n".join(lines), "python")]


def _measuring(folder: Path) -> list[Block]:
    if not (folder / "student").is_dir():
        return []
    return [Sentence("Measure it again:"), Code(f"distill eval checkpoint={shlex.quote(str(folder))}", "sh")]


def load_expression(folder: Path) -> str:
    """The Python expression that loads the student of a run folder; a valid literal for any path."""
    return f"timm.create_model({'local-dir:' + (folder / 'student').as_posix()!r}, pretrained=True)"


# What the names of models begin with that timm does not have, and what makes timm know them.
_OWN_MODELS = {"reused_head": "distillcli.reused_head", "cifar_": "distillcli.models.zoo"}


def own_imports(folder: Path) -> list[str]:
    """What has to be imported beside timm before it knows the exported student of a run folder."""
    exported = try_json(folder / "student" / "config.json")
    name = "" if exported is None else str(exported.get("architecture"))
    rooms = [room for start, room in _OWN_MODELS.items() if name.startswith(start)]
    return [f"import {room}  # timm does not know this model without it" for room in rooms]

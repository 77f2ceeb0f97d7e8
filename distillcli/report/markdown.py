"""``report.md``: one run, readable on its own by someone who was not there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillcli.report.format import (
    DASH,
    Grid,
    best_sentence,
    clean,
    closing_grid,
    fixed,
    gap_sentence,
    heading,
    imports_for_timm,
    load_line,
    lost_classes_grid,
    models,
    number,
    part,
    percent,
    seconds,
    significant,
    status_sentence,
    text,
    texts,
    timing_words,
)
from distillcli.runs.folder import read_result, write_text


def escaped(words: object) -> str:
    """User text as Markdown that shows exactly this text: no emphasis, links, images, HTML or table cells.

    An underscore within a word is left alone, because it means nothing there and model names are full of them.
    """
    plain = clean(words).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~$#]|(?<!\w)_|_(?!\w))", r"\\\1", plain)


def fenced(words: str, language: str = "") -> str:
    """A code block; its fence is longer than any run of backticks inside, so that the text cannot end it."""
    longest = max((len(run) for run in re.findall(r"`+", words)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{words}\n{fence}"


def markdown_table(grid: Grid, numbers_from: int = 1) -> str:
    """A grid as a Markdown table; columns from ``numbers_from`` on are right-aligned."""
    rows = [[escaped(cell) for cell in row] for row in grid]
    ruler = [":--" if index < numbers_from else "--:" for index in range(len(grid[0]))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ruler, *rows[1:]])


def _settings(result: Mapping[str, Any]) -> Grid:
    data = part(result, "dataset")
    sizes = ", ".join(
        f"{size:,.0f} {name}" for name in ("train", "val", "test") if (size := number(data, name)) is not None and size
    )
    labelled = number(data, "labelled")
    some = labelled is not None and labelled != number(data, "train")
    classes = number(data, "classes")
    plain_sum = "alpha" in result and result["alpha"] is None
    versions = ", ".join(f"{name} {version}" for name, version in part(result, "versions").items())
    rows = [
        ("teacher", text(result, "teacher", "model")),
        ("teacher's run", text(result, "teacher", "run")),
        ("student", text(result, "student", "model")),
        ("control's run", text(result, "baseline", "run")),
        ("objective", text(result, "objective")),
        ("temperature", significant(number(result, "temperature"))),
        ("alpha", "none: a plain weighted sum" if plain_sum else significant(number(result, "alpha"))),
        ("epochs", fixed(number(result, "epochs"), 0)),
        ("seed", fixed(number(result, "seed"), 0)),
        (
            "data",
            ", ".join(
                words
                for words in (
                    text(data, "name"),
                    "" if classes is None else f"{classes:.0f} classes",
                    sizes,
                    f"{labelled:,.0f} of the training images labelled" if some else "",
                )
                if words
            ),
        ),
        ("overrides", " ".join(texts(result, "overrides"))),
        ("time", timing_words(result) or seconds(number(result, "seconds"))),
        ("images per second", fixed(number(result, "images_per_second"), 0)),
        ("versions", versions),
        *((f"fingerprint of the {name}", str(value)) for name, value in part(result, "fingerprints").items()),
    ]
    return [["setting", "value"], *([name, words] for name, words in rows if words not in {"", DASH})]


def write_report(folder: Path) -> Path:
    """Write ``report.md`` of a run folder; ``curves.png`` is embedded if it has been drawn before.

    A run without a readable ``result.json`` gives a report that says it is incomplete.
    """
    result: Mapping[str, Any] = read_result(folder) or {}
    name = text(result, "name") or folder.name
    blocks = [f"# {escaped(name)}"]
    if heading(result):
        blocks.append(escaped(heading(result)))
    if status_sentence(result):
        blocks.append(f"**{escaped(status_sentence(result))}**")
    command = text(result, "command")
    if command:
        blocks.append(fenced(command, "sh"))
    grid = closing_grid(result)
    if len(grid) > 1:
        blocks += ["## Result", markdown_table(grid)]
        if text(result, "status") == "ok" and gap_sentence(result):
            blocks.append(f"**{escaped(gap_sentence(result))}**")
        if best_sentence(result):
            blocks.append(escaped(best_sentence(result)))
    lost = lost_classes_grid(result)
    if len(lost) > 1:
        balanced = ", ".join(
            f"{label} {percent(number(model, 'balanced_accuracy'))}" for label, model in models(result)
        )
        blocks += ["## Where the student falls behind its teacher", markdown_table(lost)]
        blocks.append(escaped(f"Balanced accuracy, the mean over all classes: {balanced}."))
    if (folder / "curves.png").is_file():
        blocks.append("![Accuracy on val and training loss per epoch](curves.png)")
    warnings = texts(result, "warnings")
    if warnings:
        blocks += ["## Warnings", "\n".join(f"- {escaped(warning)}" for warning in warnings)]
    if (folder / "student").is_dir():
        evaluate = f"distill eval checkpoint={shlex.quote(clean(folder))}"
        python = "\n".join(["import timm", *imports_for_timm(folder), "", f"student = {load_line(folder)}"])
        blocks += ["## Use the student", fenced(python, "python"), "Measure it again:", fenced(evaluate, "sh")]
    settings = _settings(result)
    if len(settings) > 1:
        blocks += ["## Settings", markdown_table(settings, numbers_from=2)]
    if command:
        blocks += ["## Run it again", fenced(command, "sh")]
    path = folder / "report.md"
    write_text(path, "\n\n".join(blocks) + "\n")
    return path

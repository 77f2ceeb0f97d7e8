"""Numbers and words that the console, the Markdown reports and the sweep table share.

Every function takes what ``result.json`` holds, where any number may be null and a failed run may lack whole parts:
a missing number is shown as a dash and never as zero.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distillcli.runs.folder import read_json

# The multiplication sign and the dash are meant.
# ruff: noqa: RUF001, RUF002

DASH = "–"  # a typographic dash, so that a missing number is not taken for a minus sign

LOST_CLASSES = 10

Grid = list[list[str]]  # the first row is the header, the first column names the row

MODELS = {"teacher": "teacher", "student": "student distilled", "baseline": "student without teacher"}
ROLES = {
    "teacher": "teacher",
    "assistant": "assistant",
    "student": "student distilled",
    "control": "student without teacher",
}


def clean(text: object) -> str:
    """User text on one line, without anything a terminal would act on.

    Escape codes and other control characters go, and so do the characters that reorder text; a lone surrogate (an
    undecodable byte of a file name) cannot be written to any file and becomes U+FFFD.
    """
    kept: list[str] = []
    for char in str(text):
        category = unicodedata.category(char)
        if char in "\t\n\r\v\f" or category in {"Zl", "Zp"}:
            kept.append(" ")
        elif category == "Cs":
            kept.append("\ufffd")
        elif category not in {"Cc", "Cf"}:
            kept.append(char)
    return "".join(kept)


def part(result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A nested object of a result, empty when it is null or missing."""
    value = result.get(name)
    return value if isinstance(value, dict) else {}


def parts(result: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """A list of objects in a result, empty when it is null or missing."""
    value = result.get(name)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(values: Mapping[str, Any], *path: str) -> float | None:
    """The number at ``path``; None when it is null, missing, not finite or not a number."""
    for name in path[:-1]:
        values = part(values, name)
    value = values.get(path[-1])
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def text(values: Mapping[str, Any], *path: str) -> str:
    """The cleaned text at ``path``; empty when it is null or missing."""
    for name in path[:-1]:
        values = part(values, name)
    value = values.get(path[-1])
    return "" if value is None else clean(value)


def texts(result: Mapping[str, Any], name: str) -> list[str]:
    """A list of strings in a result, such as its warnings, as it was written: to be cleaned where it is shown."""
    value = result.get(name)
    return [str(item) for item in value] if isinstance(value, list) else []


def fixed(value: float | None, digits: int = 1) -> str:
    """``93.46`` as ``93.5``."""
    return DASH if value is None else f"{value:.{digits}f}"


def significant(value: float | None, digits: int = 3) -> str:
    """``0.00291234`` as ``0.00291``."""
    return DASH if value is None else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """A share given in percent: ``93.5 %``."""
    return DASH if value is None else f"{value:.1f} %"


def count(value: float | None) -> str:
    """A number of parameters or MACs: ``850``, ``12.3 k``, ``1.5 M``, ``4.1 G``."""
    if value is None:
        return DASH
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # 999,960 is 1.0 M, not 1000.0 k
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def seconds(value: float | None) -> str:
    """A duration: ``25 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if value is None:
        return DASH
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def times(ratio: float) -> str:
    """A factor of at least one: ``1.3×``, ``13.5×``, ``40×``."""
    return f"{ratio:.1f}".removesuffix(".0") + "×" if ratio < 100 else f"{ratio:.0f}×"


def compared(teacher: float | None, student: float | None, less: str, more: str, same: str) -> str:
    """The student's size against the teacher's: ``13.5× smaller``; empty when one of the two is not known."""
    if not teacher or not student:
        return ""
    ratio = teacher / student
    if 0.95 < ratio < 1.05:
        return same
    return f"{times(ratio)} {less}" if ratio > 1 else f"{times(1 / ratio)} {more}"


def size_words(
    teacher_params: float | None, student_params: float | None, teacher_macs: float | None, student_macs: float | None
) -> str:
    """``13.5× smaller, 40× fewer MACs``; empty when nothing is known."""
    sizes = compared(teacher_params, student_params, "smaller", "larger", "same size")
    macs = compared(teacher_macs, student_macs, "fewer MACs", "more MACs", "as many MACs")
    return ", ".join(words for words in (sizes, macs) if words)


def share(value: float) -> str:
    """A share of one, in percent; close to 0 and 1 with a decimal, so that 99.6 % is not called all of it."""
    return f"{100 * value:.0f} %" if 0.01 <= value < 0.99 else f"{100 * value:.1f} %"


def models(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The measured models of a run with their row labels, as far as they exist: teacher, what stands between it and the
    student, student, the peers that learned with it, control.

    In the run folder of a fitted teacher or a control, "student" is that model.
    """
    role = text(result, "role")
    labels = {**MODELS, "student": ROLES[role] if role in ROLES else MODELS["student"]}
    rows = {name: [(label, part(result, name))] for name, label in labels.items() if part(result, name)}
    between = [(f"assistant {row.get('model')}", row) for row in parts(result, "chain")]
    peers = [(f"peer {row.get('model')}", row) for row in parts(result, "peers")]
    return [*rows.get("teacher", []), *between, *rows.get("student", []), *peers, *rows.get("baseline", [])]


def closing_grid(result: Mapping[str, Any]) -> Grid:
    """Header and one row per model. A header's line break separates the name from its unit."""
    probes = {"knn_top1": "k-NN\n%", "probe_top1": "linear\nprobe %"}
    probes = {key: name for key, name in probes.items() if number(result, "student", key) is not None}
    grid = [["", "top-1\n%", "top-5\n%", "agreement\n%", *probes.values(), "params", "MACs", "latency\nms"]]
    for label, model in models(result):
        shares = [fixed(number(model, key)) for key in ("top1", "top5", "agreement")]
        if label == MODELS["teacher"]:
            shares[2] = DASH  # its agreement with itself says nothing
        sizes = [count(number(model, key)) for key in ("params", "macs")]
        read = [fixed(number(model, key)) for key in probes]
        grid.append([label, *shares, *read, *sizes, fixed(number(model, "latency_ms"))])
    return grid


def lost_classes_grid(result: Mapping[str, Any]) -> Grid:
    """The classes, at most ten, in which the student falls behind its teacher, the farthest first; a header alone
    when there are none."""
    student, teacher = (part(part(result, name), "per_class") for name in ("student", "teacher"))
    lost = []
    for name in student:
        given, wanted = (number(side, name, "top1") for side in (student, teacher))
        if given is not None and wanted is not None and given < wanted:
            lost.append((given - wanted, clean(name), number(student, name, "count"), wanted, given))
    grid = [["class", "images", "teacher %", "student %", "difference"]]
    for difference, name, images, wanted, given in sorted(lost, key=lambda row: row[:2])[:LOST_CLASSES]:
        grid.append([name, fixed(images, 0), fixed(wanted), fixed(given), fixed(difference)])
    return grid


def evaluation_grid(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Header and one row per evaluated model, with every metric ``distill eval`` measures."""
    shares = {"top1": "top-1\n%", "top5": "top-5\n%", "balanced_accuracy": "balanced\n%"}
    plain = {"nll": "NLL", "ece": "ECE"}
    grid = [["", *shares.values(), *plain.values(), "agreement\n%", "KL to\nteacher", "params", "MACs", "latency\nms"]]
    for row in rows:
        cells = [text(row, "name") or text(row, "model") or DASH]
        cells += [fixed(number(row, key)) for key in shares]
        cells += [fixed(number(row, key), 3) for key in plain]
        cells += [fixed(number(row, "agreement")), fixed(number(row, "kl_to_teacher"), 3)]
        cells += [count(number(row, "params")), count(number(row, "macs")), fixed(number(row, "latency_ms"))]
        grid.append(cells)
    return grid


def heading(result: Mapping[str, Any]) -> str:
    """What was measured on what: ``resnet50 → mobilenetv3_small_100, digits, 300 test images``."""
    names = [name for name in (text(result, "teacher", "model"), text(result, "student", "model")) if name]
    split = text(result, "evaluated_on")
    size = number(result, "dataset", split) if split else None
    images = f"{size:,.0f} {split} images" if size is not None else f"{split} images" if split else ""
    return ", ".join(words for words in (" → ".join(names), text(result, "dataset", "name"), images) if words)


def gap_sentence(result: Mapping[str, Any]) -> str:
    """What the teacher was worth, in one honest sentence; empty for the run of a teacher or a control itself."""
    if text(result, "role") not in {"", "student"}:
        return ""
    student, teacher, control = (number(result, name, "top1") for name in ("student", "teacher", "baseline"))
    if student is None:
        agreement, split = number(result, "student", "agreement"), text(result, "evaluated_on")
        if number(result, "student", "knn_top1") is not None:
            return "The student has no classifier: see what a k-NN and a linear probe read from its embeddings."
        if agreement is None or teacher is not None:
            return "The student's accuracy was not measured, so nothing can be said about the gap."
        return f"Nothing on {split} is labelled: student and teacher agree on {percent(agreement)} of the images."
    if control is None:
        rest = "the share of the gap closed is not known."
        if teacher is None:
            return f"There is no control (the same student without teacher) and no teacher's accuracy: {rest}"
        side = "below" if student < teacher else "above" if student > teacher else "from"
        return (
            f"There is no control (the same student without teacher), so {rest} "
            f"The student is {abs(teacher - student):.1f} points {side} the teacher."
        )
    gain = (
        "as accurate as"
        if student == control
        else f"{abs(student - control):.1f} points {'above' if student > control else 'below'}"
    )
    if teacher is None:
        return f"The distilled student is {gain} the same student without teacher; the teacher was not measured."
    if teacher <= control:
        return (
            f"The teacher ({percent(teacher)}) is no better than the student trained without it ({percent(control)}): "
            f"there is no gap to close. The distilled student is {gain} the student without teacher."
        )
    if student < control:
        return f"The distilled student is {gain} the same student without teacher: distillation did not help here."
    if student == control:
        return "The distilled student is as accurate as the same student without teacher: none of the gap was closed."
    if student > teacher:
        return (
            f"The distilled student is {student - teacher:.1f} points above the teacher and {gain} the same student "
            "without teacher: more than the whole gap was closed."
        )
    given = number(result, "gap_closed")
    closed = given if given is not None else (student - control) / (teacher - control)
    return (
        f"Distillation closed {share(closed)} of the gap between the student without teacher ({percent(control)}) "
        f"and the teacher ({percent(teacher)})."
    )


def best_sentence(result: Mapping[str, Any]) -> str:
    """The best epoch, and on which data it was chosen; empty when there is none."""
    epoch, top1, on_val = (number(result, "best", key) for key in ("epoch", "top1", "val_top1"))
    divergence = number(result, "best", "val_kl_to_teacher")
    if epoch is None or (top1, on_val, divergence) == (None, None, None):
        return ""
    epochs = number(result, "epochs")
    where = f"epoch {epoch:.0f}" if epochs is None else f"epoch {epoch:.0f} of {epochs:.0f}"
    split = text(result, "evaluated_on")
    shown = f"top-1 {percent(top1)}" + (f" on {split}" if split else "")
    if on_val is None and divergence is not None:
        return f"Best epoch chosen on val, closest to the teacher (KL {fixed(divergence, 3)} there): {where}, {shown}."
    if split == "val":
        return f"Best epoch chosen on val: {where}, {shown}. It was chosen on the data it is reported on: optimistic."
    there = "" if on_val is None else f" ({percent(on_val)} there)"
    return f"Best epoch chosen on val{there}: {where}, {shown}."


def status_sentence(result: Mapping[str, Any]) -> str:
    """Empty for a run that is complete; otherwise what it lacks."""
    status = text(result, "status")
    if status == "ok":
        return ""
    error = text(result, "error")
    if status == "interrupted":
        return "Interrupted: this run is incomplete, its numbers are those of the last saved state."
    if status == "failed":
        return "Failed: this run is incomplete." + (f" {error}" if error else "")
    return "This run is incomplete: it has no final result."


def timing_words(result: Mapping[str, Any]) -> str:
    """``teacher 52 s, student 25 s, control 12 s``, without what took no time because it was found again."""
    parts = [(name, number(result, "timings", name)) for name in ("teacher", "assistants", "student", "control")]
    return ", ".join(f"{name} {seconds(value)}" for name, value in parts if value is not None and value >= 0.05)


def load_line(folder: Path) -> str:
    """The Python expression that loads the student of a run folder; a valid literal for any path."""
    return f"timm.create_model({'local-dir:' + (folder / 'student').as_posix()!r}, pretrained=True)"


def imports_for_timm(folder: Path) -> list[str]:
    """What has to be imported beside timm before it knows the exported student of a run folder."""
    exported = read_json(folder / "student" / "config.json")
    own = exported is not None and exported["architecture"] == "reused_head"
    return ["import distillcli.reused_head  # timm does not know this model without it"] if own else []


def transposed(grid: Grid) -> Grid:
    return [list(column) for column in zip(*grid, strict=True)]

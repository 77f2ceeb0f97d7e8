"""The tables of a run's report. Names in them are as the user gave them: whoever shows them makes them harmless."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distillcli.report.format import DASH, Grid, byte_count, compared, count, fixed, significant
from distillcli.report.models import measured_models
from distillcli.runs.reading import try_json
from distillcli.runs.result import ClassVerdict, DatasetFacts, Fingerprints, Measured, Result

LOST_CLASSES = 10


def closing_grid(result: Result) -> Grid:
    """Header and one row per model. A header's line break separates the name from its unit."""
    probed = result.student is not None and result.student.knn_top1 is not None
    probes = ["k-NN\n%", "linear\nprobe %"] if probed else []
    models = measured_models(result)
    intervals = {label: _interval(model) for label, model in models}
    bounds = ["95 %\ninterval"] if set(intervals.values()) - {DASH} else []
    grid = [["", "top-1\n%", *bounds, "top-5\n%", "agreement\n%", *probes, "params", "MACs", "latency\nms"]]
    for label, model in models:
        agreement = None if model is result.teacher else model.agreement  # with itself it says nothing
        grid.append(
            [
                label,
                *(fixed(model.top1), *([intervals[label]] if bounds else [])),
                *(fixed(share) for share in (model.top5, agreement)),
                *(fixed(share) for share in ((model.knn_top1, model.probe_top1) if probed else ())),
                *(count(model.params), count(model.macs), fixed(model.latency_ms)),
            ]
        )
    return grid


def _interval(model: Measured) -> str:
    """The interval of the top-1 over images, which the classes count."""
    images = sum(one.count or 0 for one in (model.per_class or {}).values())
    if model.top1 is None or not images:
        return DASH
    from distillcli.evidence.paired import share_interval  # scipy.stats takes a second to import

    low, high = share_interval(round(model.top1 / 100 * images), images)
    return f"{low:.1f} to {high:.1f}"


def lost_classes_grid(result: Result) -> Grid:
    """The classes, at most ten, in which distilling cost the student accuracy, the most harmed first.

    Measured against the control, or against the teacher where there is none; a header alone when there is no such
    class.
    """
    name = "teacher" if result.baseline is None else "control"
    other = result.teacher if result.baseline is None else result.baseline
    student, wanted = ((model and model.per_class) or {} for model in (result.student, other))
    tested = (result.verdict.by_class if result.verdict else None) or {}
    lost = []
    for label in student.keys() & wanted.keys():
        given, had = student[label].top1, wanted[label].top1
        if given is not None and had is not None and given < had:
            lost.append((given - had, label, student[label].count, had, given))
    extra = ["gained", "lost", "adjusted p"] if tested else []
    grid = [["class", "images", f"{name} %", "student %", "difference", *extra]]
    for difference, label, images, had, given in sorted(lost, key=lambda row: row[:2])[:LOST_CLASSES]:
        one = tested.get(label, ClassVerdict())
        cells = [fixed(one.gained, 0), fixed(one.lost, 0), significant(one.adjusted, 2)] if tested else []
        grid.append([label, fixed(images, 0), fixed(had), fixed(given), fixed(difference), *cells])
    return grid


def quality_grid(result: Result) -> Grid:
    """How far the probabilities of each model can be trusted, and how close they are to the teacher's."""
    grid = [["", "balanced\n%", "NLL", "ECE", "Brier", "KL to\nteacher"]]
    for label, model in measured_models(result):
        divergence = None if model is result.teacher else model.kl_to_teacher  # from itself it says nothing
        values = (model.nll, model.ece, model.brier, divergence)
        numbers = [fixed(model.balanced_accuracy), *(fixed(value, 3) for value in values)]
        if set(numbers) != {DASH}:
            grid.append([label, *numbers])
    return grid


def calibrated_grid(result: Result) -> Grid:
    """The temperature that suits each model, and what it mends: ``0.210 → 0.180``."""
    grid = [["", "temperature", "NLL", "ECE", "Brier"]]
    for label, model in measured_models(result):
        after = model.calibrated
        if after is not None:
            pairs = ((model.nll, after.nll), (model.ece, after.ece), (model.brier, after.brier))
            cells = [f"{fixed(before, 3)} → {fixed(now, 3)}" for before, now in pairs]
            grid.append([label, fixed(after.temperature, 2), *cells])
    return grid


def cost_grid(result: Result, folder: Path) -> Grid:
    """What teacher and student cost, and how many times less the student does; a header alone where one is missing."""
    grid = [["", "teacher", "student", "the student"]]
    teacher, student = result.teacher, result.student
    if teacher is None or student is None:
        return grid
    sizes = file_size(Path(teacher.run)) if teacher.run else None, file_size(folder)
    rows = [
        ("parameters", teacher.params, student.params, count, ("smaller", "larger", "same size")),
        ("MACs per image", teacher.macs, student.macs, count, ("fewer", "more", "as many")),
        ("exported file", *sizes, byte_count, ("smaller", "larger", "same size")),
        ("latency", teacher.latency_ms, student.latency_ms, _milliseconds, ("faster", "slower", "as fast")),
    ]
    for name, larger, smaller, words, kinds in rows:
        if larger is not None or smaller is not None:
            cells = [DASH if value is None else words(value) for value in (larger, smaller)]
            grid.append([name, *cells, compared(larger, smaller, *kinds) or DASH])
    return grid


def _milliseconds(value: float) -> str:
    return f"{fixed(value)} ms"


def file_size(folder: Path) -> int | None:
    """Bytes of the exported weights of a run folder; None where there are none."""
    weights = folder / "student" / "model.safetensors"
    return weights.stat().st_size if weights.is_file() else None


def environment_grid(folder: Path) -> Grid:
    """Where a run was made, as its ``environment.json`` says; a header alone where it cannot be read."""
    found = try_json(folder / "environment.json") or {}
    rows = [(key, found.get(key)) for key in ("device", "threads", "processes", "platform", "processor", "git")]
    return [["", ""], *([key, str(value)] for key, value in rows if isinstance(value, str | int) and value != "")]


def evaluation_grid(rows: Sequence[tuple[str, Measured]]) -> Grid:
    """Header and one row per evaluated model under its label, with every metric ``distill eval`` measures."""
    shares, plain = ["top-1\n%", "top-5\n%", "balanced\n%"], ["NLL", "ECE"]
    grid = [["", *shares, *plain, "agreement\n%", "KL to\nteacher", "params", "MACs", "latency\nms"]]
    for label, model in rows:
        grid.append(
            [
                label,
                *(fixed(share) for share in (model.top1, model.top5, model.balanced_accuracy)),
                *(fixed(model.nll, 3), fixed(model.ece, 3)),
                *(fixed(model.agreement), fixed(model.kl_to_teacher, 3)),
                *(count(model.params), count(model.macs), fixed(model.latency_ms)),
            ]
        )
    return grid


def settings_grid(result: Result) -> Grid:
    """What the run was asked to do and ran with; a header alone when nothing is known."""
    teacher, student, control = (model or Measured() for model in (result.teacher, result.student, result.baseline))
    plain_sum = result.objective is not None and result.alpha is None
    fingerprints = result.fingerprints or Fingerprints()
    rows = [
        ("teacher", teacher.model),
        ("teacher's run", teacher.run),
        ("student", student.model),
        ("control's run", control.run),
        ("objective", result.objective),
        ("temperature", significant(result.temperature)),
        ("alpha", "none: a plain weighted sum" if plain_sum else significant(result.alpha)),
        ("epochs", fixed(result.epochs, 0)),
        ("seed", fixed(result.seed, 0)),
        ("data", data_words(result.dataset or DatasetFacts())),
        ("images", result.images),
        ("overrides", " ".join(result.overrides)),
        ("images per second", fixed(result.images_per_second, 0)),
        ("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())),
        ("fingerprint of the data", fingerprints.data),
        ("fingerprint of the recipe", fingerprints.recipe),
    ]
    return [["setting", "value"], *([name, words] for name, words in rows if words and words != DASH)]


def data_words(data: DatasetFacts) -> str:
    """``digits, 10 classes, 1,297 train, 200 val, 300 test``"""
    sizes = (("train", data.train), ("val", data.val), ("test", data.test))
    some = data.labelled is not None and data.labelled != data.train
    words = [
        data.name,
        None if data.classes is None else f"{data.classes} classes",
        *(f"{size:,} {part}" for part, size in sizes if size),
        f"{data.labelled:,} of the training images labelled" if some else None,
    ]
    return ", ".join(word for word in words if word)

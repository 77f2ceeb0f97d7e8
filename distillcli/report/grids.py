"""The tables of a run's report. Names in them are as the user gave them: whoever shows them makes them harmless."""

from __future__ import annotations

from collections.abc import Sequence

from distillcli.report.format import DASH, Grid, count, fixed, significant
from distillcli.report.models import measured_models
from distillcli.runs.result import DatasetFacts, Fingerprints, Measured, Result

LOST_CLASSES = 10


def closing_grid(result: Result) -> Grid:
    """Header and one row per model. A header's line break separates the name from its unit."""
    probed = result.student is not None and result.student.knn_top1 is not None
    probes = ["k-NN\n%", "linear\nprobe %"] if probed else []
    grid = [["", "top-1\n%", "top-5\n%", "agreement\n%", *probes, "params", "MACs", "latency\nms"]]
    for label, model in measured_models(result):
        agreement = None if model is result.teacher else model.agreement  # with itself it says nothing
        grid.append(
            [
                label,
                *(fixed(share) for share in (model.top1, model.top5, agreement)),
                *(fixed(share) for share in ((model.knn_top1, model.probe_top1) if probed else ())),
                *(count(model.params), count(model.macs), fixed(model.latency_ms)),
            ]
        )
    return grid


def lost_classes_grid(result: Result) -> Grid:
    """The classes, at most ten, in which distilling cost the student accuracy, the most harmed first.

    Measured against the control, or against the teacher where there is none; a header alone when there is no such
    class.
    """
    name = "teacher" if result.baseline is None else "control"
    other = result.teacher if result.baseline is None else result.baseline
    student, wanted = ((model and model.per_class) or {} for model in (result.student, other))
    lost = []
    for label in student.keys() & wanted.keys():
        given, had = student[label].top1, wanted[label].top1
        if given is not None and had is not None and given < had:
            lost.append((given - had, label, student[label].count, had, given))
    grid = [["class", "images", f"{name} %", "student %", "difference"]]
    for difference, label, images, had, given in sorted(lost, key=lambda row: row[:2])[:LOST_CLASSES]:
        grid.append([label, fixed(images, 0), fixed(had), fixed(given), fixed(difference)])
    return grid


def quality_grid(result: Result) -> Grid:
    """How far the probabilities of each model can be trusted, and how close they are to the teacher's."""
    grid = [["", "balanced\n%", "NLL", "ECE", "KL to\nteacher"]]
    for label, model in measured_models(result):
        divergence = None if model is result.teacher else model.kl_to_teacher  # from itself it says nothing
        numbers = [fixed(model.balanced_accuracy), *(fixed(value, 3) for value in (model.nll, model.ece, divergence))]
        if set(numbers) != {DASH}:
            grid.append([label, *numbers])
    return grid


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

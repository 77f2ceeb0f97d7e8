"""What a run's report says in sentences. Each is empty where there is nothing to say."""

from __future__ import annotations

from collections.abc import Sequence

from distillcli.report.format import fixed, percent, seconds, share, significant
from distillcli.runs.result import DatasetFacts, EpochNumbers, Measured, Result, Verdict, top1_of

# The arrow and the dash are meant.

_SAME_STUDENT = "the same student trained without a teacher"
LEVEL = "95 %"
QUALITY_WORDS = (
    "Balanced: the mean over the classes of their top-1. NLL: negative log-likelihood of the labels, nats per image. "
    "ECE: expected calibration error, 0 to 1. Brier: mean squared error of the probabilities, 0 to 2. "
    "KL to teacher: nats per image."
)
CALIBRATED_WORDS = (
    "Before → after dividing the logits by the temperature that suits the validation labels best: above 1 a model was "
    "too sure of itself, below 1 not sure enough. No decision changes."
)
CLASS_LEVEL = 0.05


def heading(result: Result) -> str:
    """What was measured on what: ``resnet50 → mobilenetv3_small_100, digits, 300 test images``."""
    models = " → ".join(model.model for model in (result.teacher, result.student) if model and model.model)
    data, part = result.dataset or DatasetFacts(), result.evaluated_on
    size = {"val": data.val, "test": data.test}.get(part) if part else None
    images = "" if part is None else f"{part} images" if size is None else f"{size:,} {part} images"
    return ", ".join(words for words in (models, data.name, images) if words)


def status_sentence(result: Result) -> str:
    """What an incomplete run lacks; empty for a complete one."""
    if result.finished:
        return ""
    if result.status == "interrupted":
        return "Interrupted: this run is incomplete; distill train resume=FOLDER continues it."
    if result.status == "failed":
        return "Failed: this run is incomplete." + (f" {result.error}" if result.error else "")
    return "This run is incomplete: it has no final result."


def gap_sentence(result: Result) -> str:
    """What the teacher was worth, in one honest sentence.

    Empty where there is nothing to compare with, and for the run of a teacher, an assistant or a control.
    """
    if not result.finished or result.role not in (None, "student"):
        return ""
    student, teacher, control = top1_of(result.student), top1_of(result.teacher), top1_of(result.baseline)
    if student is None:
        return _without_accuracy(result)
    if result.teacher is None:  # plain training, or a teacher that trains with the student
        return (
            "" if control is None else f"The student is {_difference(student, control)} the control ({_SAME_STUDENT})."
        )
    if control is None:
        return _without_control(student, teacher)
    gain = _difference(student, control)
    if teacher is None:
        return f"The student is {gain} the control ({_SAME_STUDENT}); the teacher was not measured."
    if teacher <= control:
        return (
            f"The teacher ({percent(teacher)}) is no better than the control ({percent(control)}, {_SAME_STUDENT}): "
            f"there is no gap to close. The student is {gain} the control."
        )
    if student < control:
        return f"The student is {gain} the control ({_SAME_STUDENT}): distillation did not help."
    if student == control:
        return f"The student is {gain} the control ({_SAME_STUDENT}): none of the gap was closed."
    if student > teacher:
        return (
            f"The student is {_difference(student, teacher)} the teacher and {gain} the control ({_SAME_STUDENT}): "
            "more than the whole gap was closed."
        )
    closed = result.gap_closed if result.gap_closed is not None else (student - control) / (teacher - control)
    return (
        f"Distillation closed {share(closed)}{_gap_interval(result)} of the gap between the control "
        f"({percent(control)}, {_SAME_STUDENT}) and the teacher ({percent(teacher)})."
    )


def _gap_interval(result: Result) -> str:
    """How sure the share of the gap is; nothing for a result that has no predictions to tell."""
    verdict = result.verdict
    if verdict is None:
        return ""
    if verdict.gap_low is None or verdict.gap_high is None:
        return " (a gap that so few images do not settle)"
    return f" ({LEVEL} interval {share(verdict.gap_low)} to {share(verdict.gap_high)})"


def verdict_headline(verdict: Verdict) -> str:
    """Whether distilling helped."""
    if verdict.conclusion in ("helps", "hurts"):
        return f"Distilling {verdict.conclusion}"
    return "Not settled whether distilling helps"


def verdict_words(result: Result) -> str:
    """By how much distilling helped, how sure that is, and what would settle it. Empty where it was not compared."""
    found = result.verdict
    if found is None or found.difference is None or found.low is None or found.high is None:
        return ""
    numbers = f"{found.difference:+.1f} points to the control, {LEVEL} interval {found.low:+.1f} to {found.high:+.1f}"
    where = f"{numbers} over {found.images:,} {result.evaluated_on} images"
    if found.conclusion in ("helps", "hurts"):
        return f"{where} (McNemar p = {significant(found.p_value, 2)})."
    return f"{where}. {_settling(result)}"


def classes_sentence(result: Result) -> str:
    """In how many classes the student gained and lost against the control, and how much of it is beyond chance."""
    by_class = (result.verdict.by_class if result.verdict else None) or {}
    if not by_class:
        return ""
    differences = [one.difference or 0 for one in by_class.values()]
    lost, gained = sum(value < 0 for value in differences), sum(value > 0 for value in differences)
    sure = [one for one in by_class.values() if one.adjusted is not None and one.adjusted < CLASS_LEVEL]
    harmed = sum((one.difference or 0) < 0 for one in sure)
    beyond = f"{harmed} of the losses and {len(sure) - harmed} of the gains are" if sure else "none of that is"
    return (
        f"Of {len(by_class)} classes {gained} gained and {lost} lost accuracy; {beyond} beyond chance (McNemar's test "
        f"in each class, adjusted for their number by Benjamini and Hochberg, p < {CLASS_LEVEL})."
    )


def _rounded(images: int) -> int:
    """Two digits: more would look as if they were known."""
    return round(images, 2 - len(str(images)))


def _settling(result: Result) -> str:
    needed = None if result.verdict is None else result.verdict.images_to_settle
    seeds = "the same over several seeds: -m seed=0,1,2,3,4"
    if needed is None:
        return f"No test set would settle a difference of zero; try {seeds}."
    return f"About {_rounded(needed):,} test images would settle a difference of this size, or {seeds}."


def _without_accuracy(result: Result) -> str:
    student = result.student
    if student is not None and student.knn_top1 is not None:
        return "The student has no classifier: see how accurate a k-NN and a linear probe are on its embeddings."
    if student is None or student.agreement is None or top1_of(result.teacher) is not None:
        return "The student's accuracy was not measured, so nothing can be said about the gap."
    agreement = percent(student.agreement)
    return f"No {result.evaluated_on} image has a label; student and teacher agree on {agreement} of them."


def _without_control(student: float, teacher: float | None) -> str:
    unknown = "the share of the gap that was closed is unknown."
    if teacher is None:
        return f"There is no control ({_SAME_STUDENT}), and the teacher's accuracy was not measured: {unknown}"
    return (
        f"There is no control ({_SAME_STUDENT}), so {unknown} "
        f"The student is {_difference(student, teacher)} the teacher."
    )


def _difference(accuracy: float, other: float) -> str:
    """``1.0 points above``, for two accuracies in percent."""
    if accuracy == other:
        return "as accurate as"
    return f"{abs(accuracy - other):.1f} points {'above' if accuracy > other else 'below'}"


def best_sentence(result: Result) -> str:
    """The best epoch, and on which data it was chosen; empty when nothing is known of it."""
    if result.finished and is_without_validation(result):
        return "No validation data: the last epoch is the student."
    best = result.best or EpochNumbers()
    if best.epoch is None or (best.top1, best.val_top1, best.val_kl_to_teacher) == (None, None, None):
        return ""
    where = f"epoch {best.epoch}" if result.epochs is None else f"epoch {best.epoch} of {result.epochs}"
    shown = f"top-1 {percent(best.top1)}" + (f" on {result.evaluated_on}" if result.evaluated_on else "")
    if best.val_top1 is None and best.val_kl_to_teacher is not None:
        divergence = fixed(best.val_kl_to_teacher, 3)
        return f"Best epoch chosen on val, closest to the teacher (KL {divergence} there): {where}, {shown}."
    if result.evaluated_on == "val":
        return (
            f"Best epoch chosen on val: {where}, {shown}. This is optimistic: "
            "the epoch was chosen on the data it is reported on."
        )
    there = "" if best.val_top1 is None else f" ({percent(best.val_top1)} there)"
    return f"Best epoch chosen on val{there}: {where}, {shown}."


def exported_sentence(result: Result) -> str:
    """Which epoch the student is of, so that the numbers of the best epoch are not taken for its own."""
    last, best = result.last or EpochNumbers(), result.best or EpochNumbers()
    if last.epoch is None or best.epoch in (None, last.epoch):
        return ""
    if result.student_epoch == best.epoch:
        return f"The student is that of epoch {best.epoch}, the best on val, and not of the last one, {last.epoch}."
    return f"The student is that of the last epoch, {last.epoch}; epoch {best.epoch} was better on val."


def latency_sentence(models: Sequence[tuple[str, Measured]]) -> str:
    """What the latencies are, how steady they were, and why one is missing.

    ``models``: with their labels. Empty where nothing was timed, as in results of earlier versions.
    """
    timed = [(label, model) for label, model in models if model.latency_setting]
    if not timed:
        return ""
    words = [f"Latency: 10 % quantile of single passes ({timed[0][1].latency_setting})"]
    above = [(model.latency_spread_ms or 0) / model.latency_ms for _, model in timed if model.latency_ms]
    if above:
        words.append(f"the median is at most {share(max(above))} longer")
    words += [f"none for {label}, as {model.latency_doubt}" for label, model in timed if model.latency_doubt]
    return f"{'; '.join(words)}."


def is_without_validation(result: Result) -> bool:
    """Whether no data was held out to choose an epoch."""
    return result.dataset is not None and result.dataset.val == 0


def time_sentence(result: Result) -> str:
    """How long every part took, without what took no time because it had been trained before; else the whole run."""
    parts = [(name, result.timings.get(name)) for name in ("teacher", "assistants", "student", "control")]
    words = ", ".join(f"{name} {seconds(spent)}" for name, spent in parts if spent is not None and spent >= 0.05)
    if not words and result.seconds is None:
        return ""
    return f"Time: {words or seconds(result.seconds)}."

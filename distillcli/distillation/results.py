"""The result of a finished fit, student, teacher and control alike."""

from __future__ import annotations

from distillcli.config.schema import DatasetConfig
from distillcli.runs.folder import versions
from distillcli.runs.predictions import Predictions
from distillcli.runs.result import DatasetFacts, EpochNumbers, Fingerprints, Measured, Result
from distillcli.sources.source import Source
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.training.evaluation import evaluate, measure
from distillcli.training.fit import Fit, Fitted
from distillcli.training.session import Session
from distillcli.training.soundness import check_numbers
from distillcli.types import Spec


def result_of_fit(
    fit: Fit, fitted: Fitted, session: Session, teacher: FrozenTeacher | None = None
) -> tuple[Result, Predictions | None]:
    """Measure what was fitted, at its last and at its best epoch. ``teacher``: what it is compared with.

    Raises NumericError when the outputs are not finite. The caller adds what else belongs to the run: its command, its
    teacher, its control.
    """
    config, data = fit.config, fit.data
    images, part = len(data.evaluation.shown), data.source.evaluated_on
    session.say(f"{fit.role}: measuring it on {images:,} images ({part}), then exporting it")
    student, predictions = measure(fitted.backbone, data, teacher=teacher)
    measured = {"nll": student.nll, "kl_to_teacher": student.kl_to_teacher}
    check_numbers({name: n for name, n in measured.items() if n is not None}, fit, fitted.epoch)
    result = Result(
        status="ok",
        role=fit.role,
        name=config.name,
        evaluated_on=data.source.evaluated_on,
        student=student,
        student_epoch=fitted.epoch,
        best=_measured_epoch(fitted.best, fit, fitted, student, teacher) if fitted.best else None,
        last=_measured_epoch(fitted.last, fit, fitted, student, teacher),
        epochs=config.trainer.epochs,
        images_per_second=fitted.images_per_second,
        temperature=config.distill.temperature,
        alpha=config.distill.alpha,
        seed=config.seed,
        channels_last=config.trainer.channels_last,
        objective=fit.objective.words(),
        dataset=dataset_facts(data.source),
        versions=versions(),
        fingerprints=Fingerprints(data.source.fingerprint, fit.fingerprint),
    )
    return result, predictions


def _measured_epoch(
    of: dict[str, float], fit: Fit, fitted: Fitted, student: Measured, teacher: FrozenTeacher | None
) -> EpochNumbers:
    """The best or the last epoch on the evaluated part as well, as far as its weights are there."""
    if of["epoch"] == fitted.epoch:
        return _epoch(of, student.top1, student.kl_to_teacher)
    numbers = {} if fitted.other is None else evaluate(fitted.other, fit.data.evaluation, teacher=teacher)
    return _epoch(of, numbers.get("top1"), numbers.get("kl_to_teacher"))


def _epoch(on_val: dict[str, float], top1: float | None, kl_to_teacher: float | None) -> EpochNumbers:
    return EpochNumbers(
        epoch=int(on_val["epoch"]),
        val_top1=on_val.get("top1"),
        top1=top1,
        val_kl_to_teacher=on_val.get("kl_to_teacher"),
        kl_to_teacher=kl_to_teacher,
    )


def images_words(dataset: DatasetConfig, student: Spec, above: Spec | None) -> str:
    """What a model sees of an image when it is measured: ``224 x 224, centre crop of 87.5 %, mean ... and std ...``.

    ``above``: the teacher, if any. Says whose mean and std where those of the two differ.
    """
    size, crop = dataset.image_size, f"{100 * dataset.crop_fraction:g} % of the shorter side"
    if above is None or (above.mean, above.std) == (student.mean, student.std):
        normalised = [_normalised_words(student)]
    else:
        normalised = [f"teacher: {_normalised_words(above)}", f"student: {_normalised_words(student)}"]
    return "; ".join([f"{size} x {size} pixels, centre crop of {crop}", *normalised])


def _normalised_words(model: Spec) -> str:
    if not model.mean:
        return "mean and std of each member"
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (model.mean, model.std))
    return f"mean {mean} and std {std}"


def dataset_facts(source: Source) -> DatasetFacts:
    """The data of a run, as its result describes it."""
    return DatasetFacts(
        name=source.name,
        classes=len(source.classes),
        train=len(source.train.labels),
        labelled=source.train.labelled,
        val=len(source.val.labels) if source.val else 0,
        test=len(source.test.labels) if source.test else 0,
        skipped=len(source.skipped),
        ignored=len(source.ignored),
    )

"""The result of a finished fit, student, teacher and control alike."""

from __future__ import annotations

import copy
from collections.abc import Callable

from distillcli.errors import UserError
from distillcli.runs.folder import versions
from distillcli.runs.predictions import Predictions
from distillcli.runs.reading import reading
from distillcli.runs.result import DatasetFacts, EpochNumbers, Fingerprints, Measured, Result
from distillcli.sources.source import Source
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.training.checkpoint import read_checkpoint
from distillcli.training.evaluation import evaluate, measure
from distillcli.training.fit import Fit, Fitted
from distillcli.training.session import Session
from distillcli.training.soundness import check_numbers


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
    check_numbers({name: n for name, n in measured.items() if n is not None}, fit, config.trainer.epochs)
    result = Result(
        status="ok",
        role=fit.role,
        name=config.name,
        evaluated_on=data.source.evaluated_on,
        student=student,
        best=_best_epoch(fit, fitted, student, teacher, session.warn),
        last=_epoch(fitted.last, student.top1, student.kl_to_teacher),
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


def _best_epoch(
    fit: Fit, fitted: Fitted, student: Measured, teacher: FrozenTeacher | None, warn: Callable[[str], None]
) -> EpochNumbers | None:
    """None without validation data, which alone may choose an epoch."""
    if not fitted.best:
        return None
    epoch = fitted.best["epoch"]
    if epoch == fitted.last["epoch"]:
        return _epoch(fitted.best, student.top1, student.kl_to_teacher)
    path, best = fit.folder / "checkpoints" / "best.pt", copy.deepcopy(fitted.backbone)
    try:
        weights = read_checkpoint(path)
        with reading(path):
            if (weights["recipe"], weights.get("epoch", epoch)) != (fit.fingerprint, epoch):
                raise ValueError(f"it is not epoch {epoch} of this run")
            best.net.load_state_dict(weights["student"] if weights["ema"] is None else weights["ema"])
    except UserError as error:
        warn(f"{error}; the best epoch is not measured on {fit.data.source.evaluated_on}")
        return _epoch(fitted.best, None, None)
    numbers = evaluate(best, fit.data.evaluation, teacher=teacher)
    return _epoch(fitted.best, numbers.get("top1"), numbers.get("kl_to_teacher"))


def _epoch(on_val: dict[str, float], top1: float | None, kl_to_teacher: float | None) -> EpochNumbers:
    return EpochNumbers(
        epoch=int(on_val["epoch"]),
        val_top1=on_val.get("top1"),
        top1=top1,
        val_kl_to_teacher=on_val.get("kl_to_teacher"),
        kl_to_teacher=kl_to_teacher,
    )


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

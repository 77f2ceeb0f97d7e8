"""Accuracy, calibration and fidelity to the teacher of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassCalibrationError

from distillcli.models.ensemble import Classifier
from distillcli.runs.predictions import Predictions
from distillcli.runs.result import ClassAccuracy, Measured
from distillcli.runtime import autocast, sum_over_ranks
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.views.loader import Data, Loader

ECE_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """``numbers``: as far as they are known. ``by_class``: for each class that occurs, its top-1 in percent and how
    many images it has. ``predictions``: of all images that were shown, None for a model without a head.
    """

    numbers: dict[str, float]
    by_class: dict[int, tuple[float, int]]
    predictions: Predictions | None


def measure(
    backbone: Classifier, data: Data, precision: str = "fp32", teacher: FrozenTeacher | None = None
) -> tuple[Measured, Predictions | None]:
    """All numbers of one model on the evaluated part of ``data``, unknown ones None, and what they are made of.

    Latency is measured for all models of a run together.
    """
    found = evaluate_by_class(backbone, data.evaluation, precision, teacher)
    numbers, names = found.numbers, data.source.classes
    measured = Measured(
        model=backbone.spec.name,
        params=backbone.spec.params,
        macs=backbone.spec.macs,
        top1=numbers.get("top1"),
        top5=numbers.get("top5"),
        balanced_accuracy=numbers.get("balanced_accuracy"),
        nll=numbers.get("nll"),
        ece=numbers.get("ece"),
        agreement=numbers.get("agreement"),
        kl_to_teacher=numbers.get("kl_to_teacher"),
        per_class={names[k]: ClassAccuracy(top1, count) for k, (top1, count) in found.by_class.items()} or None,
    )
    return measured, found.predictions


def evaluate(
    backbone: Classifier, loader: Loader, precision: str = "fp32", teacher: FrozenTeacher | None = None
) -> dict[str, float]:
    """The numbers of ``evaluate_by_class`` alone."""
    return evaluate_by_class(backbone, loader, precision, teacher).numbers


@torch.no_grad()
def evaluate_by_class(
    backbone: Classifier, loader: Loader, precision: str, teacher: FrozenTeacher | None
) -> Evaluation:
    """Every image of ``loader`` once, over all ranks.

    ``top1``, ``top5`` and ``agreement`` (share of images where student and teacher decide alike) in percent, top-5
    being top-k of the classes there are; ``balanced_accuracy``: the mean over the classes of their top-1; ``nll`` and
    ``kl_to_teacher`` = KL(teacher || student) at temperature 1 in nats, mean per image; ``ece`` of 15 equal bins, in
    [0, 1]. An unknown number is left out: ``agreement`` and ``kl_to_teacher`` need a ``teacher`` with a
    head, the others labels, and count the labelled images alone. A student without a head has no number.
    """
    classes, runtime = backbone.spec.classes, loader.runtime
    if classes == 0:
        return Evaluation({}, {}, None)
    if teacher is not None and teacher.backbone.spec.classes == 0:
        teacher = None
    ece = MulticlassCalibrationError(classes, n_bins=ECE_BINS).to(runtime.device)
    top1, top5, nll, agreement, divergence = (
        MeanMetric(nan_strategy="disable").to(runtime.device)  # the others would leave such images out
        for _ in range(5)
    )
    right = torch.zeros(classes, dtype=torch.int64, device=runtime.device)  # of each class
    # A rank may have no image at all; after an empty update it takes part in the sums like the others.
    no_targets = torch.zeros(0, dtype=torch.int64, device=runtime.device)
    ece.update(torch.zeros(0, classes, device=runtime.device), no_targets)
    for mean in (top1, top5, nll, agreement, divergence):
        mean.update(no_targets.float())
    predicted = torch.zeros(len(loader.labels), dtype=torch.int64, device=runtime.device)
    likelihood = torch.zeros(len(loader.labels), device=runtime.device)
    was_training = backbone.training
    backbone.eval()
    for batch in loader.plain():
        with autocast(runtime.device, precision):
            logits = backbone(batch.images).logits.float()
        known, rows = batch.targets >= 0, batch.index.to(runtime.device)
        predicted[rows] = logits.argmax(dim=1)
        likelihood[rows[known]] = logits[known].softmax(dim=1).gather(1, batch.targets[known][:, None])[:, 0]
        of_known, labels = logits[known], batch.targets[known]
        hits = of_known.topk(min(5, classes)).indices == labels[:, None]
        top1.update(hits[:, 0].float())
        top5.update(hits.any(dim=1).float())
        right += torch.bincount(labels[hits[:, 0]], minlength=classes)
        ece.update(of_known.softmax(dim=1), labels)
        nll.update(functional.cross_entropy(of_known, labels, reduction="none"))
        if teacher is not None:
            target = teacher(batch).logits.float()
            agreement.update((logits.argmax(dim=1) == target.argmax(dim=1)).float())
            log_student, log_teacher = logits.log_softmax(dim=1), target.log_softmax(dim=1)
            divergence.update(functional.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(dim=1))
    backbone.train(was_training)
    numbers: dict[str, Tensor] = {}
    by_class: dict[int, tuple[float, int]] = {}
    if loader.has_labels:
        counts = torch.bincount(loader.labels[loader.labels >= 0], minlength=classes)
        recalls = 100 * sum_over_ranks(right, runtime) / counts
        by_class = {int(k): (recalls[k].item(), int(counts[k])) for k in counts.nonzero()[:, 0]}
        numbers |= {"balanced_accuracy": recalls[counts > 0].mean()}
        numbers |= {"top1": 100 * top1.compute(), "top5": 100 * top5.compute()}
        numbers |= {"nll": nll.compute(), "ece": ece.compute()}
    if teacher is not None:
        numbers |= {"agreement": 100 * agreement.compute(), "kl_to_teacher": divergence.compute()}
    # Each rank has filled in the rows of its own images.
    shown = torch.from_numpy(loader.shown).to(runtime.device)
    answers = (loader.labels, sum_over_ranks(predicted, runtime), sum_over_ranks(likelihood, runtime))
    predictions = Predictions(*(values[shown].cpu().numpy() for values in answers))
    return Evaluation({name: value.item() for name, value in numbers.items()}, by_class, predictions)

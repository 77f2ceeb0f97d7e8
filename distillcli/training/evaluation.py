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
from distillcli.runs.result import Calibrated, ClassAccuracy, Measured
from distillcli.runtime import autocast, sum_over_ranks
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.training.calibration import fitted_temperature
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
    temperature = fitted_temperature(backbone, data, precision)
    found = evaluate_by_class(backbone, data.evaluation, precision, teacher, temperature)
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
        brier=numbers.get("brier"),
        calibrated=None if temperature is None else _calibrated(temperature, numbers),
        agreement=numbers.get("agreement"),
        kl_to_teacher=numbers.get("kl_to_teacher"),
        per_class={names[k]: ClassAccuracy(top1, count) for k, (top1, count) in found.by_class.items()} or None,
    )
    return measured, found.predictions


def _calibrated(temperature: float, numbers: dict[str, float]) -> Calibrated:
    scaled = {key: numbers.get(f"calibrated_{key}") for key in ("nll", "ece", "brier")}
    return Calibrated(temperature, **scaled)


def evaluate(
    backbone: Classifier, loader: Loader, precision: str = "fp32", teacher: FrozenTeacher | None = None
) -> dict[str, float]:
    """The numbers of ``evaluate_by_class`` alone."""
    return evaluate_by_class(backbone, loader, precision, teacher).numbers


class _Quality:
    """How good probabilities are, over all ranks: likelihood, calibration error and Brier score."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.ece = MulticlassCalibrationError(classes, n_bins=ECE_BINS).to(device)
        self.nll, self.brier = _mean(device), _mean(device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """``logits``: B x classes. ``labels``: B."""
        shares = logits.softmax(dim=1)
        self.ece.update(shares, labels)
        self.nll.update(functional.cross_entropy(logits, labels, reduction="none"))
        self.brier.update((shares - functional.one_hot(labels, shares.shape[1])).square().sum(dim=1))

    def compute(self) -> dict[str, Tensor]:
        return {"nll": self.nll.compute(), "ece": self.ece.compute(), "brier": self.brier.compute()}


def _mean(device: torch.device) -> MeanMetric:
    return MeanMetric(nan_strategy="disable").to(device)  # the others would leave such images out


@torch.no_grad()
def evaluate_by_class(
    backbone: Classifier,
    loader: Loader,
    precision: str,
    teacher: FrozenTeacher | None,
    temperature: float | None = None,
) -> Evaluation:
    """Every image of ``loader`` once, over all ranks.

    ``top1``, ``top5`` and ``agreement`` (share of images where student and teacher decide alike) in percent, top-5
    being top-k of the classes there are; ``balanced_accuracy``: the mean over the classes of their top-1; ``nll`` and
    ``kl_to_teacher`` = KL(teacher || student) at temperature 1 in nats, mean per image; ``ece`` of 15 equal bins, in
    [0, 1]; ``brier``: mean squared distance to the label's one-hot vector, in [0, 2]. With a ``temperature`` that
    divides the logits, these three a second time as ``calibrated_nll`` and so on. An unknown number is left out:
    ``agreement`` and ``kl_to_teacher`` need a ``teacher`` with a head, the others labels, and count the labelled
    images alone. A student without a head has no number.
    """
    classes, runtime = backbone.spec.classes, loader.runtime
    if classes == 0:
        return Evaluation({}, {}, None)
    if teacher is not None and teacher.backbone.spec.classes == 0:
        teacher = None
    scales = {"": 1.0} | ({} if temperature is None else {"calibrated_": temperature})
    qualities = {prefix: _Quality(classes, runtime.device) for prefix in scales}
    top1, top5, agreement, divergence = (_mean(runtime.device) for _ in range(4))
    right = torch.zeros(classes, dtype=torch.int64, device=runtime.device)  # of each class
    # A rank may have no image at all; after an empty update it takes part in the sums like the others.
    no_targets = torch.zeros(0, dtype=torch.int64, device=runtime.device)
    for quality in qualities.values():
        quality.update(torch.zeros(0, classes, device=runtime.device), no_targets)
    for mean in (top1, top5, agreement, divergence):
        mean.update(no_targets.float())
    predicted = torch.zeros(len(loader.labels), dtype=torch.int64, device=runtime.device)
    likelihood, confidence = torch.zeros(2, len(loader.labels), device=runtime.device)
    was_training = backbone.training
    backbone.eval()
    for batch in loader.plain():
        with autocast(runtime.device, precision):
            logits = backbone(batch.images).logits.float()
        known, rows = batch.targets >= 0, batch.index.to(runtime.device)
        predicted[rows] = logits.argmax(dim=1)
        shares = logits.softmax(dim=1)
        confidence[rows] = shares.amax(dim=1)
        likelihood[rows[known]] = shares[known].gather(1, batch.targets[known][:, None])[:, 0]
        of_known, labels = logits[known], batch.targets[known]
        hits = of_known.topk(min(5, classes)).indices == labels[:, None]
        top1.update(hits[:, 0].float())
        top5.update(hits.any(dim=1).float())
        right += torch.bincount(labels[hits[:, 0]], minlength=classes)
        for prefix, quality in qualities.items():
            quality.update(of_known / scales[prefix], labels)
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
        for prefix, quality in qualities.items():
            numbers |= {f"{prefix}{key}": value for key, value in quality.compute().items()}
    if teacher is not None:
        numbers |= {"agreement": 100 * agreement.compute(), "kl_to_teacher": divergence.compute()}
    # Each rank has filled in the rows of its own images.
    shown = torch.from_numpy(loader.shown).to(runtime.device)
    answers = (loader.labels, *(sum_over_ranks(values, runtime) for values in (predicted, likelihood, confidence)))
    predictions = Predictions(*(values[shown].cpu().numpy() for values in answers))
    return Evaluation({name: value.item() for name, value in numbers.items()}, by_class, predictions)

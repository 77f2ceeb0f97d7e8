"""Accuracy, calibration, fidelity to the teacher, and cost of a model."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from distillcli.data.loader import Loader
from distillcli.models import Backbone
from distillcli.runtime import Runtime, autocast
from distillcli.teachers import FrozenTeacher

ECE_BINS = 15
LATENCY_RUNS = 30


@torch.no_grad()
def evaluate(
    backbone: Backbone, loader: Loader, runtime: Runtime, precision: str = "fp32", teacher: FrozenTeacher | None = None
) -> dict[str, float]:
    """Every image of ``loader`` once, over all ranks.

    ``top1``, ``top5`` and ``agreement`` (share of images where student and teacher decide alike) in percent, top-5
    being top-k of the classes there are; ``nll`` and ``kl_to_teacher`` = KL(teacher || student) at temperature 1 in
    nats, mean per image; ``ece`` of 15 equal bins, in [0, 1]. ``agreement`` and ``kl_to_teacher`` need a ``teacher``.
    """
    classes = backbone.spec.classes
    top1 = MulticlassAccuracy(classes, average="micro").to(runtime.device)
    top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)).to(runtime.device)
    ece = MulticlassCalibrationError(classes, n_bins=ECE_BINS).to(runtime.device)
    nll, agreement, divergence = (MeanMetric().to(runtime.device) for _ in range(3))
    was_training = backbone.training
    backbone.eval()
    for batch in loader.plain():
        with autocast(runtime.device, precision):
            logits = backbone(batch.images).logits.float()
        top1.update(logits, batch.targets)
        top5.update(logits, batch.targets)
        ece.update(logits.softmax(dim=1), batch.targets)
        nll.update(functional.cross_entropy(logits, batch.targets, reduction="none"))
        if teacher is not None:
            target = teacher(batch).logits.float()
            agreement.update((logits.argmax(dim=1) == target.argmax(dim=1)).float())
            log_student, log_teacher = logits.log_softmax(dim=1), target.log_softmax(dim=1)
            divergence.update(functional.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(dim=1))
    backbone.train(was_training)
    numbers = {"top1": 100 * top1.compute(), "top5": 100 * top5.compute(), "nll": nll.compute(), "ece": ece.compute()}
    if teacher is not None:
        numbers |= {"agreement": 100 * agreement.compute(), "kl_to_teacher": divergence.compute()}
    return {name: value.item() for name, value in numbers.items()}


@torch.no_grad()
def latency(backbone: Backbone, image_size: int, device: torch.device) -> float:
    """Milliseconds of one fp32 forward pass of one image: the median of 30 after 5 to warm up."""
    backbone.eval()
    images = torch.zeros(1, backbone.mean.shape[1], image_size, image_size, device=device)
    times = []
    for _ in range(LATENCY_RUNS + 5):
        started = time.perf_counter()
        backbone(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[5:])

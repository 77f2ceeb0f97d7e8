"""Terms that compare a batch with embeddings of earlier ones, kept in buffers and so in every checkpoint."""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from distillcli.config.terms import CRDOptions, QueueKLOptions
from distillcli.errors import UserError
from distillcli.terms.base import Setting, TeacherTerm, Term
from distillcli.terms.stages import unit
from distillcli.types import Batch, Output, Taps, tapped

_EPSILON = 1e-7  # beside M / N in the published estimator
_NOWHERE = -1e9  # a similarity whose softmax is 0; the infinity itself gives 0 times infinity


class OtherClasses(nn.Module):
    """Draws training images of other classes than a given image's, each of them equally likely.

    ``labels``: the class of each of the N training images; an image of unknown class, a negative number, forms a class
    of its own.
    """

    order: Tensor
    first: Tensor
    size: Tensor

    def __init__(self, labels: NDArray[np.int64]) -> None:
        super().__init__()
        count = len(labels)
        known = np.where(labels < 0, labels.max(initial=0) + 1 + np.arange(count), labels)
        order = np.argsort(known, kind="stable")
        starts = np.searchsorted(known[order], known, side="left")
        sizes = np.searchsorted(known[order], known, side="right") - starts
        # By image: where its class begins in the order of the classes, and how large it is. Not saved: rebuilt from the
        # labels.
        for name, values in {"order": order, "first": starts, "size": sizes}.items():
            self.register_buffer(name, torch.from_numpy(np.asarray(values, dtype=np.int64)), persistent=False)

    def forward(self, index_B: Tensor, count: int) -> Tensor:
        """B x count positions, drawn with replacement by torch's generator."""
        first, size = self.first[index_B, None], self.size[index_B, None]
        others = len(self.order) - size
        uniform = torch.rand(len(index_B), count, dtype=torch.float64, device=index_B.device)
        drawn = (uniform * others).long()
        return self.order[drawn + (drawn >= first) * size]


def contrast(positive_B: Tensor, negative_BM: Tensor, log_scale: Tensor, images: int) -> Tensor:
    """-[log P / (P + c) + sum over negatives of log c' / (P + c)], mean over the batch.

    P = exp(similarity - log_scale), similarities over their temperature, c' = M / N, c = c' + 1e-7: the odds that a row
    is the positive and not one of the M drawn at random. In the logarithm, as P overflows.
    """
    noise = math.log(negative_BM.shape[1] / images + _EPSILON)
    positive, negative = positive_B - log_scale, negative_BM - log_scale
    hit = -functional.softplus(noise - positive)
    missed = math.log(negative_BM.shape[1] / images) - torch.logaddexp(negative, torch.full_like(negative, noise))
    return -(hit + missed.sum(dim=1)).mean()


@final
class CRD(TeacherTerm):
    """Contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020): tell an image's pair from others.

    Both embeddings pass a trained linear map; each is contrasted with the other side's memory, which holds one vector
    for every training image: its own, and those of ``negatives`` images of other classes. The scale of the
    probabilities is taken from the first batch.
    """

    student_taps = Taps(embedding=True)
    teacher_taps = Taps(embedding=True)
    memories: Tensor
    log_scales: Tensor

    def __init__(self, options: CRDOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        self.others = OtherClasses(setting.labels)
        if (self.others.size == len(setting.labels)).any():
            raise UserError("distill.terms.crd: the training images have one class; there are no others to contrast")
        self.maps = nn.ModuleList(nn.Linear(spec.embedding_width, options.width) for spec in (student, teacher))
        bound = 1 / math.sqrt(options.width / 3)
        memories = torch.empty(2, len(setting.labels), options.width).uniform_(-bound, bound)
        self.register_buffer("memories", memories)  # the student's and the teacher's
        self.register_buffer("log_scales", torch.full((2,), math.nan))  # unknown before the first batch
        self.negatives = options.negatives
        self.tau = options.tau
        self.momentum = options.momentum

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        assert batch.targets.ndim == 1, "mixed images are refused when a config is checked"
        index = batch.index.to(student.logits.device, non_blocking=True)  # else the host would wait for the step
        rows = torch.cat([index[:, None], self.others(index, self.negatives)], dim=1)
        vectors = [
            unit(embed(output.embedding), dim=1) for embed, output in zip(self.maps, (student, teacher), strict=True)
        ]
        memories = self.memories.clone()  # autograd keeps it for the products, and its rows change below
        values = []
        for side, own in enumerate(vectors):
            similar = (own @ memories[1 - side].T).gather(1, rows) / self.tau
            with torch.no_grad():
                mean = similar.flatten().logsumexp(dim=0) - math.log(similar.numel() / self.memories.shape[1])
                self.log_scales[side] = torch.where(self.log_scales[side].isnan(), mean, self.log_scales[side])
            values.append(
                contrast(similar[:, 0], similar[:, 1:], self.log_scales[side].clone(), self.memories.shape[1])
            )
        with torch.no_grad():
            for memory, own in zip(self.memories, vectors, strict=True):
                memory[index] = unit(self.momentum * memory[index] + (1 - self.momentum) * own, dim=1)
        return torch.stack(values).sum()


def queue_divergence(student_BD: Tensor, teacher_BD: Tensor, queue_MD: Tensor, filled: Tensor, tau: float) -> Tensor:
    """KL(teacher || student) of the softmax of similarities to the first ``filled`` rows of a queue, batch mean.

    All vectors have length 1. There is no T^2: tau is the width of a neighbourhood, not a softening of both sides.
    """
    empty = torch.arange(len(queue_MD), device=queue_MD.device) >= filled
    student, teacher = (
        functional.log_softmax((side @ queue_MD.T / tau).masked_fill(empty, _NOWHERE), dim=1)
        for side in (student_BD, teacher_BD)
    )
    return functional.kl_div(student, teacher, log_target=True, reduction="batchmean")


def queue_length(images: int) -> int:
    """The largest power of two within 40 % of the images, at most 8192: 16 for 50 images, 8192 from 20480 on."""
    return int(min(8192, 2 ** max(0, math.floor(math.log2(0.4 * images)))))


@final
class QueueKL(TeacherTerm):
    """Neighbours of an image among the teacher's last embeddings, as a distribution; needs no labels.

    The student's embedding passes a trained linear map. The teacher's embeddings enter the queue before the comparison,
    so the first batch is compared with itself; rows not yet filled are ignored.
    """

    student_taps = Taps(embedding=True)
    teacher_taps = Taps(embedding=True)
    queue: Tensor
    filled: Tensor

    def __init__(self, options: QueueKLOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.models
        images = len(setting.labels)
        size = queue_length(images) if options.size is None else options.size
        if not 0 < size < images:
            raise UserError(f"distill.terms.queue_kl.size={size}: must be above 0 and below the {images} images")
        self.map = nn.Linear(student.embedding_width, teacher.embedding_width)
        nn.init.trunc_normal_(self.map.weight, std=0.02)
        self.register_buffer("queue", torch.zeros(size, teacher.embedding_width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.tau = options.tau

    def compare(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        mine, its = unit(self.map(tapped(student.embedding)), dim=1), unit(tapped(teacher.embedding), dim=1)
        self.queue.copy_(torch.cat([its, self.queue])[: len(self.queue)])
        self.filled.copy_((self.filled + len(its)).clamp(max=len(self.queue)))
        return queue_divergence(mine, its, self.queue.clone(), self.filled, self.tau)


MEMORY_TERMS: dict[str, type[Term]] = {"crd": CRD, "queue_kl": QueueKL}

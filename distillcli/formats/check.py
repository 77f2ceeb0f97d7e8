"""An exported model against the one it was made from, on the same images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Check:
    """``difference``: the largest between two answers, also as a share of the largest answer; ``bound``: of that share.

    ``top1``, ``top1_of_file``: percent of the labelled images, None without any. ``agreement``: percent of the images
    where both decide alike; None for a model without classes.
    """

    images: int
    difference: float
    share: float
    bound: float
    top1: float | None
    top1_of_file: float | None
    agreement: float | None

    @property
    def holds(self) -> bool:
        return self.share <= self.bound  # False for NaN


def compare(expected: Tensor, found: Tensor, labels: Tensor | None, bound: float) -> Check:
    """``expected``, ``found``: N x K, of the model and of the file. ``labels``: N, -1 if unknown; None: no classes."""
    difference = (found - expected).abs().max().item()
    largest = expected.abs().max().item()
    share = 0.0 if difference == 0 else difference / largest if largest else float("inf")
    if labels is None:
        return Check(len(expected), difference, share, bound, None, None, None)
    known, decided, its = labels >= 0, expected.argmax(dim=1), found.argmax(dim=1)
    top1, of_file = (
        100 * (answers[known] == labels[known]).double().mean().item() if known.any() else None
        for answers in (decided, its)
    )
    return Check(len(expected), difference, share, bound, top1, of_file, 100 * (decided == its).double().mean().item())

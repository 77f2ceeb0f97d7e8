"""The probe against NumPy, on a model whose embeddings are its images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tiny import open_tiny, tiny
from torch import Tensor, nn

from distillcli.training import probe as module
from distillcli.training.probe import embeddings, probe
from distillcli.types import Output, Spec, Taps
from distillcli.views.loader import Data


class Pixels(nn.Module):
    """The embedding of an image is its colour on a grid of 4 x 4."""

    spec = Spec("pixels", 0, 48, (), 0, 0)

    def forward(self, images: Tensor, taps: Taps) -> Output:
        assert not self.training
        assert taps == Taps(embedding=True)
        return Output(images[:, :0, 0, 0], nn.functional.adaptive_avg_pool2d(images, 4).flatten(1), {})


def pixels() -> Any:
    return Pixels().train()


def noisy(*overrides: str) -> Data:
    """Patterns drowned in noise, so that neither classifier is always right."""
    data = open_tiny(tiny("dataset.samples=200", *overrides))

    def drown(loader: Any, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        noise = 120 * torch.randn(len(loader), 4, 4, 3, generator=generator)
        coarse = nn.functional.interpolate(noise.permute(0, 3, 1, 2), 32).permute(0, 2, 3, 1)
        values = (loader.store.pixels.float() + coarse).clamp(0, 255).to(torch.uint8)
        return dataclasses.replace(loader, store=dataclasses.replace(loader.store, pixels=values))

    return dataclasses.replace(data, train=drown(data.train, 0), evaluation=drown(data.evaluation, 1))


def test_embeddings_are_those_of_plain_views_in_order() -> None:
    data, model = open_tiny(tiny()), pixels()
    rows, labels = embeddings(model, data.evaluation)
    (batch,) = data.evaluation.plain()
    assert np.array_equal(labels, batch.targets.numpy())
    assert np.array_equal(rows, nn.functional.adaptive_avg_pool2d(batch.images, 4).flatten(1).numpy())
    assert model.training


def test_a_rank_measures_all_images() -> None:
    loader = open_tiny(tiny()).evaluation
    second = dataclasses.replace(loader, runtime=dataclasses.replace(loader.runtime, rank=1, world=2))
    assert np.array_equal(embeddings(pixels(), second)[1], embeddings(pixels(), loader)[1])


def test_neighbours_vote_by_distance() -> None:
    data = noisy()
    learned, labels = embeddings(pixels(), data.train)
    asked, truth = embeddings(pixels(), data.evaluation)
    a, b = (side.astype(np.float64) / np.linalg.norm(side, axis=1, keepdims=True) for side in (asked, learned))
    distance = 1 - a @ b.T
    right = 0
    for row, label in zip(distance, truth, strict=True):
        near = np.argsort(row)[:20]
        right += int(np.bincount(labels[near], 1 / row[near]).argmax() == label)
    numbers = probe(pixels(), data)
    assert numbers["knn_top1"] == pytest.approx(100 * right / len(truth))
    assert 25 < numbers["knn_top1"] < 100  # chance is 25
    assert 25 < numbers["probe_top1"] <= 100


def test_unlabelled_images_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    original = module.embeddings

    def watched(backbone: Any, loader: Any) -> Any:
        rows, labels = original(backbone, loader)
        seen.append(set(labels.tolist()))
        return rows, labels

    monkeypatch.setattr(module, "embeddings", watched)
    data = noisy("dataset.labelled=0.1")
    probe(pixels(), data)
    assert seen == [{0, 1, 2, 3}, {0, 1, 2, 3}]


def test_many_images_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(module, "MOST_IMAGES", 70)
    original = module.embeddings
    monkeypatch.setattr(
        module, "embeddings", lambda net, loader: (sizes.append(len(loader.shown)), original(net, loader))[1]
    )
    probe(pixels(), noisy())
    assert sizes == [70, 50]

"""Made-up inputs of terms: specs, outputs and batches without a model behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distillcli.config.schema import DistillConfig, ModelConfig
from distillcli.config.terms import parse_options
from distillcli.models.backbone import build
from distillcli.runtime import seed_everything
from distillcli.terms import TERMS
from distillcli.terms.objective import Objective
from distillcli.types import Batch, Inputs, Output, Spec
from tests.tiny import setting


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spec(classes: int) -> Spec:
    return Spec("model", classes, 8, ((4, 8, 6),), 0, 0)


def output(spec: Spec, count: int = 6, seed: int = 0, scale: float = 1.0, grad: bool = False) -> Output:
    """Everything a model of this kind can be asked for but a token's logits, in float64; its parts are leaves.

    Every stage is under its positive and its negative number. The logits are the mean of the class maps, 4 x 3.
    """

    def leaf(*shape: int, seed: int) -> Tensor:
        return (scale * seeded(count, *shape, seed=seed)).requires_grad_(grad)

    logits, embedding = leaf(spec.classes, seed=seed), leaf(spec.embedding_width, seed=seed + 100)
    stages = [leaf(*shape, seed=seed + 200 + row) for row, shape in enumerate(spec.stage_shapes)]
    numbered = {row - shift: maps for row, maps in enumerate(stages) for shift in (0, len(stages))}
    noise = scale * seeded(count, spec.classes, 4, 3, seed=seed + 300)
    class_maps = noise - noise.mean(dim=(2, 3), keepdim=True) + logits.detach()[:, :, None, None]
    features = None if spec.feature_shape is None else leaf(*spec.feature_shape, seed=seed + 400)
    return Output(logits, embedding, numbered, None, class_maps.requires_grad_(grad), features, dict(numbered))


def changed(whole: Output, how: Callable[[Tensor], Tensor]) -> Output:
    """Every part of an output, changed in the same way."""

    def part(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else how(tensor)

    return Output(
        how(whole.logits),
        part(whole.embedding),
        {stage: how(maps) for stage, maps in whole.stages.items()},
        part(whole.token_logits),
        part(whole.class_maps),
        part(whole.features),
        {stage: how(maps) for stage, maps in whole.preactivations.items()},
    )


def cast(whole: Output, dtype: torch.dtype) -> Output:
    return changed(whole, lambda tensor: tensor.to(dtype))


def take(whole: Output, rows: list[int]) -> Output:
    return changed(whole, lambda tensor: tensor[rows])


def parts(whole: Output) -> list[Tensor]:
    """The different tensors of an output."""
    found: list[Tensor] = []
    changed(whole, lambda tensor: found.append(tensor) or tensor)
    return list({id(tensor): tensor for tensor in found}.values())


def batch_of(count: int = 6, first: int = 0, targets: Tensor | None = None) -> Batch:
    """``count`` images from position ``first`` of a data set of five classes in turn."""
    index = torch.arange(first, first + count)
    return Batch(torch.zeros(count, 3, 8, 8), index % 5 if targets is None else targets, index)


def fresh(name: str, size: int = 32) -> Any:
    """A real model with random weights, for five classes."""
    seed_everything(0, name)
    return build(ModelConfig(name=name), Inputs(5, size), "student")


def built(name: str, student: Spec, teacher: Spec, images: int = 64, **options: Any) -> Any:
    """The term, in float64."""
    seed_everything(0)
    return TERMS[name](parse_options(name, options), setting(student, teacher, images)).double()


def value_of(term: Any, student: Output, teacher: Output, temperature: float = 4.0) -> Tensor:
    value: Tensor = term(student, teacher, batch_of(len(student.logits)), temperature)
    return value


def objective(
    terms: dict[str, Any],
    student: Spec,
    teacher: Spec | None,
    alpha: float | None = None,
    temperature: float = 4.0,
    images: int = 64,
) -> Objective:
    seed_everything(0)
    config = DistillConfig(name="test", temperature=temperature, alpha=alpha, terms=terms)
    return Objective(config, setting(student, teacher, images))

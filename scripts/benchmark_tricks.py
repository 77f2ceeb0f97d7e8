"""What the parts of a fast step give on a CPU: python scripts/benchmark_tricks.py

Ratios of medians of alternating turns, one thread, batch 64 at 32 px; the table is in docs/performance.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from distillcli.config.schema import ModelConfig
from distillcli.inference import for_inference
from distillcli.models import Backbone, build
from distillcli.pointwise import use_linear
from distillcli.runtime import autocast

CPU, SIZE, BATCH, TURNS = torch.device("cpu"), 32, 64, 7
TEACHERS = ("resnet18", "resnet50", "efficientnet_b0")
STUDENTS = ("mobilenetv3_small_100", "mobilenetv4_conv_small", "resnet18")


def model(name: str, linear: bool) -> Backbone:
    backbone = build(ModelConfig(name), 10, SIZE, "model").to(memory_format=torch.channels_last)
    if linear:
        use_linear(backbone)
    return backbone


@torch.no_grad()
def answer(backbone: Backbone, images: Tensor, precision: str) -> None:
    with autocast(CPU, precision):
        backbone(images)


def learn(backbone: Backbone, images: Tensor) -> None:
    backbone(images).logits.sum().backward()
    backbone.zero_grad()


def medians(turns: list[Callable[[], None]]) -> list[float]:
    times = [[_seconds(turn) for turn in turns] for _ in range(1 + TURNS)][1:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def _seconds(turn: Callable[[], None]) -> float:
    started = time.perf_counter()
    turn()
    return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    images = torch.rand(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    for name in TEACHERS:
        plain, fast = model(name, linear=False).eval(), for_inference(model(name, linear=True), "bf16", SIZE)
        fp32, bf16, ours = medians(
            [
                lambda net=plain: answer(net, images, "fp32"),
                lambda net=plain: answer(net, images, "bf16"),
                lambda net=fast: answer(net, images, "bf16"),
            ]
        )
        print(f"teacher {name}: {bf16 / ours:.2f} against autocast, {fp32 / ours:.2f} against fp32")
    for name in STUDENTS:
        students = [model(name, linear).train() for linear in (False, True)]
        plain_time, linear_time = medians([lambda net=net: learn(net, images) for net in students])
        print(f"student {name}: {plain_time / linear_time:.2f}")


if __name__ == "__main__":
    main()

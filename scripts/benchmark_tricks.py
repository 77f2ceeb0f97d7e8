"""What the parts of a fast step give on a CPU: python scripts/benchmark_tricks.py [models|photographs]

Ratios of medians of alternating turns, one thread; models at batch 64 and 32 px, photographs cropped to 224 px. The
tables are in docs/performance.md.
"""

from __future__ import annotations

import functools
import io
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distillcli.config.schema import AugmentConfig, ModelConfig
from distillcli.models.backbone import Backbone, build
from distillcli.models.inference import for_inference
from distillcli.models.pointwise import use_linear
from distillcli.runtime import Runtime, autocast
from distillcli.sources.decode import decode_bytes
from distillcli.sources.source import MinimumSize
from distillcli.types import Inputs
from distillcli.views.store import Cropping, Rows, StreamStore

CPU, SIZE, BATCH, TURNS = torch.device("cpu"), 32, 64, 7
TEACHERS = ("resnet18", "resnet50", "efficientnet_b0")
STUDENTS = ("mobilenetv3_small_100", "mobilenetv4_conv_small", "resnet18")
CROPS = 8


def model(name: str, linear: bool) -> Backbone:
    backbone = build(ModelConfig(name), Inputs(10, SIZE), "model").to(memory_format=torch.channels_last)
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


def models() -> None:
    images = torch.rand(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    for name in TEACHERS:
        plain, fast = model(name, linear=False).eval(), for_inference(model(name, linear=True), "bf16")
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


@dataclass(frozen=True)
class Photographs:
    """One photograph over and over. ``reduced``: it may be decoded smaller than it is."""

    content: bytes
    reduced: bool

    def __len__(self) -> int:
        return CROPS

    def read(self, index: int, minimum_size: MinimumSize | None = None) -> NDArray[np.uint8]:
        return decode_bytes(self.content, self.name(index), minimum_size if self.reduced else None)

    def name(self, index: int) -> str:
        return f"photograph {index}"


def photograph(width: int, height: int) -> bytes:
    """Large shapes under fine grain, about as many bits a pixel as cameras write."""
    random, file = np.random.RandomState(0), io.BytesIO()
    coarse = Image.fromarray(random.randint(0, 256, (12, 16, 3)).astype(np.uint8))
    shapes = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = random.randint(-6, 7, (height, width, 1))
    Image.fromarray(np.clip(shapes + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def crop(store: StreamStore, cropping: Cropping) -> None:
    next(store.fetch(cropping, [Rows(np.ones(CROPS, np.int64), np.arange(CROPS))]))


def photographs() -> None:
    for width, height in ((4032, 3024), (2048, 1536), (500, 375)):
        content = photograph(width, height)
        stores = [StreamStore(Photographs(content, reduced), 224, 0, Runtime(CPU)) for reduced in (False, True)]
        for name, recipe in (("random crops", AugmentConfig("imagenet", crop_area=[0.08, 1.0])), ("centre", None)):
            cropping = Cropping(recipe, 0, 0.875)
            whole, reduced = medians([functools.partial(crop, store, cropping) for store in stores])
            bits = 8 * len(content) / width / height
            print(
                f"{width} x {height}, {bits:.1f} bits a pixel, {name}: {1000 * whole / CROPS:.1f} ms whole, "
                f"{1000 * reduced / CROPS:.1f} ms reduced, gain {whole / reduced:.2f}"
            )


def main() -> None:
    torch.set_num_threads(1)
    parts = {"models": models, "photographs": photographs}
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()

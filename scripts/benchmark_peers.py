"""What a step costs in other loops, side by side: python scripts/benchmark_peers.py [--px 32] [--teacher resnet50]

The peers want an environment of their own:

    python3 -m venv .venv-peers && .venv-peers/bin/python -m pip install uv
    .venv-peers/bin/uv pip install --python .venv-peers/bin/python -e '.[peers]'
    .venv-peers/bin/python scripts/benchmark_peers.py

Every contender distils the same teacher into the same student from the same images of digits, with the same batch,
optimizer, objective and random shift. They take turns in one process, step by step, so that a busy neighbour slows all
of them down; what counts are the ratios. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import timm
import torch
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.task import LogitDistillationTask
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchdistill.core.distillation import get_distillation_box
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from distillcli.config.compose import compose
from distillcli.config.schema import TrainConfig
from distillcli.config.terms import labels_only
from distillcli.models.backbone import build, describe, place
from distillcli.runtime import Runtime, start
from distillcli.sources.open import open_source
from distillcli.teachers.cached import with_cache
from distillcli.teachers.frozen import Teacher, as_teacher
from distillcli.terms.base import Setting
from distillcli.terms.objective import Objective
from distillcli.training.learners import Distillation
from distillcli.training.optim import build_optimizer
from distillcli.training.step import Update, train_step
from distillcli.types import Batch
from distillcli.views.loader import Data, open_data
from distillcli.views.showing import showing

TEMPERATURE, ALPHA, LR, SHIFT = 4.0, 0.9, 0.05, 0.1
Step = Callable[[], object]


class Pictures(Dataset[tuple[object, int]]):
    """The training images of ``data`` as PIL pictures, what most loops read."""

    def __init__(self, data: Data, transform: Callable[[object], object] | None = None) -> None:
        split = data.source.train
        self.pictures = [to_pil_image(split.images.read(index)) for index in range(len(split.labels))]
        self.labels = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[object, int]:
        picture = self.pictures[index]
        return (picture if self.transform is None else self.transform(picture)), self.labels[index]


def forever(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def models(config: TrainConfig, classes: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    student = timm.create_model(config.student.name, num_classes=classes)
    teacher = timm.create_model(config.teacher.name, num_classes=classes).eval().requires_grad_(False)
    return student, teacher


def pil_transform(px: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[object], object]:
    return transforms.Compose(
        [
            transforms.Resize((px, px)),
            transforms.RandomAffine(0, translate=(SHIFT, SHIFT)),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def plain_loop(config: TrainConfig, data: Data) -> Step:
    """What a tutorial writes: PIL transforms, contiguous tensors, teacher without gradients."""
    student, teacher = models(config, len(data.source.classes))
    settings = student.pretrained_cfg
    transform = pil_transform(config.dataset.image_size, settings["mean"], settings["std"])
    batches = forever(DataLoader(Pictures(data, transform), config.trainer.batch_size, shuffle=True, drop_last=True))
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        images, labels = next(batches)
        with torch.no_grad():
            target = teacher(images)
        logits = student(images)
        soft = functional.kl_div(
            (logits / TEMPERATURE).log_softmax(1), (target / TEMPERATURE).softmax(1), reduction="batchmean"
        )
        loss = (1 - ALPHA) * functional.cross_entropy(logits, labels) + ALPHA * TEMPERATURE**2 * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def torchdistill_box(config: TrainConfig, data: Data) -> Step:
    """torchdistill's own box: its loader, loss and optimizer step, called as in its image classification example."""
    student, teacher = models(config, len(data.source.classes))
    settings = student.pretrained_cfg
    transform = pil_transform(config.dataset.image_size, settings["mean"], settings["std"])
    logits = {"student_module_path": ".", "student_module_io": "output"}
    logits |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    box = get_distillation_box(
        teacher,
        student,
        {"train": Pictures(data, transform)},
        {
            "num_epochs": 1,
            "train_data_loader": {
                "dataset_id": "train",
                "sampler": {"class_or_func": RandomSampler},
                "kwargs": {"batch_size": config.trainer.batch_size, "drop_last": True},
            },
            "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
            "student": {"forward_proc": "forward_batch_only"},
            "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": 0.9, "weight_decay": 5e-4}},
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {
                    "sub_terms": {
                        "kd": {
                            "criterion": {
                                "key": "KDLoss",
                                "kwargs": {**logits, "temperature": TEMPERATURE, "alpha": 1 - ALPHA, "beta": ALPHA},
                            },
                            "weight": 1.0,
                        }
                    }
                },
            },
        },
        torch.device("cpu"),
        device_ids=[],
        distributed=False,
        lr_factor=1,
    )
    box.pre_epoch_process(epoch=0)
    batches = forever(box.train_data_loader)

    def step() -> None:
        images, labels, extra = next(batches)
        box.post_forward_process(box.forward_process(images, labels, extra))

    return step


def timm_task(config: TrainConfig, data: Data, channels_last: bool) -> Step:
    """timm's own distillation task, loader and optimizer; its loss is the same up to the order of the sums."""
    student, teacher = models(config, len(data.source.classes))
    settings = student.pretrained_cfg
    layout = torch.channels_last if channels_last else torch.contiguous_format
    student, teacher = student.to(memory_format=layout), teacher.to(memory_format=layout)
    loader = create_loader(
        Pictures(data),
        (3, config.dataset.image_size, config.dataset.image_size),
        config.trainer.batch_size,
        is_training=True,
        no_aug=True,
        use_prefetcher=False,
        mean=settings["mean"],
        std=settings["std"],
        num_workers=0,
        persistent_workers=False,
        pin_memory=False,
        device=torch.device("cpu"),
    )
    loader.dataset.transform = pil_transform(config.dataset.image_size, settings["mean"], settings["std"])
    batches = forever(loader)
    task = LogitDistillationTask(
        student,
        teacher,
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=1 - ALPHA,
        temperature=TEMPERATURE,
        device=torch.device("cpu"),
        verbose=False,
    ).train()
    optimizer = create_optimizer_v2(student, opt="momentum", lr=LR, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        images, labels = next(batches)
        loss = task(images.contiguous(memory_format=layout), labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def distill_loop(
    config: TrainConfig, data: Data, runtime: Runtime, precision: str | None, cached: bool = False
) -> Step:
    """The step of this package. ``precision``: of the teacher, None for no teacher. Cached: rows are written before."""
    layout = config.trainer.channels_last
    terms = config.distill if precision else labels_only(config.distill)
    specs = [describe(model, data.inputs, "student") for model in (config.student, config.teacher)]
    labels = data.source.train.labels
    objective = Objective(terms, Setting(specs[0], specs[1] if precision else None, labels, config.trainer.epochs))
    model = Distillation(
        place(build(config.student, data.inputs, "student"), runtime.device, layout), objective
    ).train()
    optimizer = build_optimizer(config.optimizer, [model.student.net], model.objective)
    trainer = dataclasses.replace(config.trainer, precision="fp32", clip_grad=None)
    update = Update.of(optimizer, trainer, runtime.device)
    teacher: Teacher | None = None
    if precision:
        config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, precision=precision))
        backbone = place(build(config.teacher, data.inputs, "teacher"), runtime.device, layout)
        live = as_teacher(config, [backbone], objective.teacher_taps, runtime)
        teacher = with_cache(config, data, live, runtime)[0] if cached else live

    shown = dataclasses.replace(showing(config, data.train), micro_batches=1, cycle=1 if cached else 0)

    def batches() -> Iterator[list[Batch]]:
        for epoch in itertools.count(1):
            yield from shown.epoch(epoch)

    if cached and teacher is not None:
        for parts in itertools.islice(batches(), shown.steps_per_epoch + 1):
            teacher(parts[0])
    waiting = batches()
    return lambda: train_step(next(waiting), teacher, model, update, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=32)
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--student", default="mobilenetv3_small_100")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120.0, help="of timed turns, all contenders together")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = compose(
            "train",
            [
                *("dataset=digits", f"dataset.image_size={options.px}", f"trainer.batch_size={options.batch}"),
                *(f"teacher.name={options.teacher}", f"student.name={options.student}", "teacher.pretrained=false"),
                *("student.pretrained=false", f"runs={folder}", "trainer.device=cpu"),
                *(f"trainer.threads={options.threads}", "augment=none", f"augment.translate={SHIFT}"),
                *("optimizer=sgd", "optimizer.name=momentum", f"optimizer.lr={LR}", "optimizer.weight_decay=5e-4"),
                *("distill=kd", f"distill.temperature={TEMPERATURE}", f"distill.alpha={ALPHA}"),
            ],
        )
        assert isinstance(config, TrainConfig)
        with start(config.trainer) as runtime:
            data = open_data(open_source(config.dataset), config.dataset, 0, runtime)
            contenders: dict[str, Step] = {
                "plain PyTorch loop, PIL transforms": plain_loop(config, data),
                "torchdistill's box": torchdistill_box(config, data),
                "timm LogitDistillationTask": timm_task(config, data, channels_last=False),
                "timm LogitDistillationTask, channels_last": timm_task(config, data, channels_last=True),
                "distillcli, live fp32 teacher": distill_loop(config, data, runtime, "fp32"),
                "distillcli, live bf16 teacher": distill_loop(config, data, runtime, "bf16"),
                "distillcli, cached teacher": distill_loop(config, data, runtime, "fp32", cached=True),
                "distillcli, no teacher": distill_loop(config, data, runtime, None),
            }
            times = take_turns(contenders, options.seconds)
    print(f"{options.teacher} teaches {options.student}: {options.px} px, batch {options.batch}\n")
    print(table(times, options.batch))


def take_turns(contenders: dict[str, Step], seconds: float) -> dict[str, list[float]]:
    """Seconds of each step; the first two steps of each contender do not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for step in contenders.values():
        step()
        step()
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for name, step in contenders.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    return times


def table(times: dict[str, list[float]], batch: int) -> str:
    """Ratios are medians over the rounds of (first contender / this one): both halves saw the same neighbours."""
    base = next(iter(times.values()))
    lines = ["| loop | ms a step | images/s | times the plain loop |", "|---|---|---|---|"]
    for name, own in times.items():
        middle = statistics.median(own)
        ratio = statistics.median(first / this for first, this in zip(base, own, strict=True))
        lines.append(f"| {name} | {1000 * middle:.0f} | {batch / middle:.0f} | {ratio:.2f} |")
    return "\n".join([*lines, "", f"{len(base)} rounds."])


if __name__ == "__main__":
    main()

"""What a step costs in other loops, side by side: python scripts/benchmark_peers.py [--px 32] [--teacher resnet50]

On a GPU: python scripts/benchmark_peers.py --device cuda --px 224 --batch 256 --teacher resnet50 \\
    --student mobilenetv3_large_100

The peers want an environment of their own:

    python3 -m venv .venv-peers && .venv-peers/bin/python -m pip install uv
    .venv-peers/bin/uv pip install --python .venv-peers/bin/python -e '.[peers]'
    .venv-peers/bin/python scripts/benchmark_peers.py

Every contender distils the same teacher into the same student from the same images, with the same batch, optimizer and
objective. They take turns in one process, so that a busy neighbour slows all of them down; what counts are the ratios.
On a CPU all read digits and shift them at random. On a GPU the images are in its memory: the peers get normalised
batches with a random flip and nothing else, this package its crops and flips. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch._dynamo
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image
from trials import open_trial

from distillcli.config.compose import compose
from distillcli.config.schema import TrainConfig
from distillcli.distillation.bench import peak_flops, wait_for
from distillcli.models.backbone import describe
from distillcli.runtime import PRECISIONS, Runtime, autocast, start
from distillcli.sources.open import open_source
from distillcli.views.loader import Data, open_data

TEMPERATURE, ALPHA, LR, SHIFT = 4.0, 0.9, 0.05, 0.1
Step = Callable[[], object]
Batches = Iterator[tuple[Tensor, Tensor]]
# Steps that do not count, for kernels to be chosen and compiled; and steps of a turn.
WARM_UP, STEPS_PER_TURN = {"cpu": 2, "cuda": 8}, {"cpu": 1, "cuda": 20}
LAYOUTS = {True: torch.channels_last, False: torch.contiguous_format}


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


def models(config: TrainConfig, classes: int, device: torch.device, channels_last: bool) -> tuple[Any, Any]:
    torch.manual_seed(0)
    student = timm.create_model(config.student.name, num_classes=classes)
    teacher = timm.create_model(config.teacher.name, num_classes=classes).eval().requires_grad_(False)
    student, teacher = (model.to(device, memory_format=LAYOUTS[channels_last]) for model in (student, teacher))
    return student, teacher


def normalisation(config: TrainConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    settings = timm.get_pretrained_cfg(config.student.name)
    assert settings is not None
    return settings.mean, settings.std


def pil_transform(config: TrainConfig) -> Callable[[object], object]:
    px = config.dataset.image_size
    return transforms.Compose(
        [
            transforms.Resize((px, px)),
            transforms.RandomAffine(0, translate=(SHIFT, SHIFT)),
            transforms.ToTensor(),
            transforms.Normalize(*normalisation(config)),
        ]
    )


def pil_batches(config: TrainConfig, data: Data) -> Batches:
    """PIL pictures, one by one, by torch's loader."""
    pictures = Pictures(data, pil_transform(config))
    return forever(DataLoader(pictures, config.trainer.batch_size, shuffle=True, drop_last=True))


def timm_batches(config: TrainConfig, data: Data) -> Batches:
    """The same pictures by timm's loader."""
    mean, std = normalisation(config)
    loader = create_loader(
        Pictures(data),
        (3, config.dataset.image_size, config.dataset.image_size),
        config.trainer.batch_size,
        is_training=True,
        no_aug=True,
        use_prefetcher=False,
        mean=mean,
        std=std,
        num_workers=0,
        persistent_workers=False,
        pin_memory=False,
        device=torch.device("cpu"),
    )
    loader.dataset.transform = pil_transform(config)
    return forever(loader)


def resident_batches(config: TrainConfig, data: Data, device: torch.device) -> Batches:
    """Random images that lie on the GPU as bytes, normalised, every second batch flipped: a loader does more."""
    split = data.source.train
    pool = torch.stack([torch.from_numpy(split.images.read(index)) for index in range(len(split.labels))]).to(device)
    pool, labels = pool.permute(0, 3, 1, 2), torch.from_numpy(split.labels).to(device)  # channels_last
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in normalisation(config))
    for number in itertools.count():
        chosen = torch.randint(len(pool), (config.trainer.batch_size,), device=device)
        images = pool[chosen].float().div_(255).sub_(mean).div_(std)
        yield (images.flip(3) if number % 2 else images), labels[chosen]


def plain_loop(config: TrainConfig, classes: int, batches: Batches, device: torch.device, channels_last: bool) -> Step:
    """What a tutorial writes: contiguous tensors on a CPU, teacher without gradients."""
    student, teacher = models(config, classes, device, channels_last)
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        images, labels = next(batches)
        images = images.contiguous(memory_format=LAYOUTS[channels_last])
        with autocast(device, config.trainer.precision):
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
    # Not at the top: it belongs to the extra of the peers, and nothing else here needs it.
    from torchdistill.core.distillation import get_distillation_box

    student, teacher = models(config, len(data.source.classes), torch.device("cpu"), channels_last=False)
    transform = pil_transform(config)
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


def timm_task(
    config: TrainConfig,
    classes: int,
    batches: Batches,
    device: torch.device,
    channels_last: bool,
    compiled: str | None = None,
) -> Step:
    """timm's own distillation task and optimizer; its loss is the same up to the order of the sums.

    ``compiled``: torch.compile's mode for both models, or None.
    """
    student, teacher = models(config, classes, device, channels_last)
    if compiled is not None:
        for model in (student, teacher):
            model.compile(mode=compiled)
    task = LogitDistillationTask(
        student,
        teacher,
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=1 - ALPHA,
        temperature=TEMPERATURE,
        device=device,
        verbose=False,
    ).train()
    optimizer = create_optimizer_v2(student, opt="momentum", lr=LR, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        images, labels = next(batches)
        with autocast(device, config.trainer.precision):
            loss = task(images.contiguous(memory_format=LAYOUTS[channels_last]), labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def distill_loop(arguments: list[str], data: Data, runtime: Runtime, *overrides: str, cached: bool = False) -> Step:
    """The step of this package, with all that the engine does around it."""
    config = compose("train", [*arguments, *overrides])
    assert isinstance(config, TrainConfig)
    return open_trial(config, data, runtime, cached).step


CACHED = ("teacher.cache.mode=float16", "teacher.cache.views=1")


def cpu_contenders(
    arguments: list[str], config: TrainConfig, data: Data, runtime: Runtime
) -> dict[str, Callable[[], Step]]:
    classes, device = len(data.source.classes), runtime.device
    ours = functools.partial(distill_loop, arguments, data, runtime)
    return {
        "plain PyTorch loop, PIL transforms": lambda: plain_loop(
            config, classes, pil_batches(config, data), device, channels_last=False
        ),
        "torchdistill's box": lambda: torchdistill_box(config, data),
        "timm LogitDistillationTask": lambda: timm_task(
            config, classes, timm_batches(config, data), device, channels_last=False
        ),
        "timm LogitDistillationTask, channels_last": lambda: timm_task(
            config, classes, timm_batches(config, data), device, channels_last=True
        ),
        "distillcli, live fp32 teacher": lambda: ours("teacher.precision=fp32"),
        "distillcli, live bf16 teacher": lambda: ours("teacher.precision=bf16"),
        "distillcli, cached teacher": lambda: ours("teacher.precision=fp32", *CACHED, cached=True),
        "distillcli, no teacher": lambda: ours("distill=none"),
    }


def gpu_contenders(
    arguments: list[str], config: TrainConfig, data: Data, runtime: Runtime
) -> dict[str, Callable[[], Step]]:
    """Those of one batch size; the compiled ones replay CUDA graphs where the mode says so."""
    classes, device = len(data.source.classes), runtime.device
    ours = functools.partial(distill_loop, arguments, data, runtime)

    def timm_(compiled: str | None) -> Step:
        return timm_task(config, classes, resident_batches(config, data, device), device, True, compiled)

    return {
        "plain PyTorch loop, channels_last": lambda: plain_loop(
            config, classes, resident_batches(config, data, device), device, channels_last=True
        ),
        "timm LogitDistillationTask, channels_last": lambda: timm_(None),
        "timm LogitDistillationTask, compiled": lambda: timm_("default"),
        "timm LogitDistillationTask, compiled to CUDA graphs": lambda: timm_("reduce-overhead"),
        "distillcli, live teacher": lambda: ours(),
        "distillcli, live teacher, compiled": lambda: ours("trainer.compile=true"),
        "distillcli, cached teacher": lambda: ours(*CACHED, cached=True),
        "distillcli, cached teacher, compiled": lambda: ours(*CACHED, "trainer.compile=true", cached=True),
        "distillcli, no teacher": lambda: ours("distill=none"),
        "distillcli, no teacher, compiled": lambda: ours("distill=none", "trainer.compile=true"),
    }


def chosen(contenders: dict[str, Callable[[], Step]], only: list[int] | None) -> dict[str, Callable[[], Step]]:
    """The contenders with these numbers, counted from 1 as in the table, or all of them."""
    return {name: build for number, (name, build) in enumerate(contenders.items(), 1) if not only or number in only}


def prepared(contenders: dict[str, Callable[[], Step]], device: torch.device) -> dict[str, Step]:
    """Those that can be built and take a step here; one that cannot is named, and does not stop the others."""
    ready = {}
    for name, build in contenders.items():
        started = time.perf_counter()
        try:
            step = build()
            for _ in range(WARM_UP[device.type]):
                step()
            wait_for(device)
        except Exception as error:  # whatever a peer or a compiler raises
            print(f"not measured: {name}: {type(error).__name__}: {str(error).strip()[-600:]}", file=sys.stderr)
            continue
        print(f"ready after {time.perf_counter() - started:.0f} s: {name}", file=sys.stderr, flush=True)
        ready[name] = step
    return ready


def take_turns(contenders: dict[str, Step], seconds: float, device: torch.device) -> dict[str, list[float]]:
    """Seconds of a step in each turn. On a GPU a turn is several steps, which the host queues without waiting."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    count = STEPS_PER_TURN[device.type]
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for name, step in contenders.items():
            wait_for(device)
            started = time.perf_counter()
            for _ in range(count):
                step()
            wait_for(device)
            times[name].append((time.perf_counter() - started) / count)
    return times


def measured(options: argparse.Namespace, batch: int, folder: str) -> dict[str, Any]:
    """The turns of all contenders at one batch size, and what the device can do."""
    arguments = [
        *(f"dataset.image_size={options.px}", f"trainer.batch_size={batch}", f"runs={folder}/{batch}"),
        *(f"teacher.name={options.teacher}", f"student.name={options.student}", "teacher.pretrained=false"),
        *("student.pretrained=false", f"trainer.device={options.device}", f"trainer.threads={options.threads}"),
        *("optimizer=sgd", "optimizer.name=momentum", f"optimizer.lr={LR}", "optimizer.weight_decay=5e-4"),
        *("distill=kd", f"distill.temperature={TEMPERATURE}", f"distill.alpha={ALPHA}"),
    ]
    if options.device == "cpu":
        arguments += ["dataset=digits", "augment=none", f"augment.translate={SHIFT}", "trainer.precision=fp32"]
    else:
        arguments += ["dataset=fake", f"dataset.samples={options.samples}", "dataset.classes=1000"]
        arguments += ["augment=crop_flip", f"trainer.precision={options.precision}"]
    config = compose("train", arguments)
    assert isinstance(config, TrainConfig)
    contenders = cpu_contenders if options.device == "cpu" else gpu_contenders
    # All contenders compile code that they share; each must get its own, for exactly its shapes.
    torch._dynamo.config.recompile_limit = 100
    torch._dynamo.config.automatic_dynamic_shapes = False
    with start(config.trainer) as runtime:
        data = open_data(open_source(config.dataset), config.dataset, 0, runtime)
        specs = [describe(model, data.inputs, "student") for model in (config.student, config.teacher)]
        built = prepared(chosen(contenders(arguments, config, data, runtime), options.only), runtime.device)
        return {
            "batch": batch,
            "macs": {"student": specs[0].macs, "teacher": specs[1].macs},
            "peak_flops": peak_flops(runtime.device, PRECISIONS[config.trainer.precision]),
            "seconds": take_turns(built, options.seconds, runtime.device),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--px", type=int, default=32)
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--student", default="mobilenetv3_small_100")
    parser.add_argument("--batch", type=int, default=[64], nargs="+", help="one size, or several to compare")
    parser.add_argument("--only", type=int, nargs="+", help="contenders by their place in the table, from 1")
    parser.add_argument("--precision", default="bf16", help="of a GPU")
    parser.add_argument("--samples", type=int, default=2048, help="images, on a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120.0, help="of timed turns, all contenders together")
    parser.add_argument("--output", type=Path, help="a JSON file of all turns")
    options = parser.parse_args()
    found = []
    for batch in options.batch:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measured(options, batch, folder))
        print(f"{options.teacher} teaches {options.student}: {options.px} px, batch {batch}, {options.device}\n")
        print(table(found[-1]), flush=True)
        if options.output:
            options.output.write_text(json.dumps({"options": vars(options), "batches": found}, default=str), "utf-8")


def table(found: dict[str, Any]) -> str:
    """Ratios are medians over the rounds of (first contender / this one): both halves saw the same neighbours.

    The share of the peak counts two operations per multiply-accumulate, three passes of the student (forward, backward
    for inputs and for weights) and one of a teacher that is asked.
    """
    times, batch, macs = found["seconds"], found["batch"], found["macs"]
    base = next(iter(times.values()))
    lines = ["| loop | ms a step | images/s | times the first | of the peak |", "|---|---|---|---|---|"]
    for name, own in times.items():
        middle = statistics.median(own)
        ratio = statistics.median(first / this for first, this in zip(base, own, strict=True))
        asked = 0 if "cached" in name or "no teacher" in name else macs["teacher"]
        share = 2 * batch * (3 * macs["student"] + asked) / middle / found["peak_flops"]
        lines.append(f"| {name} | {1000 * middle:.1f} | {batch / middle:.0f} | {ratio:.2f} | {100 * share:.1f} % |")
    return "\n".join([*lines, "", f"{len(base)} rounds. The peak: {found['peak_flops'] / 1e12:.2f} TFLOP/s."])


if __name__ == "__main__":
    main()

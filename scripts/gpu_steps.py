"""Checks of gpu_check.py that take steps in this process: python scripts/gpu_steps.py CHECK cuda|cpu FOLDER"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from checking import NO_GPU, Check, Figures, hold, run_one
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trials import Trial, equal_bits, trial

from distillcli.distillation.bench import peak_flops, wait_for
from distillcli.runtime import Runtime, autocast, barrier, from_main, seed_everything, share_buffers, sum_over_ranks
from distillcli.teachers.frozen import FrozenTeacher
from distillcli.views.upload import Upload

ROOT = Path(__file__).parent.parent
PRESETS = sorted(path.stem for path in (ROOT / "configs" / "distill").glob("*.yaml"))
# What another device may change is measured on the CPU, in the precision of the device: weights that are off by some
# roundings, drawn at random. One rounding is half of the last of 24 bits, or of 8 under bf16; a sum makes several.
ROUNDING = {"fp32": 2.0**-22, "bf16": 2.0**-8}
DRAWS, MARGIN = 3, {"fp32": 8.0, "bf16": 3.0}  # so many times the largest change of a few draws is allowed
LEAST = {"fp32": 1e-4, "bf16": 2e-2}  # of a number, where the draws happen to change nothing
DRAWS_ON_THE_DEVICE = {"crd"}  # its negatives come from the device's own generator
SMALL = ("dataset=fake", "dataset.classes=8", "dataset.samples=512", "dataset.image_size=64", "baseline=false")
COMMON = ("trainer.threads=1", "teacher.pretrained=false", "student.pretrained=false", "runs=runs")


def exact_fp32() -> None:
    """No TF32, which a run allows: 10 bits of each factor are not enough to compare devices."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def losses(one: Trial, count: int) -> list[float]:
    return [one.step().loss.item() for _ in range(count)]


@torch.no_grad()
def shake(models: list[nn.Module], size: float, draw: int) -> None:
    """Multiply every weight by a factor of its own, between 1 - size and 1 + size."""
    generator = torch.Generator().manual_seed(draw)
    for model in models:
        for weight in model.parameters():
            weight.mul_(1 + size * (2 * torch.rand(weight.shape, generator=generator) - 1))


def share(found: float, expected: float) -> float:
    return abs(found - expected) / max(abs(expected), 1e-6)


def trajectory(device: str, _folder: Path) -> Figures:
    """The first steps of a fit in fp32 are those of the CPU.

    Rounding grows from step to step until two fits have little in common; how fast, fits on the CPU tell that begin
    with weights off by a few roundings. Steps count as long as these stay within 1 % of each other.
    """
    settings = (*SMALL, *COMMON, "teacher.name=resnet18", "student.name=mobilenetv3_small_100", "augment=light")
    fp32 = ("trainer.precision=fp32", "teacher.precision=fp32", "optimizer=sgd", "optimizer.lr=0.001")

    def fit(where: str, draw: int | None = None) -> list[float]:
        with trial(*settings, *fp32, f"trainer.device={where}") as one:
            exact_fp32()
            if draw is not None:
                shake([one.model], ROUNDING["fp32"], draw)
            return losses(one, 6)

    expected, shaken, found = fit("cpu"), [fit("cpu", draw) for draw in range(DRAWS)], fit(device)
    own = [
        max(share(one, right) for one in ones) for right, ones in zip(expected, zip(*shaken, strict=True), strict=True)
    ]
    away = [share(one, right) for one, right in zip(found, expected, strict=True)]
    count = next((number for number, change in enumerate(own) if change > 1e-2), len(own))
    figures = {"steps_compared": count, "away": [f"{one:.1e}" for one in away], "shaken": [f"{one:.1e}" for one in own]}
    faults = [number for number in range(count) if away[number] > MARGIN["fp32"] * own[number] + LEAST["fp32"]]
    hold(figures, count >= 2 and not faults, f"losses differ at steps {faults}: cpu {expected}, {device} {found}")
    return figures


def one_step(preset: str, where: str, precision: str) -> list[float]:
    """Loss and norm of the gradient."""
    settings = ("experiment=presets", f"distill={preset}", *COMMON, "trainer.batch_size=32", f"trainer.device={where}")
    with trial(*settings, f"trainer.precision={precision}", f"teacher.precision={precision}") as one:
        exact_fp32()
        result = one.step()
        return [result.loss.item(), result.norm.item()]


def shaken_steps(preset: str) -> tuple[list[float], dict[str, list[float]]]:
    """Loss and norm on the CPU in fp32; and for each precision how far shaken weights move them, as shares."""
    settings = ("experiment=presets", f"distill={preset}", *COMMON, "trainer.batch_size=32", "trainer.device=cpu")
    with trial(*settings, "trainer.precision=fp32", "teacher.precision=fp32") as one:
        (batch,) = next(one.waiting)

        def step(precision: str, size: float, draw: int) -> list[float]:
            model, teacher = copy.deepcopy((one.model, one.loop.teacher))
            shake([model], size, draw)
            if isinstance(teacher, FrozenTeacher):
                shake([teacher.backbone if teacher.inference_copy is None else teacher.inference_copy], size, draw)
                teacher = dataclasses.replace(teacher, precision=precision)
            seed_everything(one.fit.config.seed, "step", 0, one.runtime.rank)
            target = None if teacher is None else teacher(batch)
            with autocast(one.runtime.device, precision):
                loss, _ = model(batch, target, 0.0)
            loss.backward()
            gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
            return [loss.item(), nn.utils.get_total_norm(gradients).item()]

        expected, moved = step("fp32", 0.0, 0), dict[str, list[float]]()
        for precision, size in ROUNDING.items():
            draws = [step(precision, size, draw) for draw in range(DRAWS)]
            changes = [[share(*pair) for pair in zip(found, expected, strict=True)] for found in draws]
            moved[precision] = [max(column) for column in zip(*changes, strict=True)]
        return expected, moved


def preset_faults(device: str, preset: str) -> tuple[str, list[float], list[str]]:
    """The preset; how far loss and norm are from those of the CPU, as shares of what is allowed; what is wrong."""
    expected, moved = shaken_steps(preset)
    shares, faults = list[float](), list[str]()
    for precision in ROUNDING:
        found = one_step(preset, device, precision)
        apart = [share(*pair) for pair in zip(found, expected, strict=True)]
        allowed = [MARGIN[precision] * change + LEAST[precision] for change in moved[precision]]
        shares += [one / most for one, most in zip(apart, allowed, strict=True)]
        if not np.isfinite(found).all():
            faults.append(f"{preset} {precision}: not finite: {found}")
        elif preset not in DRAWS_ON_THE_DEVICE and max(shares[-2:]) > 1:
            told = [f"{one:.1e} of {most:.1e}" for one, most in zip(apart, allowed, strict=True)]
            faults.append(f"{preset} {precision}: loss {told[0]}, norm {told[1]}")
    return preset, shares, faults


def objectives(device: str, _folder: Path) -> Figures:
    """Every preset: one step in fp32 and one under bf16 are finite and, up to rounding, that of the CPU in fp32.

    How far rounding may move them differs by orders of magnitude: a term that compares nearly equal things is small
    against what it is made of, and the gradient of an absolute difference jumps where it changes its sign.
    """
    with ProcessPoolExecutor(min(6, os.cpu_count() or 1), get_context("spawn")) as pool:
        found = [*pool.map(functools.partial(preset_faults, device), PRESETS)]
    figures, faults = Figures({"presets": len(found)}), [fault for _, _, faults in found for fault in faults]
    compared = [(shares, preset) for preset, shares, _ in found if preset not in DRAWS_ON_THE_DEVICE]
    for column, part in enumerate(("fp32_loss", "fp32_norm", "bf16_loss", "bf16_norm")):
        most, preset = max((shares[column], preset) for shares, preset in compared)
        figures[part] = f"{most:.2f} of what rounding explains ({preset})"
    hold(figures, not faults, "; ".join(faults))
    return figures


def determinism(device: str, _folder: Path) -> Figures:
    """Two equal fits have equal bits; what other settings of torch would change, and what they cost."""
    figures, steps = Figures(), 10 if device == "cpu" else 40
    size = "dataset.image_size=64" if device == "cpu" else "dataset.image_size=128"
    for student, precision in itertools.product(("resnet18", "mobilenetv3_small_100"), ("fp32", "bf16")):
        for setting in ("as_set", "cudnn", "all"):
            torch.backends.cudnn.deterministic = setting != "as_set"
            torch.use_deterministic_algorithms(setting == "all", warn_only=True)
            found, times = [], []
            for _ in range(2):
                settings = (*SMALL, size, *COMMON, "teacher.name=resnet18", f"student.name={student}", "augment=light")
                how = (f"trainer.precision={precision}", f"trainer.device={device}", "trainer.batch_size=64")
                with trial(*settings, *how) as one:
                    times.append(1000 * one.seconds_per_step(steps))
                    found.append(one.weights())
            verdict = "equal" if equal_bits(*found) else "DIFFERENT"
            figures[f"{student}/{precision}/{setting}"] = f"{verdict} {min(times):.1f} ms"
    bad = [name for name, verdict in figures.items() if name.endswith("as_set") and verdict.startswith("DIFFERENT")]
    hold(figures, not bad, f"two equal fits differ: {bad}")
    return figures


# The pair and the size of benchmark_peers.py on a GPU, which finds compiled here what it compiles.
LARGE = (
    *("dataset=fake", "dataset.classes=1000", "dataset.samples=512", "dataset.image_size=224", "augment=crop_flip"),
    *("teacher.name=resnet50", "student.name=mobilenetv3_large_100", "distill=kd", "trainer.batch_size=256"),
    *("trainer.precision=bf16", "trainer.threads=8", "teacher.pretrained=false", "student.pretrained=false"),
    *("runs=runs", "baseline=false"),
)


def compile_(device: str, _folder: Path) -> Figures:
    """A compiled teacher says the same, a compiled student begins alike; how long a step takes with and without."""
    if device == "cpu":
        return {"skipped": "a minute of compilation says nothing of a GPU"}
    figures, first = Figures(), {}
    for compiled in ("false", "true"):
        with trial(*LARGE, f"trainer.compile={compiled}", f"trainer.device={device}") as one:
            teacher = one.loop.teacher
            assert teacher is not None
            first[compiled] = losses(one, 6)
            (batch,) = next(one.waiting)
            # Asked twice: what was said first must outlive the second answer, which comes from the same graph.
            said, again, expected = (asked(batch).logits.float() for asked in (teacher, teacher, teacher.live))
            figures[f"teacher_compile_{compiled}"] = f"{(said - expected).abs().max() / expected.abs().max():.1e}"
            hold(figures, torch.equal(said, again), "the same question, two answers")
            hold(figures, bool((said - expected).abs().max() < 5e-2 * expected.abs().max()), "another teacher")
            figures[f"step_compile_{compiled}"] = f"{1000 * one.seconds_per_step(20):.1f} ms"
    away = share(first["true"][0], first["false"][0])
    figures["first_loss"] = f"{away:.1e}"
    hold(figures, away < 2e-2 and np.isfinite(first["true"]).all(), f"compiled and not: {first}")
    return figures


def kernels(device: str, _folder: Path) -> Figures:
    """Where the GPU's time goes in a step with a live teacher, and what the teacher costs as it is and folded."""
    figures = Figures()
    settings = LARGE if device == "cuda" else (*SMALL, *COMMON, *LIVE, "trainer.precision=fp32", "augment=light")
    with trial(*settings, f"trainer.device={device}") as one:
        where, teacher = one.runtime.device, one.loop.teacher
        assert isinstance(teacher, FrozenTeacher)
        figures["step"] = f"{1000 * one.seconds_per_step(10):.1f} ms"
        (batch,) = next(one.waiting)
        for name, asked in {"plain": dataclasses.replace(teacher, inference_copy=None), "folded": teacher}.items():
            asked(batch)
            figures[f"teacher_{name}"] = (
                f"{1000 * _seconds_of(lambda a=asked: [a(batch) for _ in range(10)], where) / 10:.2f} ms"
            )
        with torch.profiler.profile() as seen:
            for _ in range(3):
                one.step()
            wait_for(where)
    of = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    # Operations, each with the time of the kernels that it launches; the names of kernels say less.
    operations = [event for event in seen.key_averages() if event.device_type == torch.autograd.DeviceType.CPU]
    for event in sorted(operations, key=lambda event: -getattr(event, of))[:16]:
        figures[event.key] = f"{getattr(event, of) / 3000:.2f} ms, {event.count / 3:.0f} times a step"
    return figures


LIVE = (
    "teacher.name=resnet18",
    "student.name=mobilenetv3_small_100",
    "trainer.batch_size=64",
    "trainer.precision=bf16",
)
SITUATIONS = {
    "live": ("augment=light",),
    "mixed": ("augment=strong",),
    "imagenet": ("augment=imagenet",),
    "everything": ("augment=light", "trainer.ema=0.99", "trainer.clip_grad=1.0", "trainer.accumulate=2"),
    "fp16": ("augment=light", "trainer.precision=fp16"),
    "adamw": ("augment=light", "optimizer=adamw"),
    "streamed": ("augment=light", "dataset.memory_gb=0", "trainer.workers=2"),
    "cached": ("augment=light", "teacher.cache.mode=float16", "teacher.cache.views=1"),
}


def syncs(device: str, _folder: Path) -> Figures:
    """How often the host waits for the GPU in a step, and where; the first steps do not count."""
    if device == "cpu":
        return NO_GPU
    figures, places = Figures(), Counter[str]()
    for name, settings in SITUATIONS.items():
        with trial(*SMALL, *COMMON, *LIVE, *settings, f"trainer.device={device}", cached=name == "cached") as one:
            for _ in range(9):
                one.step()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                for _ in range(4):
                    one.step()
                torch.cuda.set_sync_debug_mode("default")
        # Turning the mode on warns too, of itself.
        found = [one for one in caught if "called a synchronizing" in str(one.message)]
        places.update(f"{name}: {Path(one.filename).name}:{one.lineno}" for one in found)
        figures[name] = len(found) / 4
    hold(figures, not places, f"the host waits at {dict(places)}")
    return figures


def upload(device: str, _folder: Path) -> Figures:
    """What the separate stream brings is what was sent, while the GPU is busy and memory is reused at once."""
    if device == "cpu":
        return NO_GPU
    where, random = torch.device("cuda", 0), np.random.RandomState(0)
    batches = [torch.from_numpy(random.randint(0, 256, (64, 96, 96, 3), np.uint8)) for _ in range(8)]
    expected = [batch.sum(dtype=torch.int64) for batch in batches]
    load, send, sums = torch.rand(4096, 4096, device=where), Upload(where), []
    for number in range(400):
        copy = send(batches[number % 8].pin_memory())
        load = (load @ load).clamp(-1, 1)
        sums.append(copy.sum(dtype=torch.int64))
        del copy
    found = [total.item() for total in sums]
    wrong = sum(total != expected[number % 8].item() for number, total in enumerate(found))
    figures: Figures = {"batches": len(found), "wrong": wrong}
    hold(figures, not wrong, "batches differ from what was sent")
    return figures


def nccl(device: str, folder: Path) -> Figures:
    """All that ranks tell each other, over a group of one rank; two ranks cannot share one GPU with NCCL."""
    where = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(where)
    store = dist.FileStore(str(folder / "store"), 1)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=0, world_size=1)
    pretended = Runtime(where, rank=0, world=2)
    barrier(pretended)
    total = sum_over_ranks(torch.arange(3.0, device=where), pretended).tolist()
    said = from_main("what the main rank says", pretended)
    found = {}
    settings = (*SMALL, *COMMON, *LIVE, "augment=light", "trainer.precision=fp32", f"trainer.device={device}")
    for joined in (False, True):
        with trial(*settings) as one:
            exact_fp32()
            if joined:
                share_buffers(one.model, pretended)
                one = dataclasses.replace(one, model=DistributedDataParallel(one.model, find_unused_parameters=True))
            found[joined] = losses(one, 5)
    dist.destroy_process_group()
    away = max(abs(here - there) / abs(there) for here, there in zip(found[True], found[False], strict=True))
    figures: Figures = {"backend": "nccl" if device == "cuda" else "gloo", "largest_difference": f"{away:.1e}"}
    hold(figures, total == [0, 1, 2] and said == "what the main rank says" and away < 1e-2, f"{total} {said} {found}")
    return figures


def peaks(device: str, _folder: Path) -> Figures:
    """What the device can do: products of matrices, and copies in its memory."""
    where = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    source = torch.empty(2**30 if device == "cuda" else 2**26, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(6):
        seconds.append(_seconds_of(lambda: target.copy_(source), where))
    return {
        "bf16_tflops": round(peak_flops(where, torch.bfloat16) / 1e12, 2),
        "fp32_tflops": round(peak_flops(where, torch.float32) / 1e12, 2),
        "copy_gb_per_s": round(2 * len(source) / min(seconds[1:]) / 1e9, 1),
    }


def _seconds_of(work: Callable[[], object], where: torch.device) -> float:
    """Of work that the device is to finish; it has none before."""
    wait_for(where)
    started = time.perf_counter()
    work()
    wait_for(where)
    return time.perf_counter() - started


CHECKS: dict[str, Check] = {
    "trajectory": trajectory,
    "objectives": objectives,
    "determinism": determinism,
    "compile": compile_,
    "kernels": kernels,
    "syncs": syncs,
    "upload": upload,
    "nccl": nccl,
    "peaks": peaks,
}

if __name__ == "__main__":
    run_one(CHECKS)

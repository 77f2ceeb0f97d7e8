"""Checks of gpu_check.py that take steps in this process: python scripts/gpu_steps.py CHECK cuda|cpu FOLDER"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from checking import NO_GPU, Check, Figures, hold, run_one
from torch.nn.parallel import DistributedDataParallel
from trials import Trial, equal_bits, trial

from distillcli.distillation.bench import peak_flops, wait_for
from distillcli.runtime import Runtime, barrier, from_main, share_buffers, sum_over_ranks
from distillcli.views.upload import Upload

ROOT = Path(__file__).parent.parent
PRESETS = sorted(path.stem for path in (ROOT / "configs" / "distill").glob("*.yaml"))
# Sums in another order: 1e-6 of a number per layer. Some terms divide by small spreads, which enlarges that.
LOSS_RTOL, NORM_RTOL = 2e-3, 3e-2
# bf16 keeps 8 bits of each factor: about 0.4 % per product, averaged over a batch.
BF16_RTOL = 0.15
DRAWS_ON_THE_DEVICE = {"crd"}  # its negatives come from the device's own generator
SMALL = ("dataset=fake", "dataset.classes=8", "dataset.samples=512", "dataset.image_size=64", "baseline=false")
COMMON = ("trainer.threads=1", "teacher.pretrained=false", "student.pretrained=false", "runs=runs")


def exact_fp32() -> None:
    """No TF32, which a run allows: 10 bits of each factor are not enough to compare devices."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def losses(one: Trial, count: int) -> list[float]:
    return [one.step().loss.item() for _ in range(count)]


def trajectory(device: str, _folder: Path) -> Figures:
    """The first steps of a fit in fp32 are those of the CPU, up to rounding that grows from step to step."""
    found = {}
    for where in ("cpu", device):
        settings = (*SMALL, *COMMON, "teacher.name=resnet18", "student.name=mobilenetv3_small_100", "augment=light")
        fp32 = ("trainer.precision=fp32", "teacher.precision=fp32", "optimizer=sgd", "optimizer.lr=0.001")
        with trial(*settings, *fp32, f"trainer.device={where}") as one:
            exact_fp32()
            found[where] = losses(one, 10)
    away = [abs(here - there) / abs(there) for here, there in zip(found[device], found["cpu"], strict=True)]
    figures = {"first_step": f"{away[0]:.1e}", "after_10_steps": f"{max(away):.1e}"}
    hold(figures, away[0] < 1e-4 and max(away) < 1e-2, f"losses differ: {found}")
    return figures


def share(found: float, expected: float) -> float:
    return abs(found - expected) / max(abs(expected), 1e-6)


def one_step(preset: str, where: str, precision: str) -> tuple[float, float]:
    settings = ("experiment=presets", f"distill={preset}", *COMMON, "trainer.batch_size=32", f"trainer.device={where}")
    with trial(*settings, f"trainer.precision={precision}", f"teacher.precision={precision}") as one:
        exact_fp32()
        result = one.step()
        return result.loss.item(), result.norm.item()


def objectives(device: str, _folder: Path) -> Figures:
    """Every preset: one step in fp32 is that of the CPU, and one under bf16 is finite and near it."""
    away, faults = dict[str, list[float]](), []
    for preset in PRESETS:
        (loss, norm), (own, own_norm) = one_step(preset, "cpu", "fp32"), one_step(preset, device, "fp32")
        half, half_norm = one_step(preset, device, "bf16")
        away[preset] = [share(own, loss), share(own_norm, norm), share(half, loss)]
        if not np.isfinite([own, own_norm, half, half_norm]).all():
            faults.append(f"{preset}: not finite: fp32 {own} norm {own_norm}, bf16 {half} norm {half_norm}")
        elif preset in DRAWS_ON_THE_DEVICE:
            del away[preset]
        elif away[preset][0] > LOSS_RTOL or away[preset][1] > NORM_RTOL or away[preset][2] > BF16_RTOL:
            faults.append(f"{preset}: {', '.join(f'{part:.1e}' for part in away[preset])}")
    worst = [max(away, key=lambda name, column=column: away[name][column]) for column in range(3)]
    figures = {
        "presets": len(PRESETS),
        **{
            part: f"{away[name][column]:.1e} ({name})"
            for column, (part, name) in enumerate(zip(("fp32_loss", "fp32_norm", "bf16_loss"), worst, strict=True))
        },
    }
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


def compile_(device: str, _folder: Path) -> Figures:
    """A compiled student learns the same, and how long a step takes with and without."""
    if device == "cpu":
        return {"skipped": "a minute of compilation says nothing of a GPU"}
    figures, first = Figures(), {}
    settings = (*SMALL, "dataset.image_size=224", *COMMON, "distill=none", "student.name=mobilenetv3_large_100")
    for batch, compiled in itertools.product((64, 256), ("false", "true")):
        how = (f"trainer.batch_size={batch}", f"trainer.compile={compiled}", f"trainer.device={device}")
        with trial(*settings, *how, "trainer.precision=bf16") as one:
            first[batch, compiled] = losses(one, 3)
            figures[f"batch_{batch}_compile_{compiled}"] = f"{1000 * one.seconds_per_step(30):.1f} ms"
    away = max(abs(first[batch, "true"][0] / first[batch, "false"][0] - 1) for batch in (64, 256))
    figures["first_loss"] = f"{away:.1e}"
    hold(figures, away < 2e-2, f"compiled and not: {first}")
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
        found = [one for one in caught if "synchroniz" in str(one.message)]
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
        wait_for(where)
        seconds.append(_seconds_of(lambda: target.copy_(source), where))
    return {
        "bf16_tflops": round(peak_flops(where, torch.bfloat16) / 1e12, 2),
        "fp32_tflops": round(peak_flops(where, torch.float32) / 1e12, 2),
        "copy_gb_per_s": round(2 * len(source) / min(seconds[1:]) / 1e9, 1),
    }


def _seconds_of(work: object, where: torch.device) -> float:
    import time

    started = time.perf_counter()
    work()  # type: ignore[operator]
    wait_for(where)
    return time.perf_counter() - started


CHECKS: dict[str, Check] = {
    "trajectory": trajectory,
    "objectives": objectives,
    "determinism": determinism,
    "compile": compile_,
    "syncs": syncs,
    "upload": upload,
    "nccl": nccl,
    "peaks": peaks,
}

if __name__ == "__main__":
    run_one(CHECKS)

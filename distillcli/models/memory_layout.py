"""Which memory layout is faster here for a model, measured once and remembered.

Layouts round differently, so the choice is part of what a run computes: it is stored with the runs, and every later run
of the same model on the same device takes the same one (docs/decisions/013-memory-layout-is-measured-on-request.md).
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from distillcli.config.schema import TrainConfig
from distillcli.models.backbone import build, fresh, place
from distillcli.runs.folder import fingerprint, locked, versions, write_json
from distillcli.runs.reading import try_json
from distillcli.runtime import Runtime, autocast, from_main, resolve_precision
from distillcli.types import Inputs

TRIAL_STEPS = 5
POLL_SECONDS = 0.1
LAYOUTS = {True: "channels_last", False: "contiguous"}


def settle_layout(config: TrainConfig, inputs: Inputs, runtime: Runtime) -> TrainConfig:
    """``config`` with ``trainer.channels_last`` decided, on all ranks alike: as it was set, remembered, or measured."""
    if config.trainer.channels_last is not None:
        return config
    answer = from_main(_remembered(config, inputs, runtime) if runtime.is_main else None, runtime)
    trainer = dataclasses.replace(config.trainer, channels_last=answer == LAYOUTS[True])
    return dataclasses.replace(config, trainer=trainer)


def _remembered(config: TrainConfig, inputs: Inputs, runtime: Runtime) -> str:
    folder = Path(config.runs) / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    trial = _trial(config, inputs, runtime)
    name = fingerprint(trial)

    def wait(_holder: str) -> None:
        """Whoever measures takes some seconds, so nothing is said. Only the main rank waits, and stops for itself."""
        if runtime.stop.is_asked():
            raise runtime.interruption()
        time.sleep(POLL_SECONDS)

    with locked(folder, wait):
        known = try_json(folder / "layouts.json") or {}
        entry = known.get(name)
        if not isinstance(entry, dict) or entry.get("layout") not in LAYOUTS.values():
            seconds = measure_layouts(config, inputs, runtime)
            known[name] = {**trial, "layout": min(seconds, key=seconds.__getitem__), "seconds": seconds}
            write_json(folder / "layouts.json", known)
    return str(known[name]["layout"])


def _trial(config: TrainConfig, inputs: Inputs, runtime: Runtime) -> dict[str, Any]:
    """All that can change which layout is faster, in plain words."""
    on_gpu = runtime.device.type == "cuda"
    images = [_micro_batch(config, runtime), config.student.image_size or inputs.image_size]
    return {
        "model": [config.student.name, config.student.args, inputs.classes],
        # Three are left out as before there were others: what was measured then still counts.
        "images": images if inputs.channels == 3 else [*images, inputs.channels],
        "precision": resolve_precision(config.trainer.precision, runtime.device),
        "device": torch.cuda.get_device_name() if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {library: versions()[library] for library in ("torch", "timm")},
    }


def measure_layouts(config: TrainConfig, inputs: Inputs, runtime: Runtime) -> dict[str, float]:
    """Seconds of a forward and a backward pass of the student on random images, by layout: medians of alternate turns.

    The first turn of each is for the libraries to choose their kernels.
    """
    model, size = fresh(config.student), config.student.image_size or inputs.image_size
    precision, device = resolve_precision(config.trainer.precision, runtime.device), runtime.device
    students = {layout: place(build(model, inputs, "student"), device, layout) for layout in LAYOUTS}
    images = torch.rand(_micro_batch(config, runtime), inputs.channels, size, size, device=device)
    turns: dict[bool, list[float]] = {layout: [] for layout in LAYOUTS}
    for _ in range(1 + TRIAL_STEPS):
        for layout, student in students.items():
            started = time.perf_counter()
            with autocast(device, precision):
                logits = student(images).logits
            logits.float().logsumexp(dim=1).sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            turns[layout].append(time.perf_counter() - started)
    return {LAYOUTS[layout]: statistics.median(times[1:]) for layout, times in turns.items()}


def _micro_batch(config: TrainConfig, runtime: Runtime) -> int:
    return config.trainer.batch_size // (config.trainer.accumulate * runtime.world)

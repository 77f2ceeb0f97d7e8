"""The folder of a fit: it describes itself, belongs to one process at a time, and counts the time spent on it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from distillcli.config.schema import TrainConfig
from distillcli.distillation.same_data import write_data_record
from distillcli.runs.folder import describe_folder, is_elsewhere, locked
from distillcli.runs.result import read_result
from distillcli.runtime import Runtime, any_rank
from distillcli.sources.source import Source
from distillcli.training.session import Session

POLL_SECONDS = 0.5


def describe(folder: Path, config: TrainConfig, overrides: list[str], source: Source, session: Session) -> None:
    """Let the folder say what the run is. Warns where a run goes on under what will not give the same bits."""
    machine = _computing(session.runtime)
    changed = describe_folder(folder, dataclasses.asdict(config), session.command, overrides, source.classes, machine)
    write_data_record(folder, source, config.dataset)
    if changed:
        session.warn(
            f"{folder}: not bit-identical to the same run without a stop, because since its beginning this has "
            f"changed: {', '.join(changed)}"
        )


def _computing(runtime: Runtime) -> dict[str, Any]:
    on_gpu = runtime.device.type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return {"device": device, "threads": torch.get_num_threads(), "processes": runtime.world}


@contextmanager
def in_turn(folder: Path, doing: str, session: Session) -> Iterator[None]:
    """Hold ``folder``, on the main rank for all of them; wait for another process that does, ``doing`` something there.

    Raises Interrupted while it waits. When the other process ends, however it does, this one takes over.
    """
    runtime = session.runtime
    if not runtime.is_main:
        while any_rank(False, runtime):
            runtime.obey_stop()
        yield
        return
    told = ""

    def wait(holder: str) -> None:
        nonlocal told
        if holder != told:
            gone = f"; if that machine is gone, remove {folder / '.lock'}" if is_elsewhere(holder) else ""
            session.say(f"waiting for {holder}, which is {doing}{gone}")
            told = holder
        any_rank(True, runtime)
        runtime.obey_stop()
        time.sleep(POLL_SECONDS)

    with locked(folder, wait):
        any_rank(False, runtime)
        yield


@dataclass
class Spent:
    """Seconds spent on a run and on its parts, over all its sessions. What a killed session took is not known.

    ``before`` and ``parts`` begin with what the sessions before have recorded.
    """

    before: float
    parts: dict[str, float]
    started: float = field(default_factory=time.monotonic)

    @staticmethod
    def on(folder: Path) -> Spent:
        earlier = read_result(folder)
        return Spent(0.0, {}) if earlier is None else Spent(earlier.seconds or 0.0, dict(earlier.timings))

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun, before = time.monotonic(), self.parts.get(name, 0.0)
        try:
            yield
        finally:
            self.parts[name] = before + time.monotonic() - begun

"""Where and how a run computes: device, precision, CPU threads, ranks, and the keys of all randomness.

No state of a random generator is ever saved. Every draw comes from a generator that is seeded by a hash of what is
being drawn, so resuming, other loader settings and looking twice all see the same numbers.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from distillcli.config.job import process_count
from distillcli.config.schema import TrainerConfig
from distillcli.errors import Interrupted, NumericError, UserError
from distillcli.signals import Stop

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """``stop``: whether a signal has asked this process to stop; nobody does where signals are left alone.

    ``store``: what the ranks tell each other by when a connection between them is broken; None for a single process.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    stop: Stop = field(default_factory=Stop, compare=False)
    store: Store | None = field(default=None, compare=False)

    @property
    def is_main(self) -> bool:
        """Only this rank writes files and speaks."""
        return self.rank == 0

    def is_stopping(self) -> bool:
        """Whether any rank was asked to stop; every rank must ask at the same point."""
        return any_rank(self.stop.is_asked(), self)

    def interruption(self) -> Interrupted:
        """What to raise then. Another rank may have got the signal: its code is not known here."""
        return Interrupted("interrupted", self.stop.exit_code or 143)

    def obey_stop(self) -> None:
        """A boundary of work that takes long: raise Interrupted if any rank was asked to stop.

        Every rank must come to it. Whatever must not be lost was saved before.
        """
        if self.is_stopping():
            raise self.interruption()


def key(*parts: str | int) -> int:
    """A 63-bit seed for what ``parts`` name. Python's own ``hash`` differs from process to process."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(*parts: str | int) -> None:
    """Key every global generator that layers and libraries draw from."""
    seed = key(*parts)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)


# --- device ------------------------------------------------------------------------------------------------------


def resolve_device(wanted: str) -> torch.device:
    """``auto`` takes CUDA, then MPS, then the CPU. Raises UserError with what exists when ``wanted`` does not."""
    present = ["cpu"]
    present += [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    present += ["mps"] if torch.backends.mps.is_available() else []
    if wanted == "auto":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device(f"cuda:{local}" if "cuda:0" in present else present[-1])
    name = "cuda:0" if wanted == "cuda" else wanted
    if name not in present:
        raise UserError(
            f"trainer.device={wanted}: not on this machine, which has {', '.join(present)}; use auto or one of these"
        )
    return torch.device(name)


def resolve_precision(wanted: str, device: torch.device, teacher: bool = False) -> str:
    """``auto`` is bf16 where it pays: on GPUs that compute in it, and for a frozen teacher on CPUs that do.

    A student on a CPU stays fp32: depthwise convolutions run at 0.3-0.4 of the speed in bf16 there.
    """
    if wanted == "fp16" and device.type == "cpu":
        key = "teacher.precision" if teacher else "trainer.precision"
        raise UserError(f"{key}=fp16: CPUs train in fp32 or bf16; use {key}=auto")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and teacher:
        native = torch.cpu.get_capabilities()
        return "bf16" if native.get("avx512_bf16") or native.get("amx_bf16") else "fp32"
    return "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])


def set_threads(wanted: int | None) -> int:
    """CPU threads for torch: ``wanted``, or as many as this process may run on."""
    threads = wanted if wanted is not None else len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    return threads


# --- ranks -------------------------------------------------------------------------------------------------------


@contextmanager
def named_failures(smaller: str) -> Iterator[None]:
    """Raise UserError in one line when the machine, and not the code, fails: memory is full, or a loader worker died.

    ``smaller``: what would take less memory, in words.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        words = (str(error) or type(error).__name__).strip().splitlines()[0]
        if _is_out_of_memory(error):
            raise UserError(f"out of memory ({words}): {smaller}") from error
        if isinstance(error, RuntimeError) and words.startswith(("DataLoader worker", "DataLoader timed out")):
            raise UserError(
                f"{words.rstrip(' .')}: a process that loads images was killed or hangs, usually for want of memory or "
                "of /dev/shm; use fewer trainer.workers, or trainer.workers=0"
            ) from error
        raise


def _is_out_of_memory(error: Exception) -> bool:
    """On CPUs torch raises a plain RuntimeError, numpy and Python a MemoryError, the system an OSError."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


@contextmanager
def start(trainer: TrainerConfig) -> Iterator[Runtime]:
    """The runtime of this process; joins the process group when launched by ``torchrun``."""
    smaller = "use a smaller dataset.image_size, dataset.memory_gb or trainer.batch_size"
    with named_failures(smaller), _joined(trainer) as runtime:
        yield runtime


@contextmanager
def _joined(trainer: TrainerConfig) -> Iterator[Runtime]:
    set_threads(trainer.threads)
    device = resolve_device(trainer.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    world = process_count()
    if world == 1:
        yield Runtime(device)
        return
    rank = int(os.environ["RANK"])
    store = _rendezvous_store(rank, world)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=10),
    )
    try:
        yield Runtime(device, rank, world, store=PrefixStore("fate", store))
    finally:
        dist.destroy_process_group()


def _rendezvous_store(rank: int, world: int) -> Store:
    """A store whose keys carry the attempt: after a restart, torchrun's own would hand out addresses of dead ranks."""
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # the launcher already serves one
    store = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=not hosted and rank == 0
    )
    return PrefixStore("attempt" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


@contextmanager
def one_fate(runtime: Runtime) -> Iterator[None]:
    """What ends one rank ends all: the others raise its error in one line, not that of their broken connection."""
    try:
        yield
    except BaseException as error:
        if runtime.store is None:
            raise
        if _is_broken_connection(error):
            raise _what_ended_another(runtime.store) from error
        code = error.exit_code if isinstance(error, Interrupted) else 130
        runtime.store.set("ended", json.dumps([type(error).__name__, f"rank {runtime.rank}: {error}", code]))
        raise


def _is_broken_connection(error: BaseException) -> bool:
    """Gloo's errors are plain RuntimeErrors that name its files."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _what_ended_another(store: Store) -> BaseException:
    try:
        kind, words, code = json.loads(store.get("ended")) if store.check(["ended"]) else ("", "", 0)
    except RuntimeError:  # the store lived in that process
        kind, words, code = "", "", 0
    if kind in ("Interrupted", "KeyboardInterrupt"):
        return Interrupted("interrupted", code)
    if kind == "NumericError":
        return NumericError(words)
    if kind == "UserError":
        return UserError(words)
    return UserError(
        f"another process of this run has ended{f' ({words}: {kind})' if kind else ''}; its own output says why"
    )


def sum_over_ranks(values: torch.Tensor, runtime: Runtime) -> torch.Tensor:
    """The elementwise sum of ``values`` over all ranks, on every rank."""
    if runtime.world > 1:
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, runtime: Runtime) -> bool:
    """Whether ``flag`` holds on some rank: a signal may reach only one of them."""
    if runtime.world == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=runtime.device), runtime).item())


def least_over_ranks(value: float, runtime: Runtime) -> float:
    """The smallest ``value`` of all ranks, on every rank."""
    if runtime.world == 1:
        return value
    least = torch.tensor(value, device=runtime.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return least.item()


def share_buffers(module: torch.nn.Module, runtime: Runtime) -> None:
    """Give every rank the running statistics of the main one, so that all of them evaluate one and the same model."""
    if runtime.world > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def from_main(value: str | None, runtime: Runtime) -> str:
    """What the main rank passes as ``value``, on every rank."""
    values = [value]
    if runtime.world > 1:
        dist.broadcast_object_list(values, 0)
    assert values[0] is not None
    return values[0]


def barrier(runtime: Runtime) -> None:
    """Wait for all ranks, so that what the main one wrote is there for the others."""
    if runtime.world > 1:
        dist.barrier()

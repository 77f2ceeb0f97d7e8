"""Where and how a run computes: device, precision, CPU threads, ranks, and the keys of all randomness.

No state of a random generator is ever saved. Every draw comes from a generator that is seeded by a hash of what is
being drawn, so resuming, other loader settings and looking twice all see the same numbers.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from distillcli.config.job import process_count
from distillcli.config.schema import TrainerConfig
from distillcli.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Only this rank writes files and speaks."""
        return self.rank == 0


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
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=_rendezvous_store(rank, world),
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=10),
    )
    try:
        yield Runtime(device, rank, world)
    finally:
        dist.destroy_process_group()


def _rendezvous_store(rank: int, world: int) -> Store:
    """A store whose keys carry the attempt: after a restart, torchrun's own would hand out addresses of dead ranks."""
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # the launcher already serves one
    store = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=not hosted and rank == 0
    )
    return PrefixStore("attempt" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


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

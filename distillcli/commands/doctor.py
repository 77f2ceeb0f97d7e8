"""``distill doctor``: what this machine offers, for a first check and for bug reports."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from distillcli import __version__
from distillcli.config import search
from distillcli.config.check_published import hub_cache
from distillcli.errors import UserError
from distillcli.report.format import byte_count
from distillcli.runs.folder import LIBRARIES

Row = tuple[str, str]

_EXTRAS = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit": "hydra_plugins.hydra_submitit_launcher",
}


def run(arguments: list[str]) -> None:
    if arguments:
        raise UserError("distill doctor takes no arguments")
    for title, section in _SECTIONS.items():
        print(title)
        rows = list(section())
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            print(f"  {name:<{width}}  {value}")


def _versions() -> Iterator[Row]:
    yield "distill", __version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in LIBRARIES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "NOT INSTALLED"
    for module in ("torch", "torchvision", "timm"):
        problem = _import_problem(module)
        if problem:
            yield module, f"BROKEN, cannot be imported: {problem}"


def _import_problem(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # a torchvision built for another torch fails with a RuntimeError, among others
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _devices() -> Iterator[Row]:
    if _import_problem("torch"):
        yield "torch", "cannot be imported, so the devices are unknown"
        return
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    yield "cpu", f"{capability}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield f"cuda:{index}", f"{properties.name}, {byte_count(properties.total_memory)}"
        yield "bf16", "yes" if torch.cuda.is_bf16_supported() else "no; trainer.precision=auto uses fp32"
    else:
        yield "cuda", "none"
        native = torch.cpu.get_capabilities()
        teachers = "yes" if native.get("avx512_bf16") or native.get("amx_bf16") else "no"
        yield (
            "bf16",
            f"{teachers} for teacher.precision=auto; on a CPU trainer.precision=auto uses fp32, which is faster",
        )
    yield "mps", "yes" if torch.backends.mps.is_available() else "none"


def _extras() -> Iterator[Row]:
    for name, module in _EXTRAS.items():
        try:
            found = importlib.util.find_spec(module) is not None
        except ImportError:
            found = False
        yield name, "installed" if found else f"not installed: pip install 'distillcli[{name}]'"


def _folders() -> Iterator[Row]:
    search.use([])
    for folder in search.folders():
        yield "configs", f"{folder} ({sum(1 for _ in folder.rglob('*.yaml'))} files)"
    yield "runs", _writable(Path("runs"))
    usage = shutil.disk_usage(Path.cwd())
    yield "disk", f"{byte_count(usage.free)} free of {byte_count(usage.total)}"
    cache = hub_cache()
    models = sorted(cache.glob("models--timm--*")) if cache.is_dir() else []
    yield "weights", f"{cache}: {len(models)} timm models" if models else f"{cache}: no timm models yet"


def _writable(folder: Path) -> str:
    """Whether run folders can be created; leaves nothing behind."""
    place = folder if folder.is_dir() else folder.absolute().parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return f"{folder.absolute()}: writable"
    except OSError as error:
        return f"{folder.absolute()}: NOT WRITABLE ({error.strerror}); choose another with runs=PATH"


_SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    "versions": _versions,
    "devices": _devices,
    "extras": _extras,
    "folders": _folders,
}

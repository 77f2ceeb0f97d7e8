"""The constants that docs/scaling.md calculates with: python scripts/measure_scaling.py --device cuda --output FILE

Rates of the step come from ``distill bench``, the other constants from the functions that a run calls. Each is measured
alone; what fails is written down as its error and the rest goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageFilter

from distillcli.sources.decode import decode_bytes
from distillcli.teachers.rows import FORMATS, RowCache

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 1000
STUDENTS = ("resnet50", "mobilenetv3_large_100", "deit_small_patch16_224")
TEACHER = "vit_large_patch16_224"
Numbers = dict[str, Any]


def bench(student: str, device: str, batch: int, px: int, teacher: str) -> Numbers:
    """What ``distill bench`` says about one pair, and the command that asks it."""
    words = ["bench", f"teacher.name={teacher}", f"student.name={student}", "dataset=fake", f"dataset.image_size={px}"]
    words += [f"dataset.classes={CLASSES}", f"dataset.samples={max(2 * CLASSES, 2 * batch)}"]
    words += [f"trainer.batch_size={batch}", f"trainer.device={device}"]
    words += [f"trainer.compile={str(device != 'cpu').lower()}", "--json"]
    done = subprocess.run([sys.executable, "-m", "distillcli", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"command": " ".join(["distill", *words]), "error": done.stderr[-2000:]}
    return {"command": " ".join(["distill", *words])} | json.loads(done.stdout.strip().splitlines()[-1])


def photograph(height: int = 375, width: int = 500) -> bytes:
    """A JPEG of ImageNet's mean size with about its bytes: blurred noise of several scales, quality 90."""
    draws = np.random.default_rng(0)
    total = np.zeros((height, width, 3), np.float32)
    for radius in (1, 4, 16, 64):
        noise = Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))
        layer = np.asarray(noise.filter(ImageFilter.GaussianBlur(radius)), np.float32)
        total += (layer - layer.mean()) / layer.std() * 10 * radius**0.5
    written = io.BytesIO()
    Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8)).save(written, "JPEG", quality=90)
    return written.getvalue()


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Median seconds of ``action``, after one call that does not count."""
    action()
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        action()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def decoding() -> Numbers:
    content = photograph()
    return {"jpeg_bytes": len(content), "images_per_second": 1 / seconds(lambda: decode_bytes(content, "photo"), 200)}


def cache_rows(rows: int = 4096, batch: int = 256) -> Numbers:
    """Rows per second that one process writes to a new view and reads back, by format."""
    logits = np.random.default_rng(0).normal(size=(batch, CLASSES)).astype(np.float32)
    found: Numbers = {}
    for name, row_format in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            cache = RowCache(Path(folder), row_format, CLASSES, rows)
            places = [np.arange(start, start + batch) for start in range(0, rows, batch)]
            begun = time.perf_counter()
            for place in places:
                cache.write(0, place, logits)
            written = time.perf_counter()
            for place in places:
                cache.read(0, place)
            read = time.perf_counter()
        rates = {"write_rows_per_second": rows / (written - begun), "read_rows_per_second": rows / (read - written)}
        found[name] = {"bytes_per_row": cache.row_bytes} | rates
    return found


def storage(megabytes: int = 1024) -> Numbers:
    """Sequential bytes per second of the disk below the current folder, written through to it."""
    block = os.urandom(2**24)
    with tempfile.NamedTemporaryFile(dir=".") as file:
        begun = time.perf_counter()
        for _ in range(megabytes // 16):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return {"write_bytes_per_second": megabytes * 2**20 / (time.perf_counter() - begun)}


def upload(device: str, images: int = 256) -> Numbers:
    """Bytes per second from pinned memory to the device."""
    if device == "cpu":
        return {}
    batch = torch.empty(images, 224, 224, 3, dtype=torch.uint8).pin_memory()

    def copy() -> None:
        batch.to(device, non_blocking=True)
        torch.cuda.synchronize()

    return {"bytes_per_second": batch.numel() / seconds(copy, 30)}


def checkpoint(student: str) -> Numbers:
    """Parameters of a student, and seconds and bytes of saving it with the two moments of AdamW."""
    parameters = sum(value.numel() for value in timm.create_model(student).parameters())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "last.pt"
        spent = seconds(lambda: torch.save([torch.zeros(parameters) for _ in range(3)], file), 3)
        return {"parameters": parameters, "save_seconds": spent, "save_bytes": file.stat().st_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=256, help="images on one device")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--students", default=",".join(STUDENTS))
    parser.add_argument("--teacher", default=TEACHER)
    parser.add_argument("--output", type=Path, default=Path("scaling.json"))
    wanted = parser.parse_args()
    name = torch.cuda.get_device_name() if wanted.device != "cpu" else platform.processor() or platform.machine()
    found: Numbers = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    found |= {"teacher": wanted.teacher, "batch": wanted.batch, "px": wanted.px, "classes": CLASSES}
    found["decoding"], found["rows"], found["storage"] = decoding(), cache_rows(), storage()
    found["upload"] = upload(wanted.device)
    found["pairs"] = {}
    for student in wanted.students.split(","):
        rates = bench(student, wanted.device, wanted.batch, wanted.px, wanted.teacher)
        found["pairs"][student] = checkpoint(student) | rates
        wanted.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        print(student, {key: found["pairs"][student].get(key) for key in ("milliseconds", "error")}, flush=True)


if __name__ == "__main__":
    main()

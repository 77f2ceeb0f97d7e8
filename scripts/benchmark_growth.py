"""How start-up, memory and look-up grow with the data: python scripts/benchmark_growth.py [LARGEST] [FOLDER]

A folder of tiny images in 10 classes and a teacher cache of 100 logits in float16, with 10^3, 10^4 ... up to LARGEST
images (default 10^5) below FOLDER (default: the temporary folder). Every row is measured in a process of its own.
scikit-learn, which holds out the validation part and is slow to import, is imported before the clock starts.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import sklearn.model_selection  # noqa: F401 - before the clock starts
from PIL import Image

from distillcli.config.schema import DatasetConfig
from distillcli.sources.folder import open_folder
from distillcli.teachers.rows import open_cache

CLASSES = 10
LOOKUPS = 1000
WIDTH = 100


def make_folder(root: Path, count: int) -> None:
    """Links to one file: what costs time is the number of names."""
    image = root.parent / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    for label in range(CLASSES):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(count // CLASSES):
            if number % 10_000 == 0:  # a file may have some 65,000 names
                source = folder / f"{number:07d}.png"
                source.write_bytes(image.read_bytes())
            else:
                os.link(source, folder / f"{number:07d}.png")


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure_folder(root: Path, count: int) -> dict[str, float]:
    make_folder(root, count)
    before, started = megabytes(), time.perf_counter()
    source = open_folder(DatasetConfig(name="folder", root=str(root)))
    opened = time.perf_counter() - started
    rows = np.random.RandomState(0).randint(0, len(source.train.labels), LOOKUPS)
    started = time.perf_counter()
    for row in rows:
        source.train.images.read(int(row))
    return {"seconds": opened, "megabytes": megabytes() - before, "lookup": (time.perf_counter() - started) / LOOKUPS}


def measure_cache(root: Path, count: int) -> dict[str, float]:
    cache = open_cache(root, {}, "float16", WIDTH, count, 0)
    rows = np.random.RandomState(0).randn(1000, WIDTH).astype(np.float32)
    for start in range(0, count, 1000):
        cache.write(0, np.arange(start, start + 1000), rows)
    before, started = megabytes(), time.perf_counter()
    cache = open_cache(root, {}, "float16", WIDTH, count, 0)
    cache.read(0, np.arange(1))
    opened = time.perf_counter() - started
    order = np.random.RandomState(0).randint(0, count, (LOOKUPS // 100, 100))
    started = time.perf_counter()
    for index in order:
        assert cache.read(0, index)[1].all()
    return {"seconds": opened, "megabytes": megabytes() - before, "lookup": (time.perf_counter() - started) / LOOKUPS}


MEASURES = {"folder": measure_folder, "teacher cache": measure_cache}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(MEASURES[sys.argv[2]](Path(sys.argv[3]), int(sys.argv[4]))))
        return
    largest = int(float(sys.argv[1])) if len(sys.argv) > 1 else 10**5
    print("| what | images | open | memory added | one image or row |\n|---|---:|---:|---:|---:|")
    for name in MEASURES:
        count = 1000
        while count <= largest:
            with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as folder:
                command = [sys.executable, __file__, "--one", name, f"{folder}/data", str(count)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            sizes = f"{found['seconds']:.3g} s | {found['megabytes']:.0f} MB | {found['lookup'] * 1e6:.0f} us"
            print(f"| {name} | {count:,} | {sizes} |", flush=True)
            count *= 10


if __name__ == "__main__":
    main()

"""How long the command line takes to answer: python scripts/benchmark_startup.py

Medians of several starts of real processes, against a bare Python; targets are in docs/performance.md.
"""

import statistics
import subprocess
import sys
import tempfile
import time

RUNS = 7
CASES = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "distill --help": [sys.executable, "-m", "distillcli", "--help"],
    "distill train --help": [sys.executable, "-m", "distillcli", "train", "--help"],
    "unknown key": [sys.executable, "-m", "distillcli", "train", "distill.temprature=2"],
    "unknown model": [sys.executable, "-m", "distillcli", "train", "student.name=mobilnetv3"],
    "missing folder": [sys.executable, "-m", "distillcli", "train", "dataset=folder", "dataset.root=nowhere"],
    "distill train --cfg job": [sys.executable, "-m", "distillcli", "train", "--cfg", "job"],
}


def seconds(command: list[str], folder: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, command in CASES.items():
            seconds(command, folder)  # fill the file cache
            print(f"{name:<26} {statistics.median(seconds(command, folder) for _ in range(RUNS)):.3f} s")


if __name__ == "__main__":
    main()

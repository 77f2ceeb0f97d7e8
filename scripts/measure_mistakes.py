"""CPU seconds of each mistake of tests/test_mistakes.py, as a process of its own: python scripts/measure_mistakes.py

User and system time of the process, the smaller of `--runs` runs. Exits with 1 when one takes more than `--limit`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_mistakes import MISTAKES  # noqa: E402 - its folder is known only now


def cpu_seconds(line: str, folder: Path) -> float:
    """What one command line takes. Raises SystemExit where it is not refused."""
    command = [sys.executable, "-m", "distillcli", *shlex.split(line)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 2:
        raise SystemExit(f"distill {line}: exit code {process.returncode}, where 2 was expected")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1.5, help="CPU seconds")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    taken = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        for line, *_ in MISTAKES:
            taken[line] = min(cpu_seconds(line, folder) for _ in range(options.runs))
            print(f"{taken[line]:5.2f} s  distill {line}", flush=True)
    slowest = max(taken, key=lambda line: taken[line])
    print(f"at most {taken[slowest]:.2f} s of CPU, of {len(taken)} mistakes: distill {slowest}")
    raise SystemExit(taken[slowest] > options.limit)


if __name__ == "__main__":
    main()

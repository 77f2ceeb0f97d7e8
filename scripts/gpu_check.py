"""Does everything work on this GPU, and how fast: python scripts/gpu_check.py [--only a,b] [--output gpu.json]

Each check is a process of its own with a time limit, so that one that fails, hangs or crashes stops no other. Prints a
table of PASS, FAIL and SKIP with the figures found; `--output` keeps everything, the output of failed checks included.
`--device cpu` runs what makes sense there, to test the checks themselves. Ends with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Check -> (file, seconds it may take). The longest begin first.
CHECKS = {
    "objectives": ("gpu_steps", 400),
    "resume": ("gpu_runs", 400),
    "resume_cached": ("gpu_runs", 400),
    "determinism": ("gpu_steps", 300),
    "compile": ("gpu_steps", 400),
    "precision": ("gpu_runs", 300),
    "cache": ("gpu_runs", 300),
    "syncs": ("gpu_steps", 300),
    "commands": ("gpu_runs", 300),
    "trajectory": ("gpu_steps", 200),
    "upload": ("gpu_steps", 200),
    "layout": ("gpu_runs", 200),
    "memory": ("gpu_runs", 200),
    "launcher": ("gpu_runs", 200),
    "nccl": ("gpu_steps", 200),
    "peaks": ("gpu_steps", 200),
    "kernels": ("gpu_steps", 200),
}


def run_check(name: str, device: str, most: int) -> dict[str, Any]:
    """The outcome of one check: ``state``, ``figures``, ``seconds`` and, if it failed, its ``output``.

    ``most``: seconds it may take, if its own limit is longer.
    """
    file, limit = CHECKS[name]
    limit = min(most, limit * (1 if device == "cuda" else 5))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "scripts" / f"{file}.py"), name, device, folder]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the commands that it has started
            output, _ = process.communicate()
            output += f"\nstill running after {limit:.0f} seconds"
        code = process.returncode
    found = [line for line in output.splitlines() if line.startswith("FIGURES ")]
    outcome: dict[str, Any] = {"state": "FAIL", "figures": {}, "seconds": round(time.monotonic() - started, 1)}
    if found:
        outcome["figures"] = json.loads(found[-1].removeprefix("FIGURES "))
    if code == 0 and found:
        outcome["state"] = "SKIP" if "skipped" in outcome["figures"] else "PASS"
    else:
        outcome["output"] = output[-8000:]
    return outcome


def words(outcome: dict[str, Any]) -> str:
    """One line: the figures, and the last words of what failed."""
    figures = ", ".join(f"{name} {value}" for name, value in outcome["figures"].items())
    lines = [line.strip() for line in outcome.get("output", "").splitlines() if line.strip()]
    last = [line for line in lines if not line.startswith("FIGURES ")][-2:]
    return " | ".join(filter(None, [figures, *last]))


def machine(device: str) -> dict[str, Any]:
    import timm
    import torch

    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "cuda": torch.version.cuda if on_gpu else None,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", help="these checks, separated by commas")
    parser.add_argument("--skip", default="", help="all but these")
    parser.add_argument("--jobs", type=int, default=4, help="checks at the same time")
    parser.add_argument("--limit", type=int, default=3600, help="seconds of a check, where its own limit is longer")
    parser.add_argument("--output", type=Path, help="a JSON file of everything")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else [*CHECKS]
    names = [name for name in chosen if name not in options.skip.split(",")]
    if unknown := [name for name in [*names, *filter(None, options.skip.split(","))] if name not in CHECKS]:
        parser.error(f"unknown checks: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    report: dict[str, Any] = {**machine(options.device), "command": " ".join(sys.argv), "checks": {}}

    def one(name: str) -> None:
        outcome = run_check(name, options.device, options.limit)
        print(f"{outcome['state']} {name:14} {outcome['seconds']:5.0f} s  {words(outcome)}", flush=True)
        report["checks"][name] = outcome
        if options.output:
            options.output.write_text(json.dumps(report, indent=1), "utf-8")  # what was found so far is kept

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, names))
    failed = [name for name, outcome in report["checks"].items() if outcome["state"] == "FAIL"]
    print(
        f"{len(names) - len(failed)} of {len(names)} checks without a fault" + (f"; failed: {failed}" if failed else "")
    )
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()

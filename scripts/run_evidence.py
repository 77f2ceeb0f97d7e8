"""Run every regime of docs/evidence/plan.yaml with every seed: python scripts/run_evidence.py trainer.device=cuda

Further KEY=VALUE go to each `distill train`. `--workers` runs share the device; of those that need the same teacher one
fits it and the others wait. What was kept is skipped and what was stopped goes on, so the same command continues.
After `--limit` seconds nothing new begins and what runs is stopped, to go on later. What a document needs of each
finished run is copied to `--output`: its result.json, and which test images student and control get right, a bit for
each. To be started in the root of the checkout, so that paths in results are relative.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from distillcli.runs.predictions import read_predictions
from distillcli.runs.result import Result, read_result

ROOT = Path(__file__).parent.parent
EVIDENCE = ROOT / "docs" / "evidence"


@dataclass(frozen=True)
class Job:
    """One regime with one seed. ``like``: the folder of the run whose teacher it takes, or None."""

    name: str
    folder: Path
    arguments: tuple[str, ...]
    like: Path | None

    @property
    def result(self) -> Result | None:
        """What the run left, once it is finished."""
        found = read_result(self.folder)
        return found if found is not None and found.finished else None

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def is_ready(self) -> bool:
        return self.like is None or teacher_in(self.like) is not None

    def command(self) -> list[str]:
        """Go on with what is there, or begin."""
        if (self.folder / "config.yaml").is_file():
            own = [f"resume={self.folder}"]
        else:
            teacher = [] if self.like is None else [f"teacher.checkpoint={teacher_in(self.like)}"]
            own = [*self.arguments, *teacher, f"out={self.folder}"]
            shutil.rmtree(self.folder, ignore_errors=True)  # of one that was stopped before it could describe itself
        return [sys.executable, "-m", "distillcli", "train", *own]


def teacher_in(folder: Path) -> str | None:
    """The run folder of the teacher that a finished run fitted or found."""
    result = read_result(folder)
    return result.teacher.run if result is not None and result.finished and result.teacher is not None else None


def planned(plan: Path, runs: Path, settings: list[str]) -> list[Job]:
    """All jobs: those of the first regime first, as others take its teachers, then all regimes seed by seed."""
    content = yaml.safe_load(plan.read_text("utf-8"))
    seeds, regimes = content["seeds"], content["regimes"]
    first, *others = regimes
    order = [(first, seed) for seed in seeds] + [(name, seed) for seed in seeds for name in others]
    jobs = []
    for name, seed in order:
        regime = regimes[name]
        own = [with_seeds(override, seed, seeds) for override in regime.get("overrides", [])]
        arguments = (f"experiment=bench/{name}", f"seed={seed}", f"runs={runs}", *own, *settings)
        like = runs / regime["like"] / f"seed-{seed}" if "like" in regime else None
        jobs.append(Job(f"{name}/seed-{seed}", runs / name / f"seed-{seed}", arguments, like))
    return jobs


def needed(jobs: list[Job], output: Path) -> list[Job]:
    """Those of which nothing was kept, and those whose teacher one of these takes, as their folders may be gone."""
    open_jobs = [job for job in jobs if not (output / job.name / "result.json").is_file()]
    teachers = {job.like for job in open_jobs}
    return [job for job in jobs if job in open_jobs or job.folder in teachers]


def with_seeds(override: str, seed: int, seeds: list[int]) -> str:
    """``{seed}``, and ``{seed+2}`` for the second one after it in ``seeds``, which begin again at their end."""

    def other(found: re.Match[str]) -> str:
        return str(seeds[(seeds.index(seed) + int(found[1] or 0)) % len(seeds)])

    return re.sub(r"\{seed\+?(\d*)\}", other, override)


def run_all(jobs: list[Job], workers: int, limit: float, output: Path) -> list[Job]:
    """Run what is not finished, and keep of each run what documents are made of; returns what failed."""
    begin, waiting, failed = time.monotonic(), [job for job in jobs if job.result is None], list[Job]()
    running: dict[Job, subprocess.Popen[bytes]] = {}
    while (waiting or running) and time.monotonic() - begin < limit:
        ready = [job for job in waiting if job.is_ready()]
        for job in ready[: workers - len(running)]:
            waiting.remove(job)
            running[job] = start(job)
        if not running:
            break  # what is left takes the teacher of a run that failed
        time.sleep(0.5)
        for job in [job for job, process in running.items() if process.poll() is not None]:
            code = running.pop(job).returncode
            say(f"{job.name}: {'finished' if job.result else f'failed with code {code}, see {job.log}'}", begin)
            failed += [] if job.result else [job]
            keep(job, output)
    for process in running.values():
        process.send_signal(signal.SIGTERM)  # a run saves where it is
    for job, process in running.items():
        process.wait()
        say(f"{job.name}: stopped, to go on later", begin)
    return failed


def start(job: Job) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(job.command(), stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def say(words: str, begin: float) -> None:
    print(f"{time.monotonic() - begin:6.0f} s  {words}", flush=True)


def keep(job: Job, output: Path) -> None:
    """Copy the result of a finished run, and which images its models get right."""
    result, target = job.result, output / job.name
    if result is None:
        return
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(job.folder / "result.json", target / "result.json")
    folders = {"student": job.folder}
    if result.baseline is not None and result.baseline.run is not None:
        folders["control"] = Path(result.baseline.run)
    predictions = {model: read_predictions(folder) for model, folder in folders.items()}
    hits = {model: found.hits for model, found in predictions.items() if found is not None}
    bits = {model: np.packbits(found) for model, found in hits.items()}
    device = json.loads((job.folder / "environment.json").read_text("utf-8"))["device"]
    (output / "device.txt").write_text(f"{device}\n", "utf-8")
    np.savez(target / "hits.npz", images=np.array(len(hits["student"])), **bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=EVIDENCE / "plan.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--output", type=Path, default=EVIDENCE / "measured")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="for every run")
    given = parser.parse_args()
    jobs = planned(given.plan, given.runs, ["trainer.threads=1", *given.settings])
    for job in jobs:
        keep(job, given.output)  # of earlier starts
    failed = run_all(needed(jobs, given.output), given.workers, given.limit, given.output)
    done = sum((given.output / job.name / "result.json").is_file() for job in jobs)
    print(f"{done} of {len(jobs)} runs are kept in {given.output}, {len(failed)} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()

"""Every preset of configs/distill on real digits at one budget: python scripts/measure_presets.py

Runs one sweep of `experiment=presets` over presets and seeds, or goes on with it, and writes docs/results.md from the
run folders. `--presets kd,dkd` measures some, `--seeds 0,1,2` chooses the seeds, `--runs` the folder. `--jobs 2`
runs two at a time, each on one thread (pip install 'distillcli[joblib]').
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

from distillcli.report.sweep_jobs import SweepJob, read_jobs
from distillcli.runs.result import Measured

ROOT = Path(__file__).parent.parent
PRESETS = sorted(path.stem for path in (ROOT / "configs" / "distill").glob("*.yaml"))
WORDS = """# What every preset gave

Top-1 in percent on {test} test images of scikit-learn's digits: mean ± standard deviation over seeds {seeds}, of the
last epoch and of the epoch that was best on the {val} validation images. {teacher} teaches {student}; {epochs} epochs.
The control is the same student with the same budget and no teacher. A step is one optimizer step on {batch} images with
the teacher's forward pass, or its cached answers where the preset allows a cache; it was timed by the run itself.

A preset keeps the weights and temperatures of its paper, mostly those for CIFAR-100. They are not tuned for this task:
what loses to the control here may win with other weights, and small differences are within the spread of the seeds.
Where the control is far below the teacher ({expert} %), the budget was too short for this student: the order then says
who learns fastest, and not who ends best.

    {command}

{versions}

{table}
"""


def sweep_arguments(presets: list[str], seeds: str, runs: Path, jobs: int) -> list[str]:
    choices = [f"distill=choice({','.join(presets)})", f"seed={seeds}"]  # choice: a sweep, of one preset as well
    if jobs > 1:
        choices += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}", "trainer.threads=1"]
    return ["train", "-m", "experiment=presets", *choices, f"runs={runs}", f"out={runs / 'sweep'}"]


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def by_seed(jobs: list[SweepJob], name: str) -> list[float]:
    """Top-1 of the control ("baseline") or the teacher, once for each seed."""
    return [*{job.result.seed: top1 for job in jobs if (top1 := job.top1(name)) is not None}.values()]


def table(jobs: list[SweepJob], batch: int) -> str:
    """One row per preset, the best mean first, and the control among them."""
    groups: dict[str, list[SweepJob]] = {}
    for job in jobs:
        groups.setdefault(job.overrides["distill"], []).append(job)
    top1 = by_seed(jobs, "baseline")
    rows = [(statistics.fmean(top1), spread(top1), "", "**control**", "", len(top1), "")] if top1 else []
    for name, group in groups.items():
        last = [accuracy for job in group if (accuracy := job.top1()) is not None]
        best = [job.result.best.top1 for job in group if job.result.best and job.result.best.top1 is not None]
        pairs = [(job.top1(), job.top1("baseline")) for job in group]
        gains = [student - control for student, control in pairs if student is not None and control is not None]
        step = [1000 * batch / speed for job in group if (speed := job.result.images_per_second)]
        rows.append(
            (
                statistics.fmean(last),
                spread(last),
                spread(best),
                name,
                spread(gains) if gains else "",
                len(last),
                f"{statistics.median(step):.0f}" if step else "",
            )
        )
    lines = [
        "| preset | last epoch | best epoch | minus control | seeds | ms per step |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {last} | {best} | {gain} | {count} | {step} |"
        for _, last, best, name, gain, count, step in sorted(rows, key=lambda row: -row[0])
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/presets"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results.md")
    given = parser.parse_args()
    arguments = sweep_arguments(given.presets.split(","), given.seeds, given.runs, given.jobs)
    finished = subprocess.run([sys.executable, "-m", "distillcli", *arguments], check=False)
    every_job = read_jobs(given.runs / "sweep")
    jobs = [job for job in every_job if job.result.finished]
    first = jobs[0].result
    assert first.dataset is not None
    recorded = yaml.safe_load((given.runs / "sweep" / jobs[0].name / "config.yaml").read_text("utf-8"))
    batch = recorded["trainer"]["batch_size"]
    given.output.write_text(
        WORDS.format(
            test=first.dataset.test,
            val=first.dataset.val,
            seeds=given.seeds.replace(",", ", "),
            teacher=next(job.result.teacher.model for job in jobs if job.result.teacher),
            student=(first.student or Measured()).model,
            expert=spread(by_seed(jobs, "teacher")),
            epochs=first.epochs,
            batch=batch,
            command=f"python scripts/measure_presets.py --seeds {given.seeds} --jobs {given.jobs}",
            versions=", ".join(f"{name} {first.versions[name]}" for name in ("torch", "timm")) + ".",
            table=table(jobs, batch),
        ),
        "utf-8",
    )
    for job in every_job:
        if job not in jobs:
            print(f"not measured: {' '.join(job.result.overrides) or job.name}: {job.result.error}", file=sys.stderr)
    raise SystemExit(finished.returncode)


if __name__ == "__main__":
    main()

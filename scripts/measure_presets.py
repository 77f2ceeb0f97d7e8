"""Every preset of configs/distill on real digits at one budget: python scripts/measure_presets.py

Runs one sweep of `experiment=presets` over presets and seeds, or goes on with it, and writes docs/results.md from the
run folders. `--presets kd,dkd` measures some, `--seeds 0,1,2` chooses the seeds, `--runs` the folder. `--jobs 2`
runs two at a time, each on one thread (pip install 'distillcli[joblib]').
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

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
    choices = [f"distill={','.join(presets)}", f"seed={seeds}"]
    if jobs > 1:
        choices += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}", "trainer.threads=1"]
    return ["train", "-m", "experiment=presets", *choices, f"runs={runs}", f"out={runs / 'sweep'}"]


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def table(results: list[dict[str, Any]], batch: int) -> str:
    """One row per preset, the best mean first, and the control among them."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        choice = next(word.split("=")[1] for word in result["overrides"] if word.startswith("distill="))
        groups.setdefault(choice, []).append(result)
    controls = {result["seed"]: result["baseline"]["top1"] for result in results if result["baseline"]}
    top1 = list(controls.values())
    rows = [(statistics.fmean(top1), spread(top1), "", "**control**", "", len(top1), "")] if top1 else []
    for name, group in groups.items():
        last = [result["last"]["top1"] for result in group]
        best = [result["best"]["top1"] for result in group]
        pairs = [result["last"]["top1"] - result["baseline"]["top1"] for result in group if result["baseline"]]
        step = [1000 * batch / result["images_per_second"] for result in group if result["images_per_second"]]
        rows.append(
            (
                statistics.fmean(last),
                spread(last),
                spread(best),
                name,
                spread(pairs) if pairs else "",
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
    sweep = json.loads((given.runs / "sweep" / "sweep.json").read_text("utf-8"))
    results = [result for result in sweep["results"] if result["status"] == "ok"]
    failed = [result for result in sweep["results"] if result["status"] != "ok"]
    first = results[0]
    recorded = yaml.safe_load((given.runs / "sweep" / first["job"] / "config.yaml").read_text("utf-8"))
    batch = recorded["trainer"]["batch_size"]
    given.output.write_text(
        WORDS.format(
            test=first["dataset"]["test"],
            val=first["dataset"]["val"],
            seeds=given.seeds.replace(",", ", "),
            teacher=next(result["teacher"]["model"] for result in results if result["teacher"]),
            student=first["student"]["model"],
            expert=spread(
                list({result["seed"]: result["teacher"]["top1"] for result in results if result["teacher"]}.values())
            ),
            epochs=first["epochs"],
            batch=batch,
            command=f"python scripts/measure_presets.py --seeds {given.seeds} --jobs {given.jobs}",
            versions=", ".join(f"{name} {first['versions'][name]}" for name in ("torch", "timm")) + ".",
            table=table(results, batch),
        ),
        "utf-8",
    )
    for result in failed:
        print(f"not measured: {result.get('overrides')}: {result.get('error')}", file=sys.stderr)
    raise SystemExit(finished.returncode)


if __name__ == "__main__":
    main()

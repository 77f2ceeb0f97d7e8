"""Write docs/evidence/results.md from what scripts/run_evidence.py kept: python scripts/document_evidence.py"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from distillcli.evidence.paired import Hits, PairedSeeds, compare_seeds
from distillcli.runs.result import EpochNumbers, Measured, Result, read_result

EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"
WORDS = """# What was measured on Fashion-MNIST

{plan}

Top-1 in percent on {images:,} test images of the last epoch: mean ± standard deviation over the seeds. *Difference*:
student less control, with its 95 % interval over seeds and images. *Best epoch*: the epoch that was best on validation.

{table}

{missing}{notes}

    {command}
    python scripts/document_evidence.py

{device}
"""
PLAN = "The regimes, and why each was expected to end as it says, were fixed before: [plan.md](plan.md)."


@dataclass(frozen=True)
class Run:
    """One seed of a regime. ``student`` and ``control``: which test images each gets right."""

    result: Result
    student: Hits
    control: Hits | None


@dataclass(frozen=True)
class Regime:
    """``like``: by name, the regime whose controls are compared with, where this one has none."""

    name: str
    settings: dict[str, Any]
    runs: dict[int, Run]


def read_run(folder: Path) -> Run | None:
    result = read_result(folder)
    if result is None or not (folder / "hits.npz").is_file():
        return None
    with np.load(folder / "hits.npz") as content:
        images = int(content["images"])
        hits = {
            model: np.unpackbits(content[model], count=images).astype(bool)
            for model in ("student", "control")
            if model in content
        }
    return Run(result, hits["student"], hits.get("control"))


def read_regimes(plan: dict[str, Any], measured: Path) -> dict[str, Regime]:
    regimes = {}
    for name, settings in plan["regimes"].items():
        found = {seed: read_run(measured / name / f"seed-{seed}") for seed in plan["seeds"]}
        regimes[name] = Regime(name, settings, {seed: run for seed, run in found.items() if run is not None})
    return regimes


def compared(regime: Regime, controls: Regime) -> PairedSeeds | None:
    """Students against the controls of the same seeds; None where nothing was run."""
    pairs = [
        (run.student, other.control)
        for seed, run in regime.runs.items()
        if (other := controls.runs.get(seed)) is not None and other.control is not None
    ]
    return compare_seeds(*zip(*pairs, strict=True)) if pairs else None


def row(regime: Regime, regimes: dict[str, Regime]) -> str:
    runs = [run.result for run in regime.runs.values()]
    controls = regimes[regime.settings.get("like", regime.name)]
    baselines = [run.result.baseline for seed, run in controls.runs.items() if seed in regime.runs]
    difference = compared(regime, controls)
    cells = [
        regime.settings["letter"],
        f"`{regime.name}`",
        spread([top1(result.teacher) for result in runs]),
        spread([top1(result.student) for result in runs]),
        spread([top1(baseline) for baseline in baselines]) + (" (*)" if "like" in regime.settings else ""),
        "" if difference is None else difference_words(difference),
        spread([top1(result.best) for result in runs]),
        spread([top1(baseline.best) for baseline in baselines if baseline is not None]),
        regime.settings["expected"],
        conclusion(difference),
        _objective(runs),
        str(len(runs)),
    ]
    return f"| {' | '.join(cells)} |"


def difference_words(found: PairedSeeds) -> str:
    """``+0.21, -0.12 to +0.53``; a single seed says nothing of how seeds differ."""
    if len(found.differences) == 1:
        return f"{found.difference:+.2f}, no interval from one seed"
    return f"{found.difference:+.2f}, {found.low:+.2f} to {found.high:+.2f}"


def conclusion(found: PairedSeeds | None) -> str:
    if found is None:
        return "not measured"
    return f"**{found.conclusion}**" if len(found.differences) > 1 else "one seed"


def _objective(runs: list[Result]) -> str:
    return " and ".join(sorted({f"{run.temperature:g}, {run.alpha:g}" for run in runs if run.alpha is not None}))


def top1(numbers: Measured | EpochNumbers | None) -> float | None:
    return None if numbers is None else numbers.top1


def spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    deviation = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.2f}{deviation}" if known else ""


def table(regimes: dict[str, Regime]) -> str:
    head = ("", "regime", "teacher", "student", "control", "difference", "student, best epoch", "control, best epoch")
    head = (*head, "expected", "measured", "T, alpha", "seeds")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(row(regime, regimes) for regime in regimes.values())])


def assistants_note(regimes: dict[str, Regime]) -> str:
    """Two regimes against the plain one: what an assistant and an ensemble add to a teacher."""
    lines = []
    for name in ("assistant", "ensemble"):
        plain, other = regimes["full_labels"].runs, regimes[name].runs
        pairs = [(run.student, plain[seed].student) for seed, run in other.items() if seed in plain]
        if pairs:
            found = compare_seeds(*zip(*pairs, strict=True))
            lines.append(f"- Students of `{name}` less those of `full_labels`: {difference_words(found)}.")
    return "\n".join(lines)


def missing(regimes: dict[str, Regime], seeds: int) -> str:
    """A line for a table that is not complete yet."""
    done, planned = sum(len(regime.runs) for regime in regimes.values()), seeds * len(regimes)
    if done == planned:
        return ""
    return (
        f"**Not complete: {done} of the {planned} planned runs have been made.** The command below makes the rest.\n\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, default=EVIDENCE / "plan.yaml")
    parser.add_argument("--measured", type=Path, default=EVIDENCE / "measured")
    parser.add_argument("--output", type=Path, default=EVIDENCE / "results.md")
    parser.add_argument("--command", default="python scripts/run_evidence.py --workers 12 trainer.device=cuda")
    given = parser.parse_args()
    plan = yaml.safe_load(given.plan.read_text("utf-8"))
    regimes = read_regimes(plan, given.measured)
    runs = [run for regime in regimes.values() for run in regime.runs.values()]
    if not runs:
        parser.error(f"{given.measured}: nothing was measured yet; start with scripts/run_evidence.py")
    note = "(*) There is no control without labels: these are the controls of the regime with all labels."
    given.output.write_text(
        WORDS.format(
            plan=PLAN,
            images=len(runs[0].student),
            table=table(regimes),
            missing=missing(regimes, len(plan["seeds"])),
            notes="\n\n".join([note, assistants_note(regimes)]),
            command=given.command,
            device=_device(given.measured, [run.result for run in runs]),
        ),
        "utf-8",
    )


def _device(measured: Path, runs: list[Result]) -> str:
    device = (measured / "device.txt").read_text("utf-8").strip()
    versions = {f"{name} {run.versions[name]}" for run in runs for name in ("torch", "timm") if name in run.versions}
    return f"{device}; {', '.join(sorted(versions))}; {sum(run.seconds or 0 for run in runs) / 3600:.1f} hours of runs."


if __name__ == "__main__":
    main()

"""docs/gpu.md from what the checks and the benchmark of a GPU left: python scripts/document_gpu.py

Reads docs/gpu/checks.json (scripts/gpu_check.py) and docs/gpu/peers.json (scripts/benchmark_peers.py); `make gpu-check`
makes all three. A file docs/gpu/notes.md, written by a person, is put before the tables.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from gpu_check import CHECKS, words

DOCS = Path(__file__).resolve().parent.parent / "docs"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)])


def checks_table(checks: dict[str, Any]) -> str:
    rows = []
    for name in CHECKS:
        found = checks.get(name)
        if found is None:
            rows.append([f"`{name}`", "not run", "", ""])
        else:
            said = " ".join(words(found).split())
            seconds = f"{found['seconds']:.0f} s"
            rows.append([f"`{name}`", found["state"], seconds, said if len(said) <= 300 else f"{said[:299]}…"])
    return table(["check", "", "took", "figures"], rows)


def peers_table(batch: dict[str, Any]) -> str:
    images = batch["batch"]
    medians = {name: statistics.median(turns) for name, turns in batch["seconds"].items()}
    slowest = next(iter(medians.values()))
    rows = [
        [name, f"{1000 * spent:.1f}", f"{images / spent:,.0f}", f"{slowest / spent:.2f}"]
        for name, spent in medians.items()
    ]
    return table(["loop", "ms a step", "images/s", "times the first"], rows)


def document(checks: dict[str, Any], peers: dict[str, Any], notes: str) -> str:
    options, versions = peers["options"], checks["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    blocks = [
        "# On a GPU",
        f"Measured on one {checks['device']} with {checks['cores']} CPU cores ({named}) by the commands named below; "
        "`make gpu-check` runs both and writes this page.",
        notes,
        "## Checks",
        f"`python {checks['command']}`. What each check does stands above it in `scripts/gpu_steps.py` and "
        "`scripts/gpu_runs.py`.",
        checks_table(checks["checks"]),
    ]
    told = options | {"batch": " ".join(str(batch["batch"]) for batch in peers["batches"])}
    given = " ".join(f"--{name} {value}" for name, value in told.items() if name != "output" and value is not None)
    for batch in peers["batches"]:
        blocks += [
            f"## {options['teacher']} teaches {options['student']}: {options['px']} px, batch {batch['batch']}",
            f"`python scripts/benchmark_peers.py {given}`: median of interleaved turns, images on the GPU, "
            f"{options['precision']}; a large matrix product reaches {batch['peak_flops'] / 1e12:.0f} TFLOP/s.",
            peers_table(batch),
        ]
    return "\n\n".join(block for block in blocks if block) + "\n"


if __name__ == "__main__":
    read = {name: json.loads((DOCS / "gpu" / f"{name}.json").read_text("utf-8")) for name in ("checks", "peers")}
    notes = DOCS / "gpu" / "notes.md"
    words_of_a_person = notes.read_text("utf-8").strip() if notes.is_file() else ""
    (DOCS / "gpu.md").write_text(document(read["checks"], read["peers"], words_of_a_person), "utf-8")

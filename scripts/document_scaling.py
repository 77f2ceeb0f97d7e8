"""docs/scaling.md from the constants that scripts/measure_scaling.py found: python scripts/document_scaling.py

Every number is either a measured constant (docs/scaling.json), an assumption that is listed as one, or a formula of
both that stands beside it.
"""

# ruff: noqa: E501 (the text stands as it will be read)
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
IMAGES, EPOCHS, IMAGE_BYTES = 1_281_167, 300, 110_000
GPUS_PER_NODE, NODES = 8, 16
# Assumptions: no second device was at hand. Vendors' figures for one direction, halved for what collectives reach.
NODE_LINK, NETWORK_LINK = 225e9, 25e9  # bytes per second and GPU: NVLink 4 within a node, 400 Gb/s per GPU between
LATENCY = 20e-6  # seconds per hop of a ring
CORES_PER_NODE = 96
# Llama 3 (Grattafiori et al., 2024, section 3.3.4): 419 unexpected interruptions in 54 days on 16,384 GPUs.
GPU_HOURS_PER_STOP = 54 * 24 * 16384 / 419
RESTART_SECONDS = 180
SAVE_MINUTES = 10  # trainer.checkpoint_minutes
Pair = dict[str, Any]


def step_seconds(pair: Pair, cached: bool) -> float:
    """Seconds of one step on one device; the wait for data is counted apart."""
    spent = pair["milliseconds"]
    parts = ["forward", "backward", "optimizer"] + ([] if cached else ["teacher"])
    return float(sum(spent[part] for part in parts)) / 1000


def reduce_seconds(pair: Pair, gpus: int) -> float:
    """A ring all-reduce of fp32 gradients: every byte is sent and received 2 (G - 1) / G times."""
    if gpus == 1:
        return 0.0
    link = NODE_LINK if gpus <= GPUS_PER_NODE else NETWORK_LINK
    return 2 * (gpus - 1) / gpus * 4 * float(pair["parameters"]) / link + 2 * (gpus - 1) * LATENCY


def rate(pair: Pair, gpus: int, cached: bool) -> float:
    """Images per second. What the all-reduce takes beyond the backward pass, which hides it, is waited for."""
    waited = max(0.0, reduce_seconds(pair, gpus) - pair["milliseconds"]["backward"] / 1000)
    return gpus * float(pair["batch_size"]) / (step_seconds(pair, cached) + waited)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(value: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    place = min(int(math.log10(max(value, 1)) // 3), len(units) - 1)
    return f"{value / 1000**place:.3g} {units[place]}"


def rates(found: Pair) -> str:
    rows = []
    for student, pair in found["pairs"].items():
        for gpus in (1, GPUS_PER_NODE, GPUS_PER_NODE * NODES):
            live, cached = rate(pair, gpus, False), rate(pair, gpus, True)
            cores = min(GPUS_PER_NODE, gpus) / gpus * cached / found["decoding"]["images_per_second"]
            network = min(GPUS_PER_NODE, gpus) / gpus * cached * IMAGE_BYTES
            hours = [IMAGES * EPOCHS / speed / 3600 for speed in (live, cached)]
            cells = [number(live), number(cached), f"{cached / live:.2f}", number(hours[0]), number(hours[1])]
            rows.append([student, str(gpus), *cells, f"{cores:,.0f}", f"{size(network)}/s"])
    head = ["student", "GPUs", "images/s live", "cached", "ratio", "hours live", "hours cached"]
    return table([*head, "decoding cores per node", "images read per node"], rows)


def caches(found: Pair) -> str:
    fastest = max(rate(pair, GPUS_PER_NODE, True) for pair in found["pairs"].values())
    rows = []
    for name, constants in found["rows"].items():
        one = IMAGES * constants["bytes_per_row"]
        cells = [size(one * views) for views in (1, 10, 50, EPOCHS)]
        processes = fastest / constants["read_rows_per_second"]
        rows.append(
            [name, str(constants["bytes_per_row"]), *cells, f"{processes:.2f}", size(one * GPUS_PER_NODE * NODES)]
        )
    head = ["format", "bytes per row", "1 view", "10 views", "50 views", f"{EPOCHS} views"]
    return table([*head, "cores to read it, fastest node", f"reserved per view by {GPUS_PER_NODE * NODES} ranks"], rows)


def restarts(found: Pair) -> str:
    rows = []
    save = max(pair["save_seconds"] for pair in found["pairs"].values())
    for gpus in (GPUS_PER_NODE, GPUS_PER_NODE * NODES):
        between = GPU_HOURS_PER_STOP / gpus * 3600
        lost = (SAVE_MINUTES * 60 / 2 + RESTART_SECONDS) / between
        best = math.sqrt(2 * save * between) / 60
        rows.append([str(gpus), number(between / 3600), f"{100 * lost:.3f} %", f"{best:.1f} minutes"])
    return table(["GPUs", "hours between stops", "time lost", "best interval of saving (Young 1974)"], rows)


def document(found: Pair) -> str:
    decode = found["decoding"]
    students = ", ".join(found["pairs"])
    commands = "\n".join("    " + pair["command"] for pair in found["pairs"].values())
    parts = [
        [
            name,
            *(f"{pair['milliseconds'][part]:.1f}" for part in ("teacher", "forward", "backward", "optimizer")),
            f"{pair['parameters'] / 1e6:.1f} M",
            size(pair["memory_bytes"]),
        ]
        for name, pair in found["pairs"].items()
    ]
    return f"""# Large runs, on paper

Made by `python scripts/document_scaling.py` from `docs/scaling.json`, which
`python scripts/measure_scaling.py --device cuda --output docs/scaling.json` measured on one {found["device"]} (torch
{found["torch"]}). The case: {IMAGES:,} images of {IMAGE_BYTES // 1000} kB, {found["px"]} px, {found["classes"]} classes, {EPOCHS} epochs,
teacher {found["teacher"]}, students {students}, {found["batch"]} images per GPU and step; one node of {GPUS_PER_NODE} GPUs, and {NODES} such nodes.
**Nothing here was run on more than one GPU**: rates of several are the formulas below with the assumptions below.

## Measured constants
Milliseconds of one step:

{table(["student", "teacher", "forward", "backward", "optimizer", "parameters", "peak memory"], parts)}

{commands}

One core decodes {number(decode["images_per_second"])} photographs of 500 x 375 px a second ({size(decode["jpeg_bytes"])} of JPEG each);
pinned memory reaches the GPU at {size(found["upload"].get("bytes_per_second", 0))}/s; the disk takes {size(found["storage"]["write_bytes_per_second"])}/s.

## Assumptions
- Links, in bytes per second and GPU and one direction: {size(NODE_LINK)}/s within a node, {size(NETWORK_LINK)}/s between nodes: half of what
  vendors state for NVLink 4 and for 400 Gb/s per GPU; {1e6 * LATENCY:.0f} us per hop.
- {CORES_PER_NODE} cores in a node. One unexpected stop per {GPU_HOURS_PER_STOP:,.0f} GPU hours (Llama 3, 2024: 419 in 54 days on 16,384 GPUs), and
  {RESTART_SECONDS} s until the run trains again.

## Rates
    t_live   = teacher + forward + backward + optimizer,   t_cached = t_live - teacher
    t_reduce = 2 (G - 1) / G * 4 bytes * parameters / link + 2 (G - 1) * hop
    images/s = G * batch / (t + max(0, t_reduce - backward))
    hours    = images * epochs / (images/s) / 3600
    cores    = images/s of a node / images/s that one core decodes

{rates(found)}

The decoding cores are those that a cached run needs, since it is the faster one. Above {CORES_PER_NODE} of them a run is bound by
decoding: smaller files (resized to 256 px once, about three times as fast) or images kept decoded in memory
(`dataset.memory_gb`) are the way out; {IMAGES:,} images of 256 x 256 px take {size(IMAGES * 256 * 256 * 3)}.

## Cache
    bytes = images * views * bytes per row

{caches(found)}

A view per epoch is the live run exactly; K views cycle (`teacher.cache.views=K`). Filling one view costs one pass of the
teacher; a cache pays from the second run on, or from the second cycle of its views. Reading is cheap in every format.
**Where it breaks**: every rank reserves whole view files, so that a full disk is noticed before the first step. On one
device that is what the cache will take; with G ranks it is G times as much (last column), though each row is written once.
For many nodes fill the cache on one, or use few views.

## Restarts
    lost = (interval of saving / 2 + restart) / time between stops

{restarts(found)}

With `trainer.checkpoint_minutes={SAVE_MINUTES}`. A checkpoint holds student and optimizer, never the teacher; rank 0 alone writes it.

## Where the formulas break
- The teacher stands whole on every GPU: beside a ViT-L that is its weights in bf16 and the activations of one batch without
  graph. A teacher that does not fit is beyond this tool today; its rows must come from a cache that was filled elsewhere.
- A fixed global batch: at 128 GPUs x {found["batch"]} images a step sees {128 * found["batch"]:,}. Published recipes stop at 4,096 to 16,384; with
  smaller parts per GPU the rates above fall, since kernels are too short to fill the device.
- The ring's latency grows with G while the bytes do not: models of a few million parameters feel it first. NCCL takes trees
  there.
- Terms that need the whole batch (`rkd`, `cc`, `crd`) see one part of it per rank, or are refused.
- Batch norm sees the images of its own rank alone.
- A shared file system: 128 ranks that open small files at once; archives (`dataset=webdataset`, zip, tar) keep the count of
  opens low. Nothing was measured on one.
"""


if __name__ == "__main__":
    constants = json.loads((DOCS / "scaling.json").read_text("utf-8"))
    (DOCS / "scaling.md").write_text(document(constants), "utf-8")

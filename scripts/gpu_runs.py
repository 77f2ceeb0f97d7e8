"""Checks of gpu_check.py that give whole commands: python scripts/gpu_runs.py CHECK cuda|cpu FOLDER"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from checking import Check, Figures, hold, run_one
from safetensors.torch import load_file
from trials import equal_bits

COMMAND = [sys.executable, "-m", "distillcli"]
# 32 steps an epoch; the teacher is fitted once in a folder, and found again by the runs that follow.
SMOKE = ("train", "experiment=smoke", "dataset.samples=1024", "trainer.epochs=3", "baseline=false", "trainer.threads=1")


def distill(folder: Path, *arguments: str, code: int = 0, launcher: tuple[str, ...] = ()) -> str:
    """What the command says; fails on another exit code."""
    command = [*(launcher or COMMAND[:1]), *COMMAND[1:], *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise SystemExit(f"exit code {done.returncode}, not {code}: {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def student(run: Path) -> dict[str, Any]:
    return dict(load_file(run / "student" / "model.safetensors"))


def farthest(first: dict[str, Any], second: dict[str, Any]) -> float:
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def result(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


def killed(folder: Path, run: str, number: signal.Signals, begun: str, *arguments: str) -> int:
    """Start a run and send it a signal as soon as the file ``begun`` of it is there; its exit code."""
    process = subprocess.Popen(
        [*COMMAND, *arguments, f"out={run}"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (folder / run / begun).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait()


def _resume(device: str, folder: Path, cache: str) -> Figures:
    """A run that is stopped and resumed ends with the weights of one that was not, bit for bit."""
    settings = (*SMOKE, f"trainer.device={device}", f"teacher.cache.mode={cache}", "student.name=mobilenetv3_small_100")
    for run in ("whole", "again"):
        distill(folder, *settings, f"out={run}")
    whole = student(folder / "whole")
    figures = Figures({"two_whole_runs": "equal" if equal_bits(whole, student(folder / "again")) else "DIFFERENT"})
    stops = {
        "killed_in_an_epoch": (signal.SIGKILL, "checkpoints/last.pt", "trainer.checkpoint_minutes=0.0001"),
        "killed_after_an_epoch": (signal.SIGKILL, "metrics.jsonl", "trainer.checkpoint_minutes=10"),
        "asked_to_stop": (signal.SIGTERM, "metrics.jsonl", "trainer.checkpoint_minutes=10"),
    }
    for name, (number, begun, often) in stops.items():
        code = killed(folder, name, number, begun, *settings, often)
        said = distill(folder, "train", f"resume={name}")
        where = re.findall(r"student: resumed ([^\n]*)", said)
        same = equal_bits(whole, student(folder / name))
        away = "equal" if same else f"DIFFERENT by {farthest(whole, student(folder / name)):.1e}"
        figures[name] = f"{away} (exit {code}, {where[0] if where else 'NOT RESUMED'})"
    bad = [name for name, verdict in figures.items() if "DIFFERENT" in verdict or "NOT RESUMED" in verdict]
    hold(figures, not bad, f"not bit-equal or not resumed: {bad}")
    return figures


def resume(device: str, folder: Path) -> Figures:
    return _resume(device, folder, "off")


def resume_cached(device: str, folder: Path) -> Figures:
    return _resume(device, folder, "float16")


def precision(device: str, folder: Path) -> Figures:
    """Every precision trains and ends; the scale of fp16 is kept in the checkpoint and goes on from there."""
    import torch

    figures = Figures()
    for name in ("fp32", "bf16", *(("fp16",) if device == "cuda" else ())):
        how = (f"trainer.device={device}", f"trainer.precision={name}", "trainer.keep_optimizer=true")
        said = distill(folder, *SMOKE, *how, f"out={name}")
        content = torch.load(folder / name / "checkpoints" / "last.pt", map_location="cpu", weights_only=True)
        found = result(folder / name)
        scale = content["scaler"].get("scale")
        figures[name] = f"top-1 {found['student']['top1']:.1f}" + (f", scale {scale:g}" if scale else "")
        hold(
            figures, bool(scale) == (name == "fp16") and "Traceback" not in said, f"{name}: {content['scaler']}\n{said}"
        )
    if device == "cuda":
        how = (*SMOKE, f"trainer.device={device}", "trainer.precision=fp16", "trainer.keep_optimizer=true")
        killed(folder, "stopped", signal.SIGTERM, "metrics.jsonl", *how)
        before = torch.load(folder / "stopped/checkpoints/last.pt", map_location="cpu", weights_only=True)["scaler"]
        distill(folder, "train", "resume=stopped")
        after = torch.load(folder / "stopped/checkpoints/last.pt", map_location="cpu", weights_only=True)["scaler"]
        whole = torch.load(folder / "fp16/checkpoints/last.pt", map_location="cpu", weights_only=True)["scaler"]
        figures["fp16_resumed"] = f"tracker {before['_growth_tracker']} -> {after['_growth_tracker']}"
        hold(figures, after == whole, f"scaler after a stop {after}, without {whole}")
    return figures


def cache(device: str, folder: Path) -> Figures:
    """Rows that were cached here give the same student again, and verify; what a run on the other device says."""
    figures, settings = Figures(), (*SMOKE, "teacher.cache.mode=float16")
    for run, where in (("first", device), ("second", device), ("other", "cpu" if device == "cuda" else device)):
        said = distill(folder, *settings, f"trainer.device={where}", f"out={run}")
        figures[f"caches_after_{run}"] = len(list((folder / "runs" / "cache").glob("*/key.json")))
        figures[f"top1_{run}"] = result(folder / run)["student"]["top1"]
        hold(figures, "Traceback" not in said, said)
    distill(folder, *SMOKE, "teacher.cache.mode=off", f"trainer.device={device}", "out=live")
    figures["top1_live"] = result(folder / "live")["student"]["top1"]
    same = equal_bits(student(folder / "first"), student(folder / "second"))
    figures["second_run"] = "equal" if same else "DIFFERENT"
    for run in ("first", "other"):
        figures[f"verify_{run}"] = " ".join(distill(folder, "cache", "verify", run).split())[-160:]
    hold(figures, same and figures["caches_after_second"] == 1, "cached rows did not give the same student again")
    return figures


def layout(device: str, folder: Path) -> Figures:
    """trainer.channels_last=null measures once and remembers."""
    figures = Figures()
    for run in ("first", "second"):
        distill(folder, *SMOKE, f"trainer.device={device}", "trainer.channels_last=null", f"out={run}")
        known = json.loads((folder / "runs" / "cache" / "layouts.json").read_text())
        figures[run] = "; ".join(
            f"{entry['model'][0]}: {entry['layout']} "
            + " ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in entry["seconds"].items())
            for entry in known.values()
        )
    hold(figures, figures["first"] == figures["second"], "the second run measured again")
    return figures


# A share of the memory makes the GPU small: the error is that of a full one, and other checks have room.
SMALL_GPU = """
import sys, torch
from distillcli import cli
if "{device}" == "cuda":
    torch.cuda.set_per_process_memory_fraction({share})
raise SystemExit(cli.run(sys.argv[1:]))
"""


def memory(device: str, folder: Path) -> Figures:
    """A step that does not fit ends with one line that says what would, and nothing is lost."""
    if device == "cpu":
        return {"skipped": "the memory of this machine is not for filling"}
    launcher = (sys.executable, "-c", SMALL_GPU.format(device=device, share=0.02))
    large = ("dataset.image_size=224", "dataset.samples=512", "student.name=resnet18", "teacher.name=test_resnet")
    settings = (*SMOKE, *large, "teacher.fit.epochs=1", f"trainer.device={device}", "trainer.epochs=1")
    done = subprocess.run(
        [*launcher, *settings, "trainer.batch_size=512", "out=full"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    figures = Figures({"exit": done.returncode, "said": said[-1][:400] if said else done.stderr[-400:]})
    hold(figures, done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr)
    hold(figures, "trainer.accumulate=2" in said[-1], "the advice does not name trainer.accumulate")
    return figures


def launcher(device: str, folder: Path) -> Figures:
    """torchrun with one process gives what the command alone gives."""
    settings = (*SMOKE, f"trainer.device={device}")
    distill(folder, *settings, "out=alone")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--master-port=29543")
    said = distill(folder, *settings, "out=launched", launcher=torchrun)
    same = equal_bits(student(folder / "alone"), student(folder / "launched"))
    figures = Figures({"weights": "equal" if same else "DIFFERENT"})
    hold(figures, same, said[-2000:])
    return figures


def commands(device: str, folder: Path) -> Figures:
    """train with its control, eval, bench and doctor on this device."""
    where = f"trainer.device={device}"
    distill(folder, *(word for word in SMOKE if word != "baseline=false"), where, "out=run")
    found, told = result(folder / "run"), distill(folder, "eval", "checkpoint=run", where)
    settings = ("teacher.name=resnet50", "student.name=mobilenetv3_large_100", "dataset=fake", "dataset.samples=512")
    bench = distill(folder, "bench", *settings, "dataset.image_size=128", "trainer.batch_size=128", where, "--json")
    steps = json.loads(bench[bench.index("{") : bench.rindex("}") + 1])
    doctor = distill(folder, "doctor")
    lines = [line.strip() for line in doctor.splitlines() if line.strip().startswith(("cuda", "bf16"))]
    figures = Figures(
        {
            "top1": found["student"]["top1"],
            "latency_ms": found["student"]["latency_ms"],
            "latency_setting": found["student"]["latency_setting"],
            "eval_lines": len(told.splitlines()),
            "bench": {name: steps[name] for name in steps if not isinstance(steps[name], list)},
            "doctor": "; ".join(" ".join(line.split()) for line in lines),
        }
    )
    hold(figures, found["student"]["latency_ms"] is not None, str(found["student"]))
    return figures


CHECKS: dict[str, Check] = {
    "resume": resume,
    "resume_cached": resume_cached,
    "precision": precision,
    "cache": cache,
    "layout": layout,
    "memory": memory,
    "launcher": launcher,
    "commands": commands,
}

if __name__ == "__main__":
    run_one(CHECKS)

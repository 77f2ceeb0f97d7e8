"""Damage the files of small healthy runs at random, and run every command that reads them: python scripts/fuzz_files.py

A case is one copy of the runs, one damage, and one command in a process of its own. It fails by a traceback, by
taking longer than `--limit` seconds, or by ending with 0 and other numbers than those of the healthy runs. What is
edited by hand where no checksum is (an older folder) may well have other numbers, but neither traceback nor hang; a
whole checkpoint in the place of another is no damage. The cases of a seed are the same for every number of workers.
Exits with 1 when a case fails, and keeps its files.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked process must not wait for threads it does not have

import torch
import yaml
from safetensors.torch import load_file, save_file

from distillcli import cli

SMALL = ("experiment=smoke", "dataset.samples=64", "trainer.batch_size=16", "trainer.epochs=2")
SMALL += ("trainer.device=cpu", "trainer.threads=1", "trainer.channels_last=true", "trainer.keep_optimizer=true")
FITTED = ("teacher.fit.epochs=1",)
# Numbers of a result that no two runs share.
TIMED = {"latency_ms", "latency_spread_ms", "latency_setting", "latency_doubt"}
TIMED |= {"seconds", "timings", "images_per_second", "cache", "warnings", "bytes"}

Numbers = dict[str, Any]


# --- the commands --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """``reads``: what to damage. ``writes``: the result.json it leaves, else its numbers are what it prints."""

    name: str
    argv: tuple[str, ...]
    reads: tuple[str, ...]
    writes: str | None = None


COMMANDS = (
    Command("eval", ("eval", "checkpoint=run", "format=json"), ("run/*", "run/student/*", "runs/teachers/*/student/*")),
    Command("eval student", ("eval", "checkpoint=run/student", "format=json"), ("run/*", "run/student/*")),
    Command("eval best", ("eval", "checkpoint=run/checkpoints/best.pt", "format=json"), ("run/*", "run/checkpoints/*")),
    Command("resume", ("train", "resume=half"), ("half/*", "half/checkpoints/*", "runs/c*/*/*"), "half"),
    Command("train", ("train", *SMALL, *FITTED, "out=again"), ("runs/*/*/*", "runs/*/*/*/*"), "again"),
    Command(
        "train given",
        ("train", *SMALL, "out=given", "baseline=false", "teacher.checkpoint=teacher"),
        ("teacher/student/*", "runs/cache/*/*"),
        "given",
    ),
    Command("runs ls", ("runs", "ls", "--json"), ("runs/*/*/*",)),
    Command("cache ls", ("cache", "ls"), ("runs/cache/*/*",)),
    Command("cache verify", ("cache", "verify", "run"), ("run/*", "runs/cache/*/*", "runs/teachers/*/student/*")),
)


def make_runs(folder: Path) -> None:
    """A finished run with its teacher, its control and its cache; the same run when one epoch was left to train."""
    folder.mkdir()
    code = in_process(folder, ("train", *SMALL, *FITTED, "out=run"), 600)
    assert code == 0, (folder / "stderr").read_text()
    half = shutil.copytree(folder / "run", folder / "half")
    for name in ("result.json", "report.md", "curves.png"):
        (half / name).unlink()
    shutil.rmtree(half / "student")
    shutil.copy(half / "checkpoints" / "previous.pt", half / "checkpoints" / "last.pt")
    (teacher,) = (folder / "runs" / "teachers").iterdir()
    shutil.copytree(teacher, folder / "teacher")


def give_up_privileges() -> None:
    """Let the modes of files hold for the superuser as well: version 3 of the call, no capability left."""
    header, none = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[0] * 6)
    ctypes.CDLL(None).capset(header, none)


def in_process(folder: Path, argv: tuple[str, ...], limit: float) -> int | None:
    """The exit code of a command in a forked process; None when it took longer than ``limit`` seconds."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for name, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        give_up_privileges()
        code = cli.run(list(argv))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    while time.monotonic() - begun < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def numbers_of(folder: Path, command: Command) -> Numbers:
    """Everything that the command measured."""
    if command.writes is not None:
        return dict(flat(json.loads((folder / command.writes / "result.json").read_text())))
    text = (folder / "stdout").read_text()
    if "format=json" in command.argv:
        return dict(flat(json.loads(text)))
    if command.name == "runs ls":
        return dict(flat({run["run"]: run for run in json.loads(text)}))
    return {}  # what caches hold is no result


def flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers in a result by their dotted keys, without times."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in TIMED:
                yield from flat(value, f"{path}.{key}")
    elif isinstance(node, int | float):
        yield path, node


# --- the damages ---------------------------------------------------------------------------------------------------

Damage = Callable[[Path, random.Random], None]


def flip(path: Path, draws: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    for _ in range(draws.choice([1, 1, 3])):
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, draws: random.Random) -> None:
    os.truncate(path, draws.randrange(max(1, path.stat().st_size)))


def zero(path: Path, draws: random.Random) -> None:
    content = bytearray(path.read_bytes())
    begin = draws.randrange(max(1, len(content)))
    content[begin : begin + 4096] = bytes(len(content[begin : begin + 4096]))
    path.write_bytes(content)


def empty(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


def noise(path: Path, draws: random.Random) -> None:
    path.write_bytes(draws.randbytes(draws.choice([10, 1000, 100_000])))


def delete(path: Path, _: random.Random) -> None:
    path.unlink()


def a_folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path, _: random.Random) -> None:
    path.chmod(0)


def foreign_zip(path: Path, _: random.Random) -> None:
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")


def swap(path: Path, draws: random.Random) -> None:
    others = [other for other in sorted(path.parent.iterdir()) if other.is_file() and other.suffix != path.suffix]
    if others:
        other = draws.choice(others)
        ours, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(ours)


def bomb(path: Path, _: random.Random) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    path.write_text("\n".join(lines))


def deep(path: Path, draws: random.Random) -> None:
    path.write_text(draws.choice(["[", '{"a":', "- "]) * 50_000)


ANY: tuple[Damage, ...] = (flip, flip, truncate, zero, empty, noise, delete, a_folder, unreadable, foreign_zip, swap)
TEXT: tuple[Damage, ...] = (*ANY, bomb, deep)

WRONG: tuple[Any, ...] = (None, True, "x", "", "${oc.env:HOME}", -1, 0, 2.5, 10**12, -1e308, float("nan"))
WRONG += ([], [1, None, {}], {}, {"a": 1}, [[{}]], "\x1b[31m", "../../etc/passwd", "hf-hub:a/b", "local-dir:/")


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every list and mapping of ``node`` with each of its indices or keys."""
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from places(node[key])


def edit(node: Any, draws: random.Random) -> Any:
    """One value somewhere is another, or gone."""
    found = list(places(node))
    if not found or draws.random() < 0.05:
        return draws.choice(WRONG)
    inside, key = draws.choice(found)
    if draws.random() < 0.3:
        del inside[key]
    elif isinstance(inside[key], torch.Tensor) and draws.random() < 0.5:
        inside[key] = inside[key].flatten()[:1]
    else:
        inside[key] = draws.choice(WRONG)
    return node


def edit_json(path: Path, draws: random.Random) -> None:
    path.write_text(json.dumps(edit(json.loads(path.read_text()), draws)))


def edit_rows(path: Path, draws: random.Random) -> None:
    rows = edit([json.loads(line) for line in path.read_text().splitlines()], draws)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if isinstance(rows, list) else json.dumps(rows))


def edit_yaml(path: Path, draws: random.Random) -> None:
    path.write_text(yaml.safe_dump(edit(yaml.safe_load(path.read_text()), draws)))


def edit_checkpoint(path: Path, draws: random.Random) -> None:
    torch.save(edit(torch.load(path, weights_only=True), draws), path)


def edit_tensors(path: Path, draws: random.Random) -> None:
    tensors = load_file(path)
    name = draws.choice(sorted(tensors))
    tensor = tensors.pop(name)
    if draws.random() < 0.7:
        tensors[name] = draws.choice([tensor.flatten()[:1].clone(), tensor.to(torch.int8), tensor.double()])
    save_file(tensors, path)


EDITS: dict[str, Damage] = {
    ".json": edit_json,
    ".yaml": edit_yaml,
    ".jsonl": edit_rows,
    ".pt": edit_checkpoint,
    ".safetensors": edit_tensors,
}
BLIND = (edit_checkpoint, edit_rows)  # these files have no checksums


# --- cases ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    number: int
    command: Command
    path: str
    damage: str
    outcome: str  # "refused", "same numbers", "edited", or how it failed
    words: str

    @property
    def failed(self) -> bool:
        return self.outcome in ("traceback", "hang", "crash", "other numbers", "unsaid", "no line")


def sound_numbers(work: Path, command: Command) -> Numbers:
    """What the command measures where nothing is damaged."""
    folder = shutil.copytree(work / "healthy", work / f"sound-{command.name}")
    code = in_process(folder, command.argv, 600)
    assert code == 0, f"{command.name}: {(folder / 'stderr').read_text()}"
    numbers = numbers_of(folder, command)
    shutil.rmtree(folder)
    return numbers


def draw_command(seed: int, number: int) -> tuple[Command, random.Random]:
    """The command of a case, and what its damage is drawn from."""
    draws = random.Random(f"{seed}/{number}")
    return draws.choice(COMMANDS), draws


def run_case(work: Path, known: dict[Command, Numbers], seed: int, limit: float, number: int) -> Case:
    """Damage one file that the command of this case reads, in a folder of its own, and run it."""
    command, draws = draw_command(seed, number)
    folder = shutil.copytree(work / "healthy", work / f"case-{number}")
    found = [path for pattern in command.reads for path in sorted(folder.glob(pattern)) if path.is_file()]
    wanted = {".json", ".jsonl", ".yaml", ".pt", ".safetensors", ".txt", "", ".r0"}
    path = draws.choice([path for path in found if path.suffix in wanted and path.name != ".lock"])
    editable = path.suffix in EDITS and draws.random() < 0.5
    is_text = path.suffix not in (".pt", ".safetensors", ".r0")
    damage = EDITS[path.suffix] if editable else draws.choice(TEXT if is_text else ANY)
    damage(path, draws)
    name, of_old = damage.__name__, editable and draws.random() < 0.7
    if of_old:
        (path.parent / "SHA256SUMS").unlink(missing_ok=True)
        name += ", no checksums"
    code = in_process(folder, command.argv, limit)
    stderr = (folder / "stderr").read_text(errors="replace")
    outcome, words = judge(code, stderr), stderr.strip().splitlines()[-1:] or [""]
    if outcome == "":
        outcome, words[0] = compare(folder, command, known[command], stderr, of_old or damage in BLIND)
    case = Case(number, command, str(path.relative_to(folder)), name, outcome, words[0])
    if not case.failed:
        shutil.rmtree(folder)
    return case


def judge(code: int | None, stderr: str) -> str:
    """How the process ended; empty when it ended with 0 and without a traceback."""
    if code is None:
        return "hang"
    if "Traceback (most recent call last)" in stderr:
        return "traceback"
    if code == 0:
        return ""
    if code < 0:
        return "crash"
    return "refused" if code == 2 and stderr.strip().splitlines()[-1].startswith("error: ") else "no line"


def compare(folder: Path, command: Command, healthy: Numbers, stderr: str, was_edited: bool) -> tuple[str, str]:
    """What the numbers are worth, and the first that is not as it should be."""
    numbers = numbers_of(folder, command)
    different = [key for key in healthy.keys() & numbers.keys() if numbers[key] != healthy[key]]
    missing = sorted(healthy.keys() - numbers.keys())
    if different and not was_edited:
        key = min(different)
        return "other numbers", f"{key}: {healthy[key]} -> {numbers[key]}"
    if missing and "warning: " not in stderr and command.name != "runs ls":
        return "unsaid", f"{missing[0]} is missing"
    return ("edited" if different else "same numbers"), ""


def fuzz(work: Path, numbers: range, seed: int, limit: float, workers: int) -> list[Case]:
    """Run these cases side by side in ``work``, a new folder. The folders of those that fail are kept."""
    # Everything a command imports, once and for all processes.
    for module in ("commands.evaluate", "commands.train", "commands.cache", "commands.runs", "distillation.whole"):
        importlib.import_module(f"distillcli.{module}")
    make_runs(work / "healthy")
    commands, found = list(dict.fromkeys(draw_command(seed, number)[0] for number in numbers)), []
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=fork) as pool:
        known = dict(zip(commands, pool.map(partial(sound_numbers, work), commands), strict=True))
        for case in pool.map(partial(run_case, work, known, seed, limit), numbers):
            found.append(case)
            if case.failed:
                what = f"{case.command.name}, {case.path}, {case.damage}: {case.words}"
                print(f"{case.outcome}: case-{case.number}: {what}", flush=True)
    return found


def table(title: str, rows: list[tuple[str, str]]) -> str:
    """How often each first word met each second one."""
    names, outcomes = (sorted(set(column)) for column in zip(*rows, strict=True))
    counts = collections.Counter(rows)
    lines = [[title, *outcomes]]
    lines += [[name, *(str(counts[name, outcome]) for outcome in outcomes)] for name in names]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60, help="seconds of one case")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="cases side by side")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="repeat one case of the seed, counted from 0")
    options = parser.parse_args()
    numbers = range(options.cases) if options.only is None else range(options.only, options.only + 1)
    work = Path(tempfile.mkdtemp(prefix="fuzz-"))
    work.chmod(0o755)
    cases = fuzz(work, numbers, options.seed, options.limit, options.workers)
    failed = [case.number for case in cases if case.failed]
    print(table("command", [(case.command.name, case.outcome) for case in cases]), end="\n\n")
    print(table("damage", [(case.damage, case.outcome) for case in cases]), end="\n\n")
    print(f"{len(cases)} cases with seed {options.seed}, {len(failed)} failed")
    for number in failed:
        print(f"to repeat: python scripts/fuzz_files.py --seed {options.seed} --only {number}")
    if failed:
        print(f"their folders: {work}")
        raise SystemExit(1)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()

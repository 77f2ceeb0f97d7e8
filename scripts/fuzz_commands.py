"""Random command lines against the checks of the config: python scripts/fuzz_commands.py --count 500 --seed 0

Every line must end with exit code 0 or 2, and with 2 say why in one line that begins with "error: ". Nothing is
trained: what a command does after its checks is left out. Each line runs in a process and a folder of its own, so that
a crash, a hang or more memory than a check may need counts as a fault and not as the end of the script. The lines of a
seed are the same for every number of workers. Exits with 1 for a fault, or when `--seconds` are over before all lines
ran. Needs no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import shlex
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from distillcli import cli
from distillcli.commands.table import COMMANDS
from distillcli.config import search
from distillcli.config.keys import dotted_keys, element_keys
from distillcli.config.primaries import PRIMARIES
from distillcli.config.terms import KNOWN_TERMS

SECONDS = 30  # of one line, on a slow machine
MEMORY = 3 * 2**30
FORK = multiprocessing.get_context("fork")  # what is imported and left out holds for every line

NUMBERS = ["0", "1", "-1", "2", "0.5", "1e9", "1e30", "-1e30", "nan", "inf", "-inf", "1" + "0" * 400, "0x10", "1_0"]
WORDS = ["null", "true", "false", "auto", "kd", "resnet18", "digits", "folder", "photos", "~x", "~", "/", ".", "hot"]
ODD = [
    "",
    " ",
    "'",
    '"',
    "\\",
    "\x1b[31m",
    "\x07",
    "\n",
    "\t",
    "\u202e",
    "日本",
    "é",
    "a" * 300,
    "[",
    "]",
    "{",
    "}",
    "(",
]
ODD += [
    "${seed}",
    "${nowhere}",
    "${oc.env:HOME}",
    "${oc.env:NOWHERE}",
    "${",
    "$",
    "#",
    ";",
    "&",
    "*",
    "?",
    "!",
    "%s",
    "{0}",
]
SHAPES = [
    "[{0}]",
    "[{0},{1}]",
    "{{a:{0}}}",
    "{{name: {0}}}",
    "[{{name: {0}}}]",
    "{0},{1}",
    "'{0}'",
    '"{0}"',
    "int({0})",
]
SHAPES += [
    "range(0,{0})",
    "glob({0})",
    "[[[{0}]]]",
    "{{{0}:{1}}}",
    "{0}:{1}",
    "{0} {1}",
    "choice({0},{1})",
    "sort({0},{1})",
]
FLAGS = ["-m", "--multirun", "--cfg", "--cfg=job", "job", "--info", "--package", "--resolve", "--config-dir", "photos"]
FLAGS += [
    "--help",
    "--epochs",
    "10",
    "--lr=1",
    "-x",
    "--",
    "-",
    "=",
    "--config-dir=mine",
    "all",
    "hydra",
    "--json",
    "word",
]


class Grammar:
    """Command lines that are wrong in every way that a seed finds, and sometimes right."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.keys = sorted({key for primary in PRIMARIES.values() for key in dotted_keys(primary.schema)})
        self.keys += [
            f"{whole}[0].{key}" for whole, keys in element_keys(PRIMARIES["train"].schema).items() for key in keys
        ]
        self.keys += [f"distill.terms.{name}.weight" for name in sorted(KNOWN_TERMS)]
        self.keys += ["distill.terms.kl.temperature", "student.args.depth", "optimizer.args.eps", "hydra.run.dir"]
        self.keys += ["hydra.sweep.dir", "hydra/launcher", "hydra.job.chdir", "experiment", "augment@x", "_target_"]
        self.groups = {group: sorted(options) for group, options in search.groups().items()}

    def value(self) -> str:
        one, other = (self.random.choice(self.random.choice([NUMBERS, WORDS, ODD])) for _ in range(2))
        shape = self.random.choice(SHAPES)
        return self.random.choice([one, one, one + other, shape.format(one, other)])

    def override(self) -> str:
        kind = self.random.random()
        if kind < 0.2:
            group = self.random.choice(sorted(self.groups))
            option = self.random.choice([*self.groups[group], self.value()])
            return f"{group}={option}"
        key = self.random.choice(self.keys)
        if kind > 0.9:  # mistyped
            place = self.random.randrange(len(key) + 1)
            key = key[:place] + self.random.choice([*ODD, "x", ".", "..", "="]) + key[place + 1 :]
        prefix = self.random.choice(["", "", "", "", "+", "++", "~", "+++"])
        equals = self.random.choice(["=", "=", "=", "=", "=", "", " = ", "=="])
        return f"{prefix}{key}{equals}{self.value()}"

    def line(self) -> list[str]:
        other = self.random.choice(["show", "configs", "cache", "completion", "help", *ODD])
        command = self.random.choice(["train", "train", "train", "eval", "bench", other])
        words = [self.override() for _ in range(self.random.randrange(4))]
        if command == "eval":
            words.append("checkpoint=resnet18")
        for _ in range(self.random.choice([0, 0, 1, 2])):
            words.insert(self.random.randrange(len(words) + 1), self.random.choice(FLAGS))
        return [command, *(word.replace("\0", "") for word in words)]


def answer(line: list[str], folder: str, results: str) -> None:
    """Run one line and leave [code, stdout, stderr, traceback]; what the command does after its checks is left out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    trace = ""
    code: int | None = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.run(line)
        except BaseException:
            trace = traceback.format_exc()
    Path(results).write_text(json.dumps([code, out.getvalue(), err.getvalue(), trace]), "utf-8")


def leave_out_the_work() -> None:
    """The commands that train, measure or draw: their checks have been made when ``run`` is called."""
    for name in ("train", "eval"):
        sys.modules[COMMANDS[name].module] = SimpleNamespace(run=lambda config, job: None)  # type: ignore[assignment]
    from distillcli.config.unread import compose_for_user
    from distillcli.launch.arguments import parse_arguments

    def check_only(arguments: list[str]) -> None:
        parsed = parse_arguments([word for word in arguments if word != "--json"])
        search.use(parsed.config_folders)
        compose_for_user("train", parsed.overrides)

    sys.modules[COMMANDS["bench"].module] = SimpleNamespace(run=check_only)  # type: ignore[assignment]


@dataclass(frozen=True)
class Answer:
    line: list[str]
    outcome: str  # "accepted", "refused", "not run", or the kind of fault
    words: str = ""

    @property
    def is_fault(self) -> bool:
        return self.outcome not in ("accepted", "refused", "not run")


def ask(deadline: float, line: list[str]) -> Answer:
    """Run a line in a new process and folder, and judge what it says."""
    if time.monotonic() > deadline:
        return Answer(line, "not run")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        results, work = Path(folder, "answer.json"), Path(folder, "work")
        (work / "photos" / "ant").mkdir(parents=True)
        process = FORK.Process(target=answer, args=(line, str(work), str(results)))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            return Answer(line, "hang", f"over {SECONDS} s")
        if not results.exists():
            return Answer(line, "crash", f"exit code {process.exitcode}")
        return Answer(line, *judge(*json.loads(results.read_text("utf-8"))))


def judge(code: int | None, out: str, err: str, trace: str) -> tuple[str, str]:
    """The outcome of a line that came to an end, and what is wrong with it."""
    if trace or "Traceback" in err:
        return "traceback", (trace or err).strip().splitlines()[-1]
    sweeps = "sweep of" in out  # whose jobs leave no results here
    if code not in (0, 2) and not (sweeps and code == 1):
        return "exit code", f"{code}: {err[-200:]!r}"
    if code == 2 and (err.count("\n") != 1 or not err.startswith("error: ")):
        return "not one line", repr(err[:300])
    if any(ord(char) < 32 and char not in "\n\t" for char in out + err):
        return "control characters", repr((out + err)[:200])
    return ("refused" if code == 2 else "accepted"), ""


def fuzz(lines: list[list[str]], workers: int, seconds: float) -> list[Answer]:
    """The answers to ``lines``, asked side by side; faults print as they are found."""
    leave_out_the_work()
    answers = []
    with ProcessPoolExecutor(workers, mp_context=FORK) as pool:
        for found in pool.map(partial(ask, time.monotonic() + seconds), lines):
            answers.append(found)
            if found.is_fault:
                print(f"distill {shlex.join(found.line)!r}\n  {found.outcome}: {found.words}", flush=True)
    return answers


def table(answers: list[Answer]) -> str:
    """Commands by outcomes; what names no command is "other"."""
    rows = [(answer.line[0] if answer.line[0] in COMMANDS else "other", answer.outcome) for answer in answers]
    outcomes, counts = sorted({outcome for _, outcome in rows}), Counter(rows)
    lines = [["command", *outcomes]]
    lines += [
        [name, *(str(counts[name, outcome]) for outcome in outcomes)] for name in sorted({name for name, _ in rows})
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=900, help="of all lines; those left are not run")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="lines side by side")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="repeat one line of the seed, counted from 0")
    options = parser.parse_args()
    grammar = Grammar(options.seed)
    first, last = (0, options.count) if options.only is None else (options.only, options.only + 1)
    lines = [grammar.line() for _ in range(last)][first:]
    answers = fuzz(lines, options.workers, options.seconds)
    ran = sum(answer.outcome != "not run" for answer in answers)
    faults = [number for number, answer in enumerate(answers, first) if answer.is_fault]
    print(f"{table(answers)}\n{ran} of {len(lines)} lines with seed {options.seed} ran, {len(faults)} faults")
    for number in faults:
        print(f"to repeat: python scripts/fuzz_commands.py --seed {options.seed} --only {number}")
    if ran < len(lines):
        print(f"{options.seconds:g} s were over before all lines ran: give more --seconds or --workers")
    raise SystemExit(bool(faults) or ran < len(lines))


if __name__ == "__main__":
    main()

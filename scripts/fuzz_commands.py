"""Random command lines against the checks of the config: python scripts/fuzz_commands.py --count 500 --seed 0

Every line must end with exit code 0 or 2, and with 2 say why in one line that begins with "error: ". Nothing is
trained: what a command does after its checks is left out. Each line runs in a process of its own, so that a crash, a
hang or more memory than a check may need counts as a fault and not as the end of the script. Needs no torch.
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


def fault(line: list[str], folder: Path) -> str | None:
    """What is wrong with the answer to a line, or None."""
    results = folder / "answer.json"
    results.unlink(missing_ok=True)
    work = folder / "work"
    (work / "photos" / "ant").mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=answer, args=(line, str(work), str(results)))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return f"hangs for {SECONDS} s"
    if not results.exists():
        return f"dies with exit code {process.exitcode}"
    code, out, err, trace = json.loads(results.read_text("utf-8"))
    if trace or "Traceback" in err:
        return "traceback: " + (trace or err).strip().splitlines()[-1]
    sweeps = "sweep of" in out  # whose jobs leave no results here
    if code not in (0, 2) and not (sweeps and code == 1):
        return f"exit code {code}: {err[-200:]!r}"
    if code == 2 and (err.count("\n") != 1 or not err.startswith("error: ")):
        return f"{err.count(chr(10))} lines: {err[:300]!r}"
    if any(ord(char) < 32 and char not in "\n\t" for char in out + err):
        return f"control characters reach the terminal: {(out + err)[:200]!r}"
    return None


def fuzz(count: int, seed: int, seconds: float) -> list[tuple[list[str], str]]:
    """Faults of ``count`` random lines, or of as many as there is time for; they print as they are found."""
    leave_out_the_work()
    grammar, found, started = Grammar(seed), [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            if time.monotonic() - started > seconds:
                print(f"stopped after {number} lines: {seconds:g} s are over")
                break
            line = grammar.line()
            wrong = fault(line, Path(folder))
            if wrong is not None:
                found.append((line, wrong))
                print(f"distill {shlex.join(line)!r}\n  {wrong}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=900)
    options = parser.parse_args()
    found = fuzz(options.count, options.seed, options.seconds)
    kinds = Counter(wrong.split(":")[0] for _, wrong in found)
    print(f"{len(found)} faults in at most {options.count} lines with seed {options.seed}", dict(kinds) or "")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()

"""Commands in processes of their own that start within a moment: forked from one that has imported torch and timm.

A new Python spends six seconds on these imports. The server that is forked has only imported: it never trained, has no
threads and none of the state of a test. The standard library starts it with the first command and ends it with the
tests.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import sys
import termios
from multiprocessing.context import ForkServerProcess
from pathlib import Path

FORKING = multiprocessing.get_context("forkserver")
# What `distill train` imports, to the last module.
FORKING.set_forkserver_preload(["timm", "distillcli.commands.train", "distillcli.distillation.whole", "forked"])


def begin(*arguments: str, cwd: Path, stdout: str = os.devnull, stderr: str = os.devnull) -> ForkServerProcess:
    """``distill ARGUMENTS`` in ``cwd``, with this environment, its output in files: ``pid``, ``join``, ``exitcode``."""
    process = FORKING.Process(target=_command, args=(arguments, str(cwd), {**os.environ}, stdout, stderr))
    process.start()
    return process


def begin_on_terminal(*arguments: str, cwd: Path, terminal: str) -> ForkServerProcess:
    """The same as the leader of a session of its own, whose terminal is the device ``terminal``."""
    process = FORKING.Process(target=_on_terminal, args=(arguments, str(cwd), {**os.environ}, terminal))
    process.start()
    return process


def _on_terminal(arguments: tuple[str, ...], cwd: str, environment: dict[str, str], terminal: str) -> None:
    os.setsid()
    opened = os.open(terminal, os.O_RDWR)
    fcntl.ioctl(opened, termios.TIOCSCTTY, 0)
    os.dup2(opened, 0)
    _command(arguments, cwd, environment, terminal, terminal)


def _command(arguments: tuple[str, ...], cwd: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    from distillcli.cli import main

    main(list(arguments))

"""``distill``: from argv to a command to an exit code. Nothing heavy is imported before the command is known."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import NoReturn

from distillcli import __version__
from distillcli.commands.table import COMMANDS
from distillcli.errors import FULL, Interrupted, NumericError, UserError, did_you_mean
from distillcli.report.format import clean
from distillcli.signals import leaving_at_once

# What is wrong with the place of a file, whatever wanted to read or write it.
IN_THE_WAY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)

FLAGS_HELP = """flags:
  -m, --multirun      sweep: every combination of comma-separated values
  --cfg job           show the config instead of running
  --package KEY       with --cfg: only this part of it, e.g. --package trainer
  --resolve           with --cfg: with interpolations resolved
  --config-dir DIR    your own configs, DIR/GROUP/NAME.yaml; they take precedence (also $DISTILL_CONFIG_DIR)
  --info              how the config was composed"""


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    raise SystemExit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Run one command. 0: success, 1: a bug or a failed sweep, 2: a user error, 129, 130 and 143: interrupted."""
    try:
        with leaving_at_once():
            _dispatch(argv)
        sys.stdout.flush()
    except UserError as error:
        return _fail(error, 2)
    except NumericError as error:
        return _fail(error, 1)
    except Interrupted as stop:
        if str(stop):  # one process speaks for all that torchrun has started
            print(clean(stop), file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader is gone (| head). Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno in IN_THE_WAY and error.filename is not None:
            path = error.filename2 or error.filename
            return _fail(f"{path}: {error.strerror}; give access to it, or move what is in its place", 2)
        if error.errno not in FULL:
            return _bug()
        where = error.filename or "stdout"
        return _fail(f"{where}: the disk is full; free some space and continue with resume=RUN", 2)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Exception:
        return _bug()
    return 0


def _bug() -> int:
    import traceback

    traceback.print_exc()
    return 1


def _fail(error: Exception | str, code: int) -> int:
    rank = os.environ.get("RANK", "0")  # torchrun shows the output of all its processes
    line = " ".join(clean(error).split())
    print("error:" if rank == "0" else f"error: rank {rank}:", line, file=sys.stderr)
    return code


def _dispatch(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return
    name, *arguments = argv
    if name in ("-V", "--version"):
        print(f"distill {__version__}")
        return
    if name == "complete":  # what the completion scripts call
        from distillcli.commands.completion import complete

        complete(arguments)
        return
    if name not in COMMANDS:
        what = "flag" if name.startswith("-") else "command"
        raise UserError(f"unknown {what} {name!r}{did_you_mean(name, COMMANDS) or '; see distill --help'}")
    command = COMMANDS[name]
    if "-h" in arguments or "--help" in arguments:
        print(command_help(name))
    elif command.primary is None:
        importlib.import_module(command.module).run(arguments)
    else:
        from distillcli.launch.launch import launch

        module = command.module  # imported inside the job: that is where torch comes in
        launch(command.primary, arguments, lambda config, job: importlib.import_module(module).run(config, job))


def help_text() -> str:
    examples = (
        "distill train                                         a first distillation on the built-in digits",
        "distill train experiment=resnet50_to_mobilenet        a ready-made experiment (distill show experiments)",
        "distill train -m distill.temperature=1,2,4,8          a sweep",
        "distill eval checkpoint=runs/distill/latest           measure the result",
    )
    width = max(map(len, COMMANDS))
    lines = ["Knowledge distillation of image classifiers.", "", "examples:"]
    lines += [f"  {example}" for example in examples]
    lines += ["", "commands:"]
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "distill COMMAND --help for more; distill --version."]
    return "\n".join(lines)


def command_help(name: str) -> str:
    command = COMMANDS[name]
    lines = [f"distill {name}: {command.summary}", "", "examples:"]
    lines += [f"  {example}" for example in command.examples]
    lines += ["", f"usage: distill {name} {command.usage}".rstrip()]
    if command.primary is not None:
        lines += ["", FLAGS_HELP, "", f"All keys: distill show keys; with their values: distill {name} --cfg job"]
    return "\n".join(lines)

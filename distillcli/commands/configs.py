"""``distill configs``: list the shipped configs, copy one for editing, or print the schema of all keys."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from distillcli.config import search
from distillcli.config.home import expand_home
from distillcli.config.json_schema import json_schema
from distillcli.config.primaries import PRIMARIES
from distillcli.errors import UserError, did_you_mean

USAGE = (
    "usage: distill configs ls, distill configs cp NAME DIR (e.g. distill configs cp distill/kd my_configs), "
    "or distill configs schema [COMMAND]"
)


def run(arguments: list[str]) -> None:
    search.use([])
    match arguments:
        case ["ls"]:
            _list()
        case ["cp", name, folder]:
            _copy(name, Path(expand_home("DIR", folder)))
        case ["schema"]:
            _print_schema("train")
        case ["schema", command]:
            _print_schema(command)
        case _:
            raise UserError(USAGE)


def _list() -> None:
    for group, options in sorted(search.groups().items()):
        for option in options:
            print(f"{group}/{option}")


def _print_schema(command: str) -> None:
    if command not in PRIMARIES:
        hint = did_you_mean(command, PRIMARIES) or f"; these have: {', '.join(PRIMARIES)}"
        raise UserError(f"{command!r} has no config{hint}")
    print(json.dumps(json_schema(command), ensure_ascii=False, indent=2))


def _copy(name: str, folder: Path) -> None:
    name = name.removesuffix(".yaml")
    files = {
        f"{group}/{option}": file for group, options in search.groups().items() for option, file in options.items()
    }
    if name not in files:
        # "kd" alone is near "distill/kd".
        ends = [full for full in files if full.rsplit("/", 1)[-1] == name]
        hint = f"; did you mean {' or '.join(ends)}?" if ends else did_you_mean(name, files)
        raise UserError(f"no config named {name!r}{hint or '; see distill configs ls'}")
    target = folder / f"{name}.yaml"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:  # x: an edited copy is never overwritten
            file.write(files[name].read_text("utf-8"))
    except FileExistsError as error:
        raise UserError(f"{target} already exists and is not overwritten; edit it, or choose another folder") from error
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
    group, _, option = name.partition("/")
    print(f"copied to {target}")
    print(f"edit it, then: distill train {group}={option} --config-dir {shlex.quote(str(folder))}")

"""Configs run no code. Hydra would run callbacks and logging handlers named in its own node before our function.

So the composed ``hydra`` node is compared with the few things that may be set in it before ``hydra.main`` sees it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from distillcli.errors import UserError

_PLUGINS = frozenset(
    (
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    )
)
_SILENT = {"version": 1, "root": None, "disable_existing_loggers": False}
# What must keep the value that distill gives it; the rest of the node is launcher, sweeper, folders and texts.
_FIXED: dict[str, Any] = {
    "callbacks": {},
    "job_logging": _SILENT,
    "hydra_logging": _SILENT,
    "searchpath": [],
    "env": {},
    "output_subdir": None,
    "mode": None,
    "verbose": False,
}
_FIXED_JOB: dict[str, Any] = {"chdir": (None, False), "env_set": ({},), "env_copy": ([],)}
# Submitit's own ways of running shell commands and another Python.
_COMMANDS = ("setup", "teardown", "python", "srun_args")
# Folders that Hydra and its launchers would create wherever they are told to. (node, key): what distill gives.
_FOLDERS: dict[tuple[str, str], Any] = {
    ("run", "dir"): ".",
    ("sweep", "dir"): "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}",
    ("sweep", "subdir"): "${hydra.job.num}",
    ("launcher", "submitit_folder"): "${hydra.sweep.dir}/.submitit/%j",
    ("launcher", "temp_folder"): None,
}
_SECRET = re.compile(r"token|secret|password|api_?key", re.IGNORECASE)
_ALLOWED = ("hydra.launcher.", "hydra.sweeper.", "hydra.sweep.dir", "hydra.sweep.subdir")
_ALLOWED_GROUPS = ("hydra/launcher", "hydra/sweeper")


def check_override(key: str) -> None:
    """Raise UserError for an override that could run code or that changes Hydra's internal settings."""
    if "_target_" in key.split("."):
        raise UserError(f"{key}: _target_ is not used here; parts are chosen by name, and configs run no code")
    of_hydra = key.split(".")[0].split("/")[0].split("@")[0] == "hydra"
    if of_hydra and key not in _ALLOWED_GROUPS and not key.startswith(_ALLOWED):
        raise UserError(f"{key}: only launcher and sweeper of hydra.* may be set; out=FOLDER names the run folder")


def check_secret(key: str) -> None:
    """Raise UserError, without the value, for a key that seems to hold what must not be saved."""
    if _SECRET.search(key):
        raise UserError(
            f"{key}: secrets do not belong in configs, which are saved; use the environment variable HF_TOKEN"
        )


def check_hydra(node: dict[str, Any]) -> None:
    """Raise UserError if a config sets anything in the ``hydra`` node that could run code or change the environment."""
    for key, value in _FIXED.items():
        if node[key] != value:
            raise UserError(
                f"hydra.{key}: a config sets it to {node[key]!r}, which is not allowed: configs run no code"
            )
    for key, allowed in _FIXED_JOB.items():
        if node["job"][key] not in allowed:
            raise UserError(f"hydra.job.{key}: a config sets it to {node['job'][key]!r}, which is not allowed")
    for (part, key), own in _FOLDERS.items():
        if key in node[part] and node[part][key] != own:
            raise UserError(
                f"hydra.{part}.{key}: a config sets it to {node[part][key]!r}, but only out=FOLDER on the command line "
                "says where to write"
            )
    for path, value in _leaves(node, "hydra"):
        if path.endswith("._target_") and value not in _PLUGINS:
            raise UserError(f"{path}: {value!r} is not a launcher or sweeper that distill knows; configs run no code")
    for key in _COMMANDS:
        if node["launcher"].get(key):
            raise UserError(f"hydra.launcher.{key}: a config may not name commands to run; set it to null")


def check_content(config: dict[str, Any]) -> None:
    """Raise UserError for any ``_target_`` in the config itself, and for text under a key that names a secret."""
    for path, value in _leaves(config, ""):
        if path.split(".")[-1] == "_target_":
            raise UserError(f"{path}: {value!r} is refused; parts are chosen by name, and configs run no code")
        if isinstance(value, str):
            check_secret(path)


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping or list, under its dotted path; mappings named ``_target_`` as well."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        inner = f"{path}.{key}" if path else str(key)
        if key == "_target_" or not isinstance(value, (dict, list)):
            yield inner, value
        else:
            yield from _leaves(value, inner)

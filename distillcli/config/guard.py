"""Configs run no code. Hydra would run callbacks and logging handlers named in its own node before our function.

So the composed ``hydra`` node is compared with the few things that may be set in it before ``hydra.main`` sees it.
"""

from __future__ import annotations

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
_ALLOWED = ("hydra.launcher.", "hydra.sweeper.", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
_ALLOWED_GROUPS = ("hydra/launcher", "hydra/sweeper")


def check_override(key: str) -> None:
    """Raise UserError for an override that could run code or that changes Hydra's internal settings."""
    if "_target_" in key.split("."):
        raise UserError(f"{key}: _target_ is not used here; parts are chosen by name, and configs run no code")
    of_hydra = key.split(".")[0].split("/")[0].split("@")[0] == "hydra"
    if of_hydra and key not in _ALLOWED_GROUPS and not key.startswith(_ALLOWED):
        raise UserError(f"{key}: only launcher, sweeper, run.dir and sweep.dir of hydra.* may be set")


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
    for path, value in _targets(node, "hydra"):
        if value not in _PLUGINS:
            raise UserError(f"{path}: {value!r} is not a launcher or sweeper that distill knows; configs run no code")
    for key in _COMMANDS:
        if node["launcher"].get(key):
            raise UserError(f"hydra.launcher.{key}: a config may not name commands to run; set it to null")


def check_targets(config: dict[str, Any]) -> None:
    """Raise UserError for any ``_target_`` in the config itself."""
    for path, value in _targets(config, ""):
        raise UserError(f"{path}: {value!r} is refused; parts are chosen by name, and configs run no code")


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        inner = f"{path}.{key}" if path else str(key)
        if key == "_target_":
            yield inner, value
        else:
            yield from _targets(value, inner)

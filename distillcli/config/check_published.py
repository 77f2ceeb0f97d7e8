"""Published weights that cannot be had.

Every refusal is a UserError of one line: key, value, fix.
"""

from __future__ import annotations

import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.config.terms import needs_teacher
from distillcli.errors import UserError


def check_published_weights(config: TrainConfig) -> None:
    """Refuse ``pretrained=true`` where no weights were ever fetched and the hub cannot be reached.

    Only this plain case is decided here, in a moment and without torch; whether the cache holds the weights of one
    model is found out when they are loaded.
    """
    wanted = [(key, model) for key, model in _models(config) if model.pretrained and _is_published(model)]
    cache = hub_cache()
    if not wanted or _holds_something(cache) or _holds_something(_torch_cache()) or _hub_is_reachable():
        return
    key, model = wanted[0]
    raise UserError(
        f"{key}.pretrained=true: no weights for {model.name}, as nothing is in {cache} and the hub cannot be reached; "
        f"run once with network access, or use {key}.checkpoint=PATH"
    )


def _models(config: TrainConfig) -> Iterator[tuple[str, ModelConfig]]:
    yield "student", config.student
    yield from ((f"peers[{number}]", peer) for number, peer in enumerate(config.peers))
    if config.peers or config.teacher.mean or not needs_teacher(config.distill):
        return
    if not config.teacher.members:
        yield "teacher", config.teacher
    yield from ((f"teacher.members[{number}]", member) for number, member in enumerate(config.teacher.members))
    yield from ((f"teacher.assistants[{number}]", model) for number, model in enumerate(config.teacher.assistants))


def _is_published(model: ModelConfig) -> bool:
    """Whether timm's own entry says where the weights are: no folder, and no other file in the arguments."""
    return ":" not in model.name and not any(name.startswith("pretrained_cfg") for name in model.args)


def hub_cache() -> Path:
    """Where published weights are kept."""
    return _expanded(os.environ.get("HF_HUB_CACHE") or f"{os.environ.get('HF_HOME', '~/.cache/huggingface')}/hub")


def _torch_cache() -> Path:
    return _expanded(os.environ.get("TORCH_HOME", "~/.cache/torch")) / "hub" / "checkpoints"


def _expanded(path: str) -> Path:
    """As the libraries do it: where there is no home folder, ``~`` is a name like any other."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def _hub_is_reachable() -> bool:
    """True also where a proxy would have to be asked."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    if urllib.request.getproxies():
        return True
    host = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return False
    return True

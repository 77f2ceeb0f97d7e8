"""Weights from every form people keep them in."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from safetensors.torch import load_file
from timm.models import get_model_args
from torch import Tensor

from distillcli.config.ranges import nearest_path
from distillcli.config.schema import ModelConfig
from distillcli.errors import UserError
from distillcli.models.backbone import LOCAL_PREFIX
from distillcli.models.card import Card, arguments, card_of, read_card
from distillcli.models.file_kinds import HEAD, blocked_entry, is_old_torch, is_safetensors, refuse_other_kinds
from distillcli.models.foreign import State, parts_of
from distillcli.runs.reading import check_archive, check_unchanged, reading
from distillcli.runs.result import read_result

HUB_PREFIX = "hf-hub:"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A state dict and what its file says about it; files of other tools say little, hence the Nones.

    ``classes``: () for a model without a head, None where they have no names; ``class_count``: how many there are,
    where the file says so. ``image_size``, ``channels``: of the images the model was trained on. ``parts``: of a file
    of another tool, every mapping of tensors in it, as it stands; ``matching.for_model`` finds the model's own among
    them. ``place``: where that was, empty for names that are used as they are.
    """

    state: dict[str, Tensor]
    origin: str
    architecture: str | None = None
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    class_count: int | None = None
    image_size: int | None = None
    channels: int | None = None
    parts: dict[str, State] = dataclasses.field(default_factory=dict)
    place: str = ""

    @property
    def model(self) -> ModelConfig:
        """The config that builds this model. Raises UserError for a bare state dict, which does not name one."""
        if self.architecture is None:
            raise UserError(f"{self.origin}: holds weights without the name of their model; name it with model=NAME")
        return ModelConfig(name=self.architecture, args=self.args, image_size=self.image_size)


def read_weights(what: str) -> Weights:
    """Weights from a run folder, an exported folder, a checkpoint file, ``local-dir:PATH`` or ``hf-hub:USER/MODEL``.

    Raises UserError saying what is wrong with the file; nothing in it is executed.
    """
    if what.startswith(HUB_PREFIX):
        return _from_net(timm.create_model(what, pretrained=True), what)
    path = Path(what.removeprefix(LOCAL_PREFIX)).expanduser()
    if not path.exists():
        raise UserError(f"{what}: does not exist{nearest_path(path)}")
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".safetensors" and (path.parent / "config.json").is_file():
        return _from_exported(path.parent)
    check_file(path)
    if _begins(path, is_safetensors):
        return _foreign(load_file(path), path)
    content = load_tensors(path)
    if content.get("format") == "distillcli":
        with reading(path):
            _check_place(path, content)
            return _described(_trained(content), str(path), card_of(content))
    return _foreign(content, path)


def _foreign(content: dict[str, Any], path: Path) -> Weights:
    """What another tool has saved; timm's own training checkpoints name their model."""
    parts = parts_of(content)
    if not parts:
        raise UserError(f"{path}: holds no tensors under names; save model.state_dict() with torch.save")
    named = content.get("arch")
    architecture = named if isinstance(named, str) and timm.is_model(named) else None
    return Weights(max(parts.values(), key=len), str(path), architecture, parts=parts)


def _from_folder(folder: Path) -> Weights:
    if (folder / "config.json").is_file():
        return _from_exported(folder)
    if (folder / "student" / "config.json").is_file():
        return _from_exported(folder / "student")
    for name in ("last.pt", "previous.pt"):
        if (folder / "checkpoints" / name).is_file():
            return read_weights(str(folder / "checkpoints" / name))
    raise UserError(f"{folder}: neither a run folder with weights nor an exported model (config.json)")


def _from_exported(folder: Path) -> Weights:
    card, path = read_card(folder), folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{folder}: model.safetensors is missing beside config.json; export the model again")
    check_file(path)
    return _described(load_file(path), str(folder), card)


def _described(state: dict[str, Tensor], origin: str, card: Card) -> Weights:
    return Weights(
        state, origin, card.architecture, card.args, card.classes, card.class_count, card.image_size, card.channels
    )


def _trained(content: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in one of our checkpoints that are evaluated and exported. Raises TypeError when they are none."""
    state = content["student"] if content["ema"] is None else content["ema"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError("it holds no weights")
    return state


def _check_place(path: Path, content: dict[str, Any]) -> None:
    """Raise UserError for a checkpoint that is not the one of this name of the finished run in whose folder it lies.

    No checksum tells whole checkpoints apart: each is sound by itself.
    """
    result = read_result(path.parent.parent) if path.parent.name == "checkpoints" else None
    if result is None or result.fingerprints is None or "recipe" not in content:
        return
    if content["recipe"] != result.fingerprints.recipe:
        raise UserError(
            f"{path}: a checkpoint of another run, of the recipe {content['recipe']} where result.json says "
            f"{result.fingerprints.recipe}; put the run's own back, or evaluate this one outside its folder"
        )
    numbers = {"best.pt": result.best, "last.pt": result.last}.get(path.name)
    epoch = content["epoch"] if "epoch" in content else content["last"].get("epoch")
    if numbers is not None and numbers.epoch is not None and epoch != numbers.epoch:
        raise UserError(f"{path}: of epoch {epoch}, where result.json says {numbers.epoch}; put the run's own back")


def _from_net(net: Any, origin: str) -> Weights:
    settings = net.pretrained_cfg
    names = settings.get("label_names")
    return Weights(
        state=net.state_dict(),
        origin=origin,
        architecture=settings["architecture"],
        args=arguments(get_model_args(net), settings),
        classes=tuple(names) if names else None,
        class_count=net.num_classes,
        image_size=settings["input_size"][1],
        channels=settings["input_size"][0],
    )


def check_file(path: Path) -> None:
    """Look at a weights file before any value of it is used. Raises UserError: empty, truncated, damaged, not weights.

    Neither torch.load nor safetensors compares checksums, so a flipped byte would load as a wrong number.
    """
    with reading(path), path.open("rb") as handle:
        size, head = path.stat().st_size, handle.read(HEAD)
    if size == 0:
        raise UserError(f"{path}: the file is empty; copy or download it again")
    with reading(path):
        refuse_other_kinds(path, head)
    if is_safetensors(head):
        try:
            with safetensors.safe_open(path, framework="pt") as opened:
                opened.keys()
        except safetensors.SafetensorError as error:
            raise UserError(f"{path}: damaged or truncated at {size} bytes ({error}); copy it again") from error
        check_unchanged(path)
        return
    if is_old_torch(head):
        return  # without checksums; reading it shows whether it is whole
    with reading(path):
        zipped = zipfile.is_zipfile(path)
    if not zipped:
        raise UserError(
            f"{path}: truncated at {size} bytes, or not a torch checkpoint (it starts with {head[:8]!r}); copy it again"
        )
    check_archive(path)


def _begins(path: Path, how: Callable[[bytes], bool]) -> bool:
    with path.open("rb") as handle:
        return how(handle.read(HEAD))


def load_tensors(path: Path) -> dict[str, Any]:
    """The content of a checkpoint on the CPU: tensors and plain Python values only, nothing is executed.

    Raises UserError if the file asks for more, or holds something else than a mapping.
    """
    try:
        # timm's training checkpoints hold their command line as this one plain class.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # other protocols of pickle are read all the same
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {_why_not_loaded(path, str(error))}") from error
    except (RuntimeError, EOFError, LookupError, ValueError, struct.error) as error:
        raise UserError(f"{path}: truncated or damaged ({type(error).__name__}); copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict; save model.state_dict() instead")
    return content


def _why_not_loaded(path: Path, reason: str) -> str:
    """torch's own text advises to allow the object, or everything; here it is named, with the entry that holds it."""
    blocked = re.search(r"GLOBAL (\S+)", reason)
    if "Unsupported operand" in reason:
        return "written by a pickle protocol that is not torch's own; save it again without pickle_protocol"
    if blocked is None:
        return "truncated or damaged, its pickle cannot be read; copy it again"
    name = blocked[1]
    entry = blocked_entry(path, name)
    if entry is None:
        return (
            f"a whole pickled object ({name}), which is not loaded for safety, as that could run code; save "
            "model.state_dict() with torch.save where it was made"
        )
    if name.startswith("numpy."):
        return (
            f"its entry {entry!r} is a NumPy value ({name}), which is not loaded for safety; save it again where it "
            "was made, with float() or .tolist() around that value, or model.state_dict() alone"
        )
    return (
        f"its entry {entry!r} is a Python object ({name}), which is not loaded for safety, as that could run code; "
        "save model.state_dict() alone where it was made"
    )


def weights_fingerprint(state: dict[str, Tensor]) -> str:
    """Names the values of a state dict."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""Weights from every form people keep them in."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict, get_model_args, load_state_dict
from torch import Tensor

from distillcli import reused_head
from distillcli.config.ranges import nearest_path
from distillcli.config.schema import ModelConfig
from distillcli.errors import UserError
from distillcli.models.backbone import LOCAL_PREFIX, Backbone, key_of
from distillcli.models.card import Card, arguments, card_of, read_card
from distillcli.models.class_names import columns
from distillcli.runs.reading import check_archive, check_unchanged, reading

HUB_PREFIX = "hf-hub:"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A state dict and what its file says about it; files of other tools say little, hence the Nones.

    ``classes``: () for a model without a head, None where they have no names; ``class_count``: how many there are,
    where the file says so. ``image_size``, ``channels``: of the images the model was trained on.
    """

    state: dict[str, Tensor]
    origin: str
    architecture: str | None = None
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    class_count: int | None = None
    image_size: int | None = None
    channels: int = 3

    @property
    def model(self) -> ModelConfig:
        """The config that builds this model. Raises UserError for a bare state dict, which does not name one."""
        if self.architecture is None:
            raise UserError(
                f"{self.origin}: holds weights without the name of their model; use a run folder or an exported "
                "student/ folder"
            )
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
    if path.suffix == ".safetensors":
        return Weights(clean_state_dict(load_file(path)), str(path))
    content = load_tensors(path)
    if content.get("format") == "distillcli":
        with reading(path):
            return _described(_trained(content), str(path), card_of(content))
    return Weights(load_state_dict(path, use_ema=True, device="cpu", weights_only=True), str(path))


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
        size, head = path.stat().st_size, handle.read(64)
    if size == 0:
        raise UserError(f"{path}: the file is empty; copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a Git LFS pointer, not the weights themselves; run git lfs pull")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: a web page, not weights; download the file itself")
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as opened:
                opened.keys()
        except safetensors.SafetensorError as error:
            raise UserError(f"{path}: damaged or truncated at {size} bytes ({error}); copy it again") from error
        check_unchanged(path)
        return
    with reading(path):
        zipped = zipfile.is_zipfile(path)
    if not zipped:
        raise UserError(
            f"{path}: truncated at {size} bytes, or not a torch checkpoint (it starts with {head[:8]!r}); copy it again"
        )
    check_archive(path)


def load_tensors(path: Path) -> dict[str, Any]:
    """The content of a checkpoint on the CPU: tensors and plain Python values only, nothing is executed.

    Raises UserError if the file asks for more, or holds something else than a mapping.
    """
    try:
        # timm's training checkpoints hold their command line as this one plain class.
        with reading(path), torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0]
        raise UserError(
            f"{path}: holds Python objects, which are not loaded for safety ({reason}); convert it to .safetensors "
            "where it was made"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict; save model.state_dict() instead")
    return content


def load_into(backbone: Backbone, weights: Weights, key: str, new_head: bool = False) -> None:
    """Copy ``weights`` into the backbone; with ``new_head`` its classifier, if any, keeps its fresh initialisation.

    Raises UserError as ``matched`` does: never a random layer in silence.
    """
    backbone.net.load_state_dict(matched(backbone, weights, key, new_head))


def matched(backbone: Backbone, weights: Weights, key: str, new_head: bool = False) -> dict[str, Tensor]:
    """The state dict that ``load_into`` copies. Raises UserError when names or shapes differ, naming the first ones.

    ``key``: where the config names the model, as in ``backbone.key_of``; for messages.
    """
    state = weights.state
    own = backbone.net.state_dict()
    if new_head:
        state = {name: value for name, value in state.items() if not name.startswith(backbone.classifier)}
        state |= {name: value for name, value in own.items() if name.startswith(backbone.classifier)}
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [name for name, value in state.items() if name in own and own[name].shape != value.shape]
    if not wrong:
        return state
    given, named = f"{key_of(key, 'checkpoint')}={weights.origin}", backbone.spec.name
    if weights.architecture == reused_head.NAME and key:
        raise UserError(
            f"{given}: a student that ends in its teacher's head, which {key}.name={named} does not; use "
            f"{key}.name=local-dir:RUN/student {key}.pretrained=true"
        )
    holds = f" (it names {weights.architecture})" if weights.architecture else ""
    size = f" of {weights.image_size}" if weights.image_size else ""
    fixes = [f"{key}.name to the model of the checkpoint", f"{key}.image_size to its size{size}"] if key else []
    raise UserError(
        f"{given}{holds}: does not fit {f'{key}.name=' if key else ''}{named}: {len(wrong)} of {len(own)} tensors "
        f"differ, first {wrong[0]}; set {', '.join([*fixes, 'dataset.channels to its channels'])}"
    )


def knows_classes(weights: Weights, backbone: Backbone, classes: tuple[str, ...], key: str) -> bool:
    """Whether the classifier in ``weights`` is one for ``classes``; without names, their number must do.

    ``key``: where the config names the model. Raises UserError if the names are the same in another order: every
    prediction would be scrambled.
    """
    if weights.classes is None:
        return _width(weights, backbone) == len(classes)
    if weights.classes != classes and sorted(weights.classes) == sorted(classes):
        raise UserError(
            f"{key_of(key, 'checkpoint')}={weights.origin}: its classes are those of the data in another order, so its "
            "predictions would be scrambled; use the dataset it was trained on, or train it again"
        )
    return weights.classes == classes


def select_classes(weights: Weights, backbone: Backbone, wanted: tuple[str, ...], key: str) -> Weights:
    """The weights with only the classifier's rows for ``wanted``, in that order.

    The softmax of such a classifier is that of the whole one given that one of ``wanted`` is shown. Weights without
    names must have as many classes as are wanted. Raises UserError, which begins with ``key``, for the first class
    that is missing.
    """
    if weights.classes is None and _width(weights, backbone) == len(wanted):
        return weights
    others = "" if weights.classes is None else _first_names(weights.classes)
    refusal = f"{key}={weights.origin}: its classes are not the {len(wanted)} of the data{others}"
    fix = "fit it with a new classifier by teacher.fit.mode=always"
    if weights.classes is None:
        raise UserError(f"{refusal}, and it does not name them; {fix}")
    try:
        rows = columns(wanted, weights.classes)
    except KeyError as error:
        raise UserError(
            f"{refusal}: class {error.args[0]!r} is missing or appears twice; map it with "
            f"{key.rpartition('.')[0]}.class_map, or {fix}"
        ) from error
    state = dict(weights.state)
    for name, value in weights.state.items():
        if name.startswith(backbone.classifier):
            if len(value) != len(weights.classes):
                raise UserError(
                    f"{key}={weights.origin}: names {len(weights.classes)} classes, but {name} has {len(value)}"
                )
            state[name] = value[rows]
    return dataclasses.replace(weights, state=state, classes=wanted)


def _width(weights: Weights, backbone: Backbone) -> int:
    """How many classes the classifier in ``weights`` has; 0 without one."""
    head = weights.state.get(f"{backbone.classifier[0]}weight")
    return 0 if head is None else len(head)


def _first_names(classes: tuple[str, ...]) -> str:
    return f" but {len(classes)} others ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"


def weights_fingerprint(state: dict[str, Tensor]) -> str:
    """Names the values of a state dict."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

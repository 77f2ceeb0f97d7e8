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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from safetensors.torch import load_file
from timm.models import get_model_args
from torch import Tensor

from distillcli import reused_head
from distillcli.config.ranges import nearest_path
from distillcli.config.schema import ModelConfig
from distillcli.errors import UserError
from distillcli.models.backbone import LOCAL_PREFIX, Backbone, key_of
from distillcli.models.card import Card, arguments, card_of, read_card
from distillcli.models.class_names import columns
from distillcli.models.file_kinds import HEAD, blocked_entry, is_old_torch, is_safetensors, refuse_other_kinds
from distillcli.models.foreign import Comparison, State, compare, completed, find_weights, parts_of
from distillcli.runs.reading import check_archive, check_unchanged, reading

HUB_PREFIX = "hf-hub:"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A state dict and what its file says about it; files of other tools say little, hence the Nones.

    ``classes``: () for a model without a head, None where they have no names; ``class_count``: how many there are,
    where the file says so. ``image_size``, ``channels``: of the images the model was trained on. ``parts``: of a file
    of another tool, every mapping of tensors in it, as it stands; ``for_model`` finds the model's own among them.
    ``place``: where that was, empty for names that are used as they are.
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


def for_model(weights: Weights, backbone: Backbone, key: str) -> Weights:
    """The weights under the names of the model, seen through the wrappers and prefixes of other tools.

    ``key``: as in ``backbone.key_of``. Raises UserError when several models in the file fit.
    """
    if not weights.parts:
        return weights
    try:
        found = find_weights(weights.parts, backbone.net.state_dict(), backbone.classifier)
    except UserError as error:
        raise UserError(f"{key_of(key, 'checkpoint')}={weights.origin}: {error}") from None
    return dataclasses.replace(weights, state=found.state, place=found.place, parts={})


def check_normalisation(backbone: Backbone, weights: Weights, key: str) -> None:
    """Raise UserError when the weights were trained on images of another mean or std than the model is given.

    Only weights that say theirs can be checked.
    """
    settings = weights.args.get("pretrained_cfg_overlay", {})
    # Exported numbers are those of float32.
    known = {name: _rounded(values) for name, values in (("mean", backbone.spec.mean), ("std", backbone.spec.std))}
    given = {name: _rounded(settings[name]) for name in known if name in settings}
    # Other numbers of channels get averages.
    other = [name for name, values in given.items() if len(values) == len(known[name]) and values != known[name]]
    if other:
        wanted = ", ".join(f"{name}: {values}" for name, values in given.items())
        raise UserError(
            f"{key_of(key, 'checkpoint')}={weights.origin}: was trained on images of {other[0]} {given[other[0]]}, and "
            f"{key}.name={backbone.spec.name} has {known[other[0]]}; set "
            f"'{key}.args={{pretrained_cfg_overlay: {{{wanted}}}}}'"
        )


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in values]


def check_body(backbone: Backbone, weights: Weights, key: str) -> None:
    """Raise UserError, as ``matched`` does, when anything but the classifier differs."""
    matched(backbone, weights, key, new_head=True)


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


def load_into(backbone: Backbone, weights: Weights, key: str, new_head: bool = False) -> None:
    """Copy ``weights`` into the backbone; with ``new_head`` its classifier, if any, keeps its fresh initialisation.

    Raises UserError as ``matched`` does: never a random layer in silence.
    """
    backbone.net.load_state_dict(matched(backbone, weights, key, new_head))


def matched(backbone: Backbone, weights: Weights, key: str, new_head: bool = False) -> dict[str, Tensor]:
    """The state dict that ``load_into`` copies. Raises UserError when names or shapes differ, naming the first ones.

    ``key``: where the config names the model, as in ``backbone.key_of``; for messages.
    """
    weights = for_model(weights, backbone, key)
    own, state = backbone.net.state_dict(), weights.state
    if new_head:
        state = {name: value for name, value in state.items() if not name.startswith(backbone.classifier)}
        state |= {name: value for name, value in own.items() if name.startswith(backbone.classifier)}
    if compare(own, state).fits:
        return completed(state, own)
    raise UserError(_misfit(backbone, weights, key, compare(own, weights.state)))


def _misfit(backbone: Backbone, weights: Weights, key: str, comparison: Comparison) -> str:
    """What differs, and what mends that: each fix is one for the case at hand."""
    given, named = f"{key_of(key, 'checkpoint')}={weights.origin}", backbone.spec.name
    if weights.architecture == reused_head.NAME and key:
        return (
            f"{given}: a student that ends in its teacher's head, which {key}.name={named} does not; use "
            f"{key}.name=local-dir:RUN/student {key}.pretrained=true"
        )
    different = [*comparison.missing, *comparison.unexpected, *comparison.reshaped]
    width, wanted = _width(weights, backbone), backbone.spec.classes
    if width != wanted and all(name.startswith(backbone.classifier) for name in different):
        has = f"has {width} classes" if width else "is missing"
        fix = "fit one by teacher.fit.mode=always" if key.startswith("teacher") else "evaluate it on its own data"
        return f"{given}: all of {named} but its classifier, which {has} where {wanted} are asked for; {fix}"
    holds = f" (it names {weights.architecture})" if weights.architecture else ""
    if comparison.missing or comparison.unexpected:
        fix = _fix_of_names(weights, key, comparison)
    else:
        fix = _fix_of_shapes(backbone, weights, key)
    return f"{given}{holds}: does not fit {f'{key}.name=' if key else ''}{named}: {comparison.words()}; {fix}"


def _fix_of_names(weights: Weights, key: str, comparison: Comparison) -> str:
    name = key_of(key, "name") if key else "model"
    if weights.architecture is not None:
        return f"set {name}={weights.architecture}"
    renamed = "" if comparison.matching else ", or save the weights under timm's names of that model"
    return f"set {name} to the model that was saved{renamed}"


def _fix_of_shapes(backbone: Backbone, weights: Weights, key: str) -> str:
    size = f"{key}.image_size" if key else "dataset.image_size"
    if weights.channels not in (None, backbone.spec.channels):
        return f"set dataset.channels={weights.channels}"
    if weights.image_size not in (None, backbone.image_size):
        return f"set {size}={weights.image_size}"
    return f"set {size} and dataset.channels to those it was trained with, or name another model"


def knows_classes(weights: Weights, backbone: Backbone, classes: tuple[str, ...], key: str) -> bool:
    """Whether the classifier in ``weights`` is one for ``classes``; without names, their number must do.

    ``key``: where the config names the model. Raises UserError if the names are the same in another order: every
    prediction would be scrambled.
    """
    if weights.classes is None:
        return _width(for_model(weights, backbone, key), backbone) == len(classes)
    if weights.classes != classes and sorted(weights.classes) == sorted(classes):
        raise UserError(
            f"{key_of(key, 'checkpoint')}={weights.origin}: its classes are those of the data in another order, so its "
            "predictions would be scrambled; use the dataset it was trained on, or train it again"
        )
    return weights.classes == classes


def select_classes(weights: Weights, backbone: Backbone, wanted: tuple[str, ...], key: str) -> Weights:
    """The weights with only the classifier's rows for ``wanted``, in that order.

    The softmax of such a classifier is that of the whole one given that one of ``wanted`` is shown. Weights without
    names must have as many classes as are wanted. Raises UserError, which begins with ``key``, for a classifier that is
    missing, or the first class that is.
    """
    width, owner = _width(weights, backbone), key.rpartition(".")[0]
    fix = "fit it with a new classifier by teacher.fit.mode=always"
    if width == 0:
        raise UserError(
            f"{key}={weights.origin}: holds no classifier, only the body of {backbone.spec.name}; {fix}, or use it as "
            "a feature extractor by teacher.head=false"
        )
    if weights.classes is None:
        if width == len(wanted):
            return weights
        name = f"name them with {owner}.classes=FILE, or " if width > len(wanted) else ""
        raise UserError(
            f"{key}={weights.origin}: its classifier has {width} {'class' if width == 1 else 'classes'} without names, "
            f"and the data has {len(wanted)}; {name}{fix}"
        )
    try:
        rows = columns(wanted, weights.classes)
    except KeyError as error:
        others = _first_names(weights.classes)
        raise UserError(
            f"{key}={weights.origin}: its classes are not the {len(wanted)} of the data{others}: class "
            f"{error.args[0]!r} is missing or appears twice; map it with {owner}.class_map, or {fix}"
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


def with_names(weights: Weights, backbone: Backbone, names: tuple[str, ...], given: str) -> Weights:
    """Weights that do not name their classes, with these ``names``, in the order of the classifier's outputs.

    ``given``: the key and value that the names come from. Raises UserError unless there is one for every output, or
    when the weights have other names already.
    """
    width = _width(weights, backbone)
    if weights.classes is not None and weights.classes != names:
        raise UserError(f"{given}: {weights.origin} names its classes itself, and otherwise; leave the file out")
    if width and width != len(names):
        raise UserError(f"{given}: names {len(names)} classes, and the classifier in {weights.origin} has {width}")
    return dataclasses.replace(weights, classes=names)


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

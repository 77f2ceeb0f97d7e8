"""What the files beside weights say about their model: ``config.json`` of an exported folder, or a checkpoint itself.

Both may come from anywhere. A model is a plain name of timm's and arguments of the model itself: nothing that would
make timm fetch weights, or look elsewhere on the disk.
"""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg

from distillcli.runs.reading import check_unchanged, read_json, reading

MOST_PIXELS = 1 << 14  # of a side of an image
MOST_CHANNELS = 1 << 12
MOST = 10**6  # of any number among the arguments of a model

# Settings of an exported model that may not be those its architecture has by default.
_KEPT = ("mean", "std", "classifier")
# Arguments of a model that belong to the data it is built for, not to the weights.
_OF_THE_DATA = ("img_size", "num_classes", "in_chans")
# What timm's factory keeps for itself: where weights come from, and what is wrapped around a model.
_OF_THE_FACTORY = frozenset(
    {
        *inspect.signature(timm.create_model).parameters,
        *inspect.signature(build_model_with_cfg).parameters,
        *("features_only", "out_indices", "feature_cls", "pruned", "device", "dtype"),
    }
)


@dataclass(frozen=True)
class Card:
    """``args``: build the model again. ``classes``: () without a head, None without names. ``image_size``: pixels."""

    architecture: str
    args: dict[str, Any]
    classes: tuple[str, ...] | None
    class_count: int | None
    image_size: int
    channels: int


def read_card(folder: Path) -> Card:
    """The card of an exported model. Raises UserError when it is broken, or asks for more than a model of timm's."""
    path = folder / "config.json"
    content = read_json(path)
    with reading(path):
        settings = content["pretrained_cfg"]
        channels, image_size, _ = settings["input_size"]
        names, count = content.get("label_names"), content.get("num_classes", settings.get("num_classes"))
        if names:
            count = len(names)
        if count is not None:
            _whole("num_classes", count, 0, MOST)
        for key in ("mean", "std"):
            if key in settings:
                _numbers(key, settings[key])
        given = content.get("model_args", {})
        check_model(content["architecture"], given)
        args = arguments(given, settings)
        check_model(content["architecture"], args)  # the settings are arguments as well
        return Card(
            architecture=content["architecture"],
            args=args,
            classes=_class_names(names) if names else () if content.get("num_classes") == 0 else None,
            class_count=count,
            image_size=_whole("input_size", image_size, 1, MOST_PIXELS),
            channels=_whole("input_size", channels, 1, MOST_CHANNELS),
        )


def check_folder(folder: Path) -> None:
    """Raise UserError unless timm may build a model from this folder: card and weights are what was written."""
    read_card(folder)
    weights = folder / "model.safetensors"
    if weights.is_file():
        check_unchanged(weights)


def card_of(content: dict[str, Any]) -> Card:
    """The card within one of our own checkpoints. Raises KeyError, TypeError or ValueError when it is broken."""
    model = content["model"]
    check_model(model["name"], model["args"])
    classes = _class_names(content["classes"])
    return Card(
        architecture=model["name"],
        args=model["args"],
        classes=classes,
        class_count=len(classes),
        image_size=_whole("image_size", content["image_size"], 1, MOST_PIXELS),
        channels=_whole("channels", content.get("channels", 3), 1, MOST_CHANNELS),  # older checkpoints do not say
    )


def arguments(given: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments that build a model of weights again. What belongs to the data it is built for is left to these."""
    args = {key: value for key, value in given.items() if key not in _OF_THE_DATA}
    return {**args, "pretrained_cfg_overlay": {key: settings[key] for key in _KEPT if key in settings}}


def check_model(architecture: object, args: object) -> None:
    """Raise ValueError or TypeError unless this is a plain name of timm's with arguments of the model itself."""
    if not isinstance(architecture, str) or not re.fullmatch(r"\w+(\.\w+)?", architecture):
        raise ValueError(f"{architecture!r} is not the plain name of a timm model; use an exported student/ folder")
    if not timm.is_model(architecture.split(".")[0]):
        raise ValueError(f"timm has no model {architecture!r}")
    if not isinstance(args, dict):
        raise TypeError(f"the arguments of the model are {type(args).__name__}, not names with values")
    overlay = args.get("pretrained_cfg_overlay", {})
    if not isinstance(overlay, dict) or not overlay.keys() <= set(_KEPT):
        raise ValueError("pretrained_cfg_overlay may hold mean, std and classifier")
    _check_plain({key: value for key, value in args.items() if key != "pretrained_cfg_overlay"})
    _check_plain(overlay)


def _check_plain(value: Any) -> None:
    """Lists and mappings of numbers, flags and names. Nothing in them can be an address or a path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str) or key in _OF_THE_FACTORY:
                raise ValueError(f"the argument {key!r} is none of the model itself")
            _check_plain(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_plain(inner)
    elif isinstance(value, str):
        if not re.fullmatch(r"[\w .,+-]*", value):
            raise ValueError(f"the argument {value!r} is not a plain word")
    elif isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) > MOST:
            raise ValueError(f"the argument {value} is no size that a model has")
    elif value is not None:
        raise TypeError(f"an argument is a {type(value).__name__}")


def _class_names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("its class names are not a list of names")
    return tuple(names)


def _whole(key: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} {value!r} is not a whole number from {least} to {most}")
    return value


def _numbers(key: str, values: Any) -> None:
    numbers = [value for value in values if type(value) in (int, float) and math.isfinite(value)]
    if len(numbers) != len(values) or (key == "std" and min(numbers, default=1) <= 0):
        raise ValueError(f"{key} {values!r} is not a list of numbers of colours")

"""timm's weights for ImageNet, and the names their classes go by."""

from __future__ import annotations

import dataclasses

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset

from distillcli.config.schema import ModelConfig
from distillcli.models.backbone import Backbone, build, key_of
from distillcli.models.class_names import knows
from distillcli.models.matching import load_into, select_classes
from distillcli.models.weights import Weights
from distillcli.types import Inputs

IMAGENET_CLASSES = 1000


def open_pretrained(model: ModelConfig, wanted: tuple[str, ...], inputs: Inputs, key: str) -> Backbone:
    """timm's weights for ``model``, answering with the ``wanted`` classes of ImageNet, which they must know."""
    names = pretrained_classes(model.name, wanted)
    assert names is not None, "callers look first"
    whole_inputs = dataclasses.replace(inputs, classes=len(names))
    whole = build(dataclasses.replace(model, pretrained=True), whole_inputs, key)
    if names == wanted:
        return whole
    backbone = build(model, inputs, key)
    weights = Weights(whole.net.state_dict(), model.name, classes=names)
    load_into(backbone, select_classes(weights, backbone, wanted, key_of(key, "name")), key)
    return backbone


def pretrained_classes(name: str, wanted: tuple[str, ...]) -> tuple[str, ...] | None:
    """The classes of timm's weights, under the names that know all ``wanted`` ones; None if no names do.

    ImageNet has WordNet ids (n01440764), descriptions ("tench, Tinca tinca") and the first synonyms of these.
    """
    settings = timm.get_pretrained_cfg(name)
    subset = infer_imagenet_subset({"num_classes": 1000 if settings is None else settings.num_classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    descriptions = tuple(info.label_descriptions())
    synonyms = tuple(description.split(",")[0] for description in descriptions)
    namings = (tuple(info.label_names()), descriptions, synonyms)
    return next((names for names in namings if knows(wanted, names)), None)

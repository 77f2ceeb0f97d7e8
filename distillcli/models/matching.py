"""Weights that were read against the model that is to have them, and against the classes that it is to tell apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from distillcli import reused_head
from distillcli.errors import UserError
from distillcli.models.backbone import Backbone, key_of
from distillcli.models.class_names import columns
from distillcli.models.foreign import Comparison, compare, completed, find_weights
from distillcli.models.weights import Weights


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


def check_body(backbone: Backbone, weights: Weights, key: str) -> None:
    """Raise UserError, as ``matched`` does, when anything but the classifier differs."""
    matched(backbone, weights, key, new_head=True)


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

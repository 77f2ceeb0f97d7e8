"""Checkpoints of other tools: one rule finds the weights of a model in whatever form people keep them.

Wrappers are mappings around one that holds tensors (``{"state_dict": ..., "epoch": 3}``), and one prefix that all
names of the model share is removed (``module.``, ``model.``, ``teacher.backbone.``). Both are seen through only when
every name of the model, up to its classifier, is then found; nothing is matched by position or by shape.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distillcli.errors import UserError

State = dict[str, Tensor]

DEEPEST = 4  # wrappers within each other
# What wrappers write in the middle of names.
_WRAPPED = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Counters and tables that follow from the architecture: no learned value, so that no harm is done without them.
BOOKKEEPING = (
    "num_batches_tracked",
    "n_averaged",
    "total_ops",
    "total_params",
    "relative_position_index",
    "attn_mask",
)
# Of several copies of one model, libraries evaluate this one: the average of the weights, and MoCo's query encoder.
_MEANT = re.compile(r"(^|[._])(ema|averaged|average|swa|encoder_q)(?=[._]|$)")


@dataclass(frozen=True)
class Found:
    """The weights of one model within a file. ``state``: under the names of the model as far as it has them.

    ``place``: where they were, such as ``state_dict_ema`` or ``module.``; empty for names that are used as they are.
    """

    state: State
    place: str


@dataclass(frozen=True)
class Comparison:
    """The names and shapes that a model has (``own``) and is given. Every tuple is in the order of the names."""

    own: int
    matching: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]  # names, each with both shapes

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.reshaped)

    def words(self) -> str:
        """``60 of its 92 tensors match; 2 are missing (first fc.bias); 1 is unexpected (first head.weight)``"""
        parts = [f"{self.matching} of its {self.own} tensors match"]
        for names, what in (
            (self.missing, "missing from the file"),
            (self.unexpected, "unexpected in it"),
            (self.reshaped, "of another shape"),
        ):
            if names:
                parts.append(f"{len(names)} {'is' if len(names) == 1 else 'are'} {what} (first {names[0]})")
        return "; ".join(parts)


def parts_of(content: Mapping[Any, Any]) -> dict[str, State]:
    """Every mapping of tensors within ``content``, by the path of keys to it; "" is ``content`` itself.

    Entries beside the tensors, and keys that are no text (an optimizer's), are left out.
    """
    return dict(_walk(content, "", 0))


def _walk(node: Mapping[Any, Any], path: str, depth: int) -> Iterator[tuple[str, State]]:
    named = {name: value for name, value in node.items() if isinstance(name, str)}
    tensors = {_WRAPPED.sub("", name): value for name, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    if depth < DEEPEST:
        for name, value in named.items():
            if isinstance(value, Mapping):
                yield from _walk(value, f"{path}.{name}" if path else name, depth + 1)


def find_weights(parts: Mapping[str, State], own: Mapping[str, Tensor], classifier: tuple[str, ...]) -> Found:
    """The weights of the model whose names are ``own``, or those that come nearest when none fit.

    ``classifier``: what the names of the classifier begin with, which may be missing. Raises UserError, without the
    name of the file, when several that differ fit.
    """
    body = {name for name in own if not name.startswith(classifier) and not is_bookkeeping(name)}
    everything = [
        Found(_without(prefix, state), _place(path, prefix))
        for path, state in parts.items()
        for prefix in _prefixes(state, own)
    ]
    fitting = [found for found in everything if body <= found.state.keys()]
    if not fitting:
        whole_files = [Found(state, path) for path, state in parts.items()]
        return max([*everything, *whole_files], key=lambda found: len(own.keys() & found.state.keys()))
    # The more complete, then the one that is meant.
    complete = [found for found in fitting if all(is_bookkeeping(name) for name in own.keys() - found.state.keys())]
    candidates = complete or fitting
    candidates = [found for found in candidates if _MEANT.search(found.place)] or candidates
    if not all(_same(candidates[0].state, other.state, own) for other in candidates[1:]):
        places = " and ".join(repr(found.place) for found in candidates[:2])
        raise UserError(f"holds several models that fit, {places}; save the one you mean alone, in a file of its own")
    return candidates[0]


def compare(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Comparison:
    """How ``given`` weights fit a model of the names and shapes ``own``, leaving aside what holds no learned value."""
    ours = {name: value for name, value in own.items() if not is_bookkeeping(name)}
    theirs = {name: value for name, value in given.items() if not is_bookkeeping(name)}
    common = [name for name in ours if name in theirs]
    reshaped = [name for name in common if _form(ours[name]) != _form(theirs[name])]
    return Comparison(
        own=len(ours),
        matching=len(common) - len(reshaped),
        missing=tuple(name for name in ours if name not in theirs),
        unexpected=tuple(name for name in theirs if name not in ours),
        reshaped=tuple(f"{name}: {_form(theirs[name])}, not {_form(ours[name])}" for name in reshaped),
    )


def completed(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> State:
    """``given`` under exactly the names of ``own``; counters and tables that it lacks are those of ``own``."""
    return {name: given.get(name, value) for name, value in own.items()}


def is_bookkeeping(name: str) -> bool:
    return name.rpartition(".")[2] in BOOKKEEPING


def _prefixes(names: Collection[str], own: Collection[str]) -> Counter[str]:
    """What stands before names of ``own`` in ``names``, and how often: "" or something that ends in a dot."""
    known, counts = set(own), Counter[str]()
    for name in names:
        starts = [0, *(place.end() for place in re.finditer(r"\.", name))]
        counts.update(name[:start] for start in starts if name[start:] in known)
    return counts


def _without(prefix: str, state: State) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _place(path: str, prefix: str) -> str:
    return f"{path}.{prefix}".strip(".") if path else prefix.rstrip(".")


def _same(one: State, other: State, own: Collection[str]) -> bool:
    names = [name for name in own if name in one and not is_bookkeeping(name)]
    return all(
        name in other and one[name].shape == other[name].shape and bool((one[name] == other[name]).all())
        for name in names
    )


def _form(value: Tensor) -> str:
    """The shape, and the type unless it is one of floating point, which are cast into each other."""
    kind = "" if value.is_floating_point() else f" of {value.dtype}".replace("torch.", "")
    return (" x ".join(map(str, value.shape)) or "one number") + kind

"""Whether the content of a checkpoint is a state of this very fit, before anything of it is taken over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# Every optimizer has these flags by default, and older versions of torch did not save all of them.
_FLAGS = (bool, type(None))


def check_state(found: dict[str, Any], own: dict[str, Any], optimizer: Optimizer, steps: int, epochs: int) -> None:
    """Raise ValueError naming the first part of ``found`` that cannot take the place of ``own``.

    ``own``: what the fit would save now. ``optimizer``: its own. ``steps``: of one epoch.
    """
    for part in ("student", "ema", "objective", "peers"):
        _same_kind(found[part], own[part], part)
    step = found["step"]
    if type(step) is not int or not 0 <= step <= steps * epochs:
        raise ValueError(f"step {step!r} is none of the {steps * epochs} of this fit")
    if found["optimizer"] is not None or found["scaler"] is not None:
        _same_kind(found["scaler"], own["scaler"], "scaler")
        _check_optimizer(found["optimizer"], own["optimizer"], optimizer)
    elif step < steps * epochs or found["trained"]:
        raise ValueError(f"it holds no state of the optimizer, and its step {step} is not the end of the fit")
    for part in ("best", "last"):
        _check_numbers(found[part], found["last"], part, epochs)
    if found["last"].get("epoch", 0) not in (step // steps, step // steps - 1):
        raise ValueError(f"its last epoch is {found['last'].get('epoch', 0)} at step {step} of {steps} per epoch")
    trained = found["trained"]
    if trained and not (step % steps == 0 and trained["epoch"] == step // steps and _is_number(trained["seconds"])):
        raise ValueError(f"its step {step} is not the end of the epoch that it says was trained")
    _check_totals(found["totals"], step % steps)


def _check_totals(totals: dict[str, Any], taken: int) -> None:
    """``taken``: the steps of the epoch that is being trained."""
    numbers = (totals["count"], totals["skipped"], totals["seconds"])
    if not all(map(_is_number, numbers)) or totals["count"] != taken:
        raise ValueError(f"the sums of its epoch are broken: {numbers!r} after {taken} steps")
    if not all(isinstance(total, Tensor) and total.ndim == 0 for total in totals["sums"].values()):
        raise ValueError("the sums of its epoch are broken")


def _same_kind(found: Any, own: Any, name: str) -> None:
    """Equal names, lengths, shapes and types; other values."""
    if isinstance(own, Tensor):
        if not isinstance(found, Tensor) or found.shape != own.shape or found.dtype != own.dtype:
            raise ValueError(f"{name} is no {own.dtype} of shape {tuple(own.shape)}")
    elif isinstance(own, dict):
        if not isinstance(found, dict) or found.keys() != own.keys():
            odd = sorted(map(str, found.keys() ^ own.keys())) if isinstance(found, dict) else ["it is no mapping"]
            raise ValueError(f"{name} has other parts: {odd[0]}")
        for key, value in own.items():
            _same_kind(found[key], value, f"{name}.{key}")
    elif isinstance(own, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(own):
            raise ValueError(f"{name} has not {len(own)} parts")
        for number, (one, other) in enumerate(zip(found, own, strict=True)):
            _same_kind(one, other, f"{name}[{number}]")
    elif _is_number(own):
        if not _is_number(found):
            raise ValueError(f"{name} {found!r} is no finite number")
    elif not isinstance(found, type(own)):
        raise ValueError(f"{name} {found!r} is no {type(own).__name__}")


def _check_optimizer(found: dict[str, Any], own: dict[str, Any], optimizer: Optimizer) -> None:
    groups: Sequence[dict[str, Any]] = found["param_groups"]
    if len(groups) != len(own["param_groups"]):
        raise ValueError(f"optimizer has {len(groups)} groups of parameters, not {len(own['param_groups'])}")
    for group, expected in zip(groups, own["param_groups"], strict=True):
        for key, value in expected.items():
            if key == "params" and group[key] != value:
                raise ValueError("optimizer has other parameters in a group")
            if not isinstance(value, _FLAGS):
                _same_kind(group[key], value, f"the optimizer's {key}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in own["param_groups"] for number in group["params"]]
    shapes = {number: parameter.shape for number, parameter in zip(numbers, parameters, strict=True)}
    for number, kept in found["state"].items():
        for key, value in kept.items():
            if isinstance(value, Tensor) and not _can_belong(value.shape, shapes[number]):
                raise ValueError(f"the optimizer's {key} of parameter {number} has shape {tuple(value.shape)}")


def _can_belong(shape: Sequence[int], parameter: Sequence[int]) -> bool:
    """Whether an optimizer may keep such a tensor for a parameter: of equal shape, reduced along axes, or a number."""
    if len(shape) == len(parameter):
        return all(size in (1, full) for size, full in zip(shape, parameter, strict=True))
    return math.prod(shape) == 1 or (len(shape) < len(parameter) and all(size in (1, *parameter) for size in shape))


def _check_numbers(numbers: dict[str, Any], last: dict[str, Any], name: str, epochs: int) -> None:
    if not numbers and last.keys() <= {"epoch"}:
        return  # without validation data no epoch is the best
    if numbers.keys() != last.keys() or not all(isinstance(value, int | float) for value in numbers.values()):
        raise ValueError(f"the numbers of its {name} epoch are broken")
    if numbers and not (type(numbers["epoch"]) is int and 1 <= numbers["epoch"] <= epochs):
        raise ValueError(f"its {name} epoch {numbers['epoch']!r} is none of {epochs}")
    if "top1" in numbers and "nll" not in numbers:
        raise ValueError(f"the numbers of its {name} epoch have no nll")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

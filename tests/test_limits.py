"""Every number has a range: what is absurd is one line, and never a hang, a crash or a silent success."""

from __future__ import annotations

import copy
import dataclasses
import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from distillcli.config.compose import check, compose
from distillcli.config.keys import schema_of
from distillcli.config.limits import check_highest, highest
from distillcli.config.ranges import check_finite
from distillcli.config.schema import AssistantConfig, EvalConfig, MemberConfig, ModelConfig, TrainConfig
from distillcli.config.terms import KNOWN_TERMS, parse_options
from distillcli.errors import UserError

HUGE = 10**30
# Where a thousand million is a number like any other.
SEEDS = {"seed", "dataset.split_seed", "teacher.members.seed", "teacher.assistants.seed", "trainer.clip_grad"}


def numeric(schema: type) -> Iterator[tuple[str, type]]:
    """Every key of a number, elements of lists included: ("teacher.members.weight", float)."""
    for name, annotation in typing.get_type_hints(schema).items():
        inner = [part for part in typing.get_args(annotation) if part is not type(None)]
        plain = inner[0] if inner and typing.get_origin(annotation) is not dict else annotation
        plain = typing.get_args(plain)[0] if typing.get_origin(plain) is list else plain  # Optional[list[float]]
        nested = schema_of(plain)
        if nested is not None:
            yield from ((f"{name}.{key}", kind) for key, kind in numeric(nested))
        elif plain in (int, float):
            yield name, plain


KEYS = [(TrainConfig, *key) for key in numeric(TrainConfig)] + [(EvalConfig, *key) for key in numeric(EvalConfig)]


@pytest.fixture(scope="module")
def healthy() -> dict[type, Any]:
    return {
        TrainConfig: compose("train", []),
        EvalConfig: compose("eval", ["checkpoint=resnet18", "dataset=digits"]),
    }


def changed(config: Any, key: str, value: float) -> Any:
    """A copy of a config with one number replaced; lists get an element, or the number twice."""
    config = copy.deepcopy(config)
    if key.startswith("teacher.members"):
        config.teacher.members = [MemberConfig("resnet18")]
    if key.startswith("teacher.assistants"):
        config.teacher.assistants = [AssistantConfig("resnet18")]
    if key.startswith("peers"):
        config.peers = [ModelConfig("resnet18")]
    *path, last = key.split(".")
    owner = config
    for part in path:
        owner = getattr(owner, part)
        owner = owner[0] if isinstance(owner, list) else owner
    lists = {"crop_area", "crop_ratio", "zoom", "progressive", "milestones"}
    setattr(owner, last, [value] * (1 if last == "milestones" else 2) if last in lists else value)
    return config


def refusal(config: Any) -> str | None:
    try:
        check("train" if isinstance(config, TrainConfig) else "eval", config)
    except UserError as error:
        return str(error)
    return None


def test_the_keys_are_found() -> None:
    found = {key for schema, key, _ in KEYS if schema is TrainConfig}
    assert {"trainer.progressive", "teacher.members.weight", "schedule.milestones", "optimizer.layer_decay"} <= found
    assert len(found) > 60


@pytest.mark.fault("F4.8", "R4", "R5", "R7")
@pytest.mark.parametrize(("schema", "key", "kind"), KEYS, ids=lambda part: getattr(part, "__name__", part))
def test_an_absurd_number_is_refused_by_its_key(schema: type, key: str, kind: type, healthy: dict[type, Any]) -> None:
    absurd: list[float] = [HUGE, -HUGE, *([] if key in SEEDS else [10**9])]
    absurd += [float("nan"), float("inf"), float("-inf"), 1e30, 1e308] if kind is float else []
    for value in absurd:
        told = refusal(changed(healthy[schema], key, value))
        assert told is not None, f"{key}={value} is accepted"
        assert "\n" not in told
        assert key.split(".")[-1] in told, told
    for value in (-1, 0):
        told = refusal(changed(healthy[schema], key, value))
        assert "\n" not in (told or "")
        assert told is not None or value == 0, f"{key}={value} is accepted"


OPTIONS = [
    (name, option.name, option.type)
    for name, known in sorted(KNOWN_TERMS.items())
    for option in dataclasses.fields(known.options)
    if re.search(r"\b(int|float)\b", str(option.type))
]


@pytest.mark.fault("F4.8")
@pytest.mark.parametrize(("name", "option", "kind"), OPTIONS)
def test_an_absurd_option_of_a_term_is_refused_by_its_key(name: str, option: str, kind: str) -> None:
    def told(number: float) -> str | None:
        value = [number] if kind.startswith("list") else number
        try:
            parse_options(name, {option: value})
            check_finite({"distill": {"terms": {name: {option: value}}}})
            check_highest({"distill": {"terms": {name: {option: value}}}})
        except UserError as error:
            return str(error)
        return None

    for number in (HUGE, *([float("nan"), float("inf"), 1e300] if "float" in kind else [])):
        assert (told(number) or "").startswith(f"distill.terms.{name}.{option}"), number
    if "stage" not in option:  # stages are counted from the end
        assert told(-1) is not None


def test_limits_are_looked_up_by_the_key_without_places() -> None:
    assert highest("teacher.members[3].weight") == highest("teacher.members.weight") < HUGE
    assert highest("student.args.depth") == float("inf")
    with pytest.raises(UserError, match=r"trainer.epochs=100000000000... \(400 digits\): must be at most 1,000,000"):
        check_highest({"trainer": {"epochs": int("1" + "0" * 399)}})

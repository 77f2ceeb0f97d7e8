"""The JSON Schema of the configs: it takes what the commands take, and nothing misspelt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from distillcli.config.compose import compose_raw, typed_config
from distillcli.config.json_schema import json_schema
from distillcli.config.keys import key_notes
from distillcli.config.limits import highest
from distillcli.config.primaries import PRIMARIES
from distillcli.config.terms import KNOWN_TERMS

ROOT = Path(__file__).resolve().parent.parent
PRESETS = sorted(file.stem for file in (ROOT / "configs" / "distill").glob("*.yaml"))
TRAIN = Draft202012Validator(json_schema("train"))


def config_of(*overrides: str) -> Any:
    return OmegaConf.to_container(OmegaConf.structured(typed_config("train", compose_raw("train", list(overrides)))))


def described(schema: dict[str, Any], dotted: str) -> dict[str, Any]:
    for part in dotted.split("."):
        schema = schema["properties"][part]
    return schema


@pytest.mark.parametrize("primary", PRIMARIES)
def test_it_is_a_schema_that_describes_every_key(primary: str) -> None:
    schema = json_schema(primary)
    Draft202012Validator.check_schema(schema)
    for key, (_, comment) in key_notes(PRIMARIES[primary].schema).items():
        assert described(schema, key).get("description", "") == comment, key


def test_the_defaults_and_a_config_with_lists_are_valid() -> None:
    assert not list(TRAIN.iter_errors(config_of()))
    assert not list(TRAIN.iter_errors(config_of("+experiment=ensemble", "distill=dist", "optimizer=sgd")))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_terms_of_every_preset_are_valid(preset: str) -> None:
    content = yaml.safe_load((ROOT / "configs" / "distill" / f"{preset}.yaml").read_text("utf-8"))
    assert not list(TRAIN.iter_errors({"distill": content}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"trainer": {"epoch": 3}},
        {"trainer": {"epochs": "many"}},
        {"trainer": {"epochs": highest("trainer.epochs") + 1}},
        {"distill": {"terms": {"kll": {}}}},
        {"distill": {"terms": {"kl": {"weigt": 2}}}},
        {"teacher": {"members": [{"nam": "resnet18"}]}},
        {"dataset": None},
    ],
)
def test_what_the_command_refuses_at_sight_is_not_valid(wrong: dict[str, Any]) -> None:
    assert list(TRAIN.iter_errors(wrong))


def test_every_term_is_described() -> None:
    assert described(json_schema("train"), "distill.terms")["properties"].keys() == KNOWN_TERMS.keys()


def test_the_command_prints_it(distill: Any) -> None:
    assert json.loads(distill("configs", "schema").stdout) == json_schema("train")
    assert json.loads(distill("configs", "schema", "eval").stdout) == json_schema("eval")
    refused = distill("configs", "schema", "evl")
    assert refused.code == 2
    assert "eval" in refused.stderr

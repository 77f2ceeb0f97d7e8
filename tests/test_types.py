"""Taps and outputs: what has a field per part treats every part."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from distillcli.types import LOGITS_ONLY, Output, Taps, tapped
from tests.builders import cast, output, parts
from tests.test_terms import SPEC

ASKED: dict[str, Any] = {field.name: (-1, 1) if field.default == () else True for field in dataclasses.fields(Taps)}


@pytest.mark.parametrize("name", ASKED)
def test_joined_taps_ask_for_what_either_asks_for(name: str) -> None:
    one = Taps(**{name: ASKED[name]})
    assert one | LOGITS_ONLY == LOGITS_ONLY | one == one | one == one


def test_stages_of_both_are_joined_in_order() -> None:
    assert (Taps((-1, 2)) | Taps((0, -1), preactivations=(3,))) == Taps((-1, 0, 2), preactivations=(3,))


def test_every_part_of_an_output_is_cast_to_float32() -> None:
    whole = output(SPEC)
    whole = dataclasses.replace(whole, token_logits=whole.logits + 1)
    half = cast(whole, torch.float16)
    single = half.float()
    assert len(parts(single)) == len(parts(half)) > 5
    assert {tensor.dtype for tensor in parts(single)} == {torch.float32}
    for field in dataclasses.fields(Output):
        assert getattr(single, field.name) is not None, field.name
    assert torch.equal(tapped(single.token_logits), tapped(half.token_logits).float())
    assert torch.equal(single.preactivations[-1], half.preactivations[-1].float())


def test_what_was_not_tapped_stays_so() -> None:
    bare = Output(torch.zeros(2, 5).half(), None, {}).float()
    assert bare.logits.dtype == torch.float32
    assert parts(bare) == [bare.logits]
    with pytest.raises(AssertionError, match="not tapped"):
        tapped(bare.embedding)

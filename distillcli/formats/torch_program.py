"""A program of ``torch.export``: the model as a graph that torch runs without the code that built it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from distillcli.formats.deployed import Facts, Wanted, facts_of, quietly, read_facts, refused_by_name, traced
from distillcli.models.backbone import Backbone

FACTS = "facts.json"


def write(backbone: Backbone, path: Path, wanted: Wanted) -> None:
    """Write the graph, with batches of any size, and the facts as an extra file ``facts.json`` in it.

    Raises UserError for a model that cannot be exported. Library: ``torch.export``.
    """
    facts = facts_of(backbone, wanted)
    program = traced(backbone, facts, "torch")
    with quietly(), refused_by_name(facts, "torch"):
        torch.export.save(program, path, extra_files={FACTS: json.dumps(facts.texts())})


class Session:
    """An opened file. ``facts``: what it says of itself."""

    def __init__(self, path: Path) -> None:
        extra = {FACTS: ""}
        with quietly():
            self._module = torch.export.load(path, extra_files=extra).module()
        self.facts: Facts = read_facts(path, json.loads(extra[FACTS]))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """What the file answers for B x C x H x W images in [0, 1]: B x K."""
        answer: Tensor = self._module(self.facts.inputs(images))
        return answer

"""ONNX: written by torch's exporter, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillcli.errors import UserError
from distillcli.formats.deployed import INPUT, Facts, Wanted, facts_of, quietly, read_facts, refused_by_name, traced
from distillcli.models.backbone import Backbone


def write(backbone: Backbone, path: Path, wanted: Wanted, name: str = "onnx") -> None:
    """Write the graph, with batches of any size, and the facts and the opset in its metadata.

    ``name``: of the format that was asked for, for messages. Raises UserError for a model that cannot be exported.
    Library: ``torch.onnx``.
    """
    facts = facts_of(backbone, wanted)
    program = traced(backbone, facts, name)
    with quietly(), refused_by_name(facts, name):
        graph = torch.onnx.export(
            program, (), dynamo=True, input_names=[INPUT], output_names=[facts.output], verbose=False
        )
        assert graph is not None
        opset = graph.model.opset_imports[""]
        graph.model.metadata_props.update({**facts.texts(), "opset": str(opset)})
        graph.save(path)


class Session:
    """An opened file. ``facts``: what it says of itself."""

    def __init__(self, path: Path) -> None:
        """Raises UserError when it cannot be read, or was not written by ``write``."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes of errors have no base class of their own
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{path}: ONNX Runtime cannot open it ({reason}); export the model again") from error
        self.facts: Facts = read_facts(path, self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, images: Tensor) -> Tensor:
        """What the file answers for B x C x H x W images in [0, 1]: B x K."""
        given = {self._session.get_inputs()[0].name: self.facts.inputs(images).numpy()}
        return torch.from_numpy(self._session.run(None, given)[0])

"""OpenVINO's intermediate representation: FILE.xml with FILE.bin beside it, read from ONNX, run on the CPU."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillcli.errors import UserError
from distillcli.formats import onnx_file
from distillcli.formats.deployed import Facts, Wanted, facts_of, read_facts, refused_by_name
from distillcli.models.backbone import Backbone

SECTION = "distillcli"  # of the runtime information in the file


def write(backbone: Backbone, path: Path, wanted: Wanted) -> None:
    """Write graph and weights in float32, and the facts as runtime information.

    Raises UserError for a model that cannot be exported. Library: OpenVINO, which reads what ``onnx_file`` writes.
    """
    import openvino

    facts = facts_of(backbone, wanted)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        onnx_file.write(backbone, graph, wanted, "openvino")
        with refused_by_name(facts, "openvino"):
            model = openvino.Core().read_model(graph)
            for name, text in facts.texts().items():
                model.set_rt_info(text, [SECTION, name])
            openvino.save_model(model, path, compress_to_fp16=False)


class Session:
    """An opened file. ``facts``: what it says of itself."""

    def __init__(self, path: Path) -> None:
        """Raises UserError when it cannot be read, or was not written by ``write``."""
        import openvino

        # Its own choice may be bfloat16, which answers otherwise.
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        core = openvino.Core()
        try:
            model = core.read_model(path)
            self._compiled: Any = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{path}: OpenVINO cannot open it ({reason}); export the model again") from error
        names = [field.name for field in dataclasses.fields(Facts)]
        known = {name: [SECTION, name] for name in names if model.has_rt_info([SECTION, name])}
        self.facts: Facts = read_facts(path, {name: model.get_rt_info(key).astype(str) for name, key in known.items()})

    def __call__(self, images: Tensor) -> Tensor:
        """What the file answers for B x C x H x W images in [0, 1]: B x K."""
        return torch.from_numpy(self._compiled(self.facts.inputs(images).numpy())[0].copy())

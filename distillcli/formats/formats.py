"""The formats in which a model can be exported, and the check that all of them pass."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distillcli.errors import NumericError
from distillcli.formats import onnx_file, openvino_file, timm_folder, torch_program
from distillcli.formats.check import Check, compare
from distillcli.formats.deployed import Wanted, facts_of
from distillcli.models.backbone import Backbone
from distillcli.types import Output, Taps

Runner = Callable[[Tensor], Tensor]  # B x C x H x W images in [0, 1] -> B x K answers


@dataclass(frozen=True)
class Format:
    """``write``: a model as files at a path. ``opened``: these files, run by the format's own runtime alone.

    ``tolerance``: how far its answers may be from the model's, as a share of the largest. ``suffix``: of the path.
    ``usage``: a line that runs it.
    """

    about: str
    write: Callable[[Backbone, Path, Wanted], None]
    opened: Callable[[Path], Runner]
    tolerance: float
    suffix: str
    usage: str


FORMATS = {
    # Other memory layouts, and 1 x 1 convolutions as convolutions again: trained networks stay below 1e-5.
    "timm": Format(
        "a folder for timm.create_model",
        lambda backbone, path, wanted: timm_folder.write(backbone, path, wanted.classes, wanted.crop_fraction),
        lambda path: lambda images: timm_folder.outputs(path, images),
        1e-3,
        "",
        'timm.create_model("local-dir:{path}", pretrained=True)',
    ),
    # Convolutions fused with their norms, and other kernels.
    "onnx": Format(
        "a file for ONNX Runtime",
        onnx_file.write,
        onnx_file.Session,
        1e-3,
        ".onnx",
        "distill predict checkpoint={path} input=IMAGES",
    ),
    # The same kernels, of operations that are taken apart a little further.
    "torch": Format(
        "a program for torch.export.load",
        torch_program.write,
        torch_program.Session,
        1e-4,
        ".pt2",
        'torch.export.load("{path}").module()',
    ),
    # Other kernels again, in float32.
    "openvino": Format(
        "FILE.xml and FILE.bin for OpenVINO",
        openvino_file.write,
        openvino_file.Session,
        1e-3,
        ".xml",
        "distill predict checkpoint={path} input=IMAGES",
    ),
}


def export(
    backbone: Backbone, path: Path, wanted: Wanted, batches: Iterable[tuple[Tensor, Tensor]], name: str = "timm"
) -> Check:
    """Write a model in format ``name``, open it again and compare its answers with those of the model.

    ``batches``: images in [0, 1] and labels. Raises NumericError, and removes what was written, when the answers differ
    by more than the format may.
    """
    kind = FORMATS[name]
    kind.write(backbone, path, wanted)
    model, run = on_cpu(backbone), kind.opened(path)
    facts = facts_of(backbone, wanted)
    expected, found, labels = [], [], []
    for images, targets in batches:
        fitted = facts.fitted(images.cpu())
        expected.append(facts.answers(outputs(model, fitted)))
        found.append(run(fitted))
        labels.append(targets.cpu())
    check = compare(
        torch.cat(expected), torch.cat(found), torch.cat(labels) if backbone.spec.classes else None, kind.tolerance
    )
    if not check.holds:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise NumericError(
            f"{path.name}: the exported model ({name}) differs from the trained one by {check.difference:.2g}, "
            f"{check.share:.2g} of the largest answer, where {check.bound:.2g} is allowed; nothing is kept of it"
        )
    return check


def on_cpu(backbone: Backbone) -> Backbone:
    """A copy for evaluation: other devices round differently."""
    net = copy.deepcopy(backbone.net).cpu()
    return Backbone(net, backbone.spec, backbone.image_size, backbone.resizes).eval()


@torch.no_grad()
def outputs(backbone: Backbone, images: Tensor) -> Tensor:
    """Logits, or embeddings of a model without a classifier."""
    answer: Output = backbone(images, Taps(embedding=backbone.spec.classes == 0))
    return answer.logits if answer.embedding is None else answer.embedding

"""The formats in which a model can be exported, and the check that all of them pass."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distillcli.errors import NumericError
from distillcli.formats import timm_folder
from distillcli.models.backbone import Backbone
from distillcli.types import Output, Taps


@dataclass(frozen=True)
class Format:
    """``write``: (model, path, class names, share of the shorter side that the centre crop keeps). ``outputs``: (path,
    B x C x H x W images in [0, 1]) -> logits, or embeddings of a model without a classifier, computed from the files
    alone by the format's own runtime. ``tolerance``: how far these may be from the model's, as a share of its largest.
    """

    about: str
    write: Callable[[Backbone, Path, tuple[str, ...], float], None]
    outputs: Callable[[Path, Tensor], Tensor]
    tolerance: float


FORMATS = {
    # Other memory layouts, and 1 x 1 convolutions as convolutions again: trained networks stay below 1e-5.
    "timm": Format("a folder for timm.create_model", timm_folder.write, timm_folder.outputs, tolerance=1e-3),
}


def export(
    backbone: Backbone, path: Path, classes: tuple[str, ...], crop_fraction: float, images: Tensor, name: str = "timm"
) -> None:
    """Write a model in format ``name``, open it again and compare its outputs for ``images`` with those of the model.

    Raises NumericError, and removes what was written, when they differ by more than the format may.
    """
    kind = FORMATS[name]
    kind.write(backbone, path, classes, crop_fraction)
    expected = _outputs(backbone, images.cpu())
    difference = (kind.outputs(path, images.cpu()) - expected).abs().max()
    allowed = kind.tolerance * expected.abs().max()
    if not difference <= allowed:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise NumericError(
            f"{path}: the exported model ({name}) differs from the trained one by {difference:.2g}, where "
            f"{allowed:.2g} is allowed; nothing is kept of it"
        )


@torch.no_grad()
def _outputs(backbone: Backbone, images: Tensor) -> Tensor:
    """On the CPU: other devices round differently."""
    net = copy.deepcopy(backbone.net).cpu()
    alone = Backbone(net, backbone.spec, backbone.image_size, backbone.resizes).eval()
    answer: Output = alone(images, Taps(embedding=backbone.spec.classes == 0))
    return answer.logits if answer.embedding is None else answer.embedding

"""timm's folder format: ``timm.create_model('local-dir:FOLDER', pretrained=True)``."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._hub import save_for_hf
from torch import Tensor
from torch.nn import functional

from distillcli.models.backbone import LOCAL_PREFIX, Backbone
from distillcli.runs.checksums import recorded


def write(backbone: Backbone, folder: Path, classes: tuple[str, ...], crop_fraction: float) -> None:
    """Write ``config.json``, ``model.safetensors`` and their checksums.

    The config carries class names and preprocessing, so that the folder is all that a deployment needs.
    """
    net = copy.deepcopy(backbone.net).cpu().to(memory_format=torch.contiguous_format)
    channels = backbone.spec.channels
    folder.mkdir(parents=True, exist_ok=True)
    with recorded(folder, "config.json", "model.safetensors"):
        save_for_hf(
            net,
            folder,
            model_config={"label_names": list(classes)},
            safe_serialization=True,
            data_config={
                "input_size": (channels, backbone.image_size, backbone.image_size),
                "mean": tuple(backbone.mean.flatten().tolist()),
                "std": tuple(backbone.std.flatten().tolist()),
                "crop_pct": crop_fraction,
                "interpolation": "bilinear",
            },
        )
        # safetensors writes for its owner alone, whatever the umask allows for files.
        shutil.copymode(folder / "config.json", folder / "model.safetensors")


@torch.no_grad()
def outputs(folder: Path, images: Tensor) -> Tensor:
    """The folder's own outputs for B x C x H x W images in [0, 1]: logits, or embeddings without a classifier."""
    net: Any = timm.create_model(f"{LOCAL_PREFIX}{folder}", pretrained=True).eval()
    settings = net.pretrained_cfg
    size = tuple(settings["input_size"][1:])
    if images.shape[2:] != size:
        images = functional.interpolate(images, size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(settings[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    answer: Tensor = net((images - mean) / std)
    return answer

"""Every format for students of every family: the file answers as the model does, or the family is refused by name."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distillcli.config.schema import ModelConfig
from distillcli.formats import onnx_file, openvino_file, torch_program
from distillcli.formats.deployed import Wanted
from distillcli.formats.formats import FORMATS, export
from distillcli.models.backbone import Backbone, build
from distillcli.reused_head import join
from distillcli.runtime import seed_everything
from distillcli.types import Inputs

# The smallest of each family: model, pixels, channels.
FAMILIES: dict[str, tuple[ModelConfig, int, int]] = {
    "MobileNetV2": (ModelConfig("mobilenetv2_035"), 32, 3),
    "MobileNetV3": (ModelConfig("mobilenetv3_small_050"), 32, 3),
    "MobileNetV4": (ModelConfig("mobilenetv4_conv_small_035"), 32, 3),
    "EfficientNet": (ModelConfig("test_efficientnet"), 32, 3),
    "ResNet": (ModelConfig("test_resnet"), 32, 3),
    "RegNet": (ModelConfig("regnetx_002"), 32, 3),
    "ConvNeXt": (ModelConfig("test_convnext"), 32, 3),
    "RepVGG": (ModelConfig("repvgg_a0"), 32, 3),
    "ViT": (ModelConfig("test_vit"), 32, 3),
    "DeiT, distilled": (ModelConfig("deit_tiny_distilled_patch16_224", args={"depth": 2}), 32, 3),
    "MobileViT": (ModelConfig("mobilevit_xxs"), 64, 3),
    "FastViT": (ModelConfig("fastvit_t8"), 64, 3),
    "one channel": (ModelConfig("test_efficientnet"), 32, 1),
    "SimKD": (
        join(ModelConfig("test_efficientnet"), ModelConfig("test_resnet"), reduction=2, relu=True, largest=None),
        64,
        3,
    ),
}
CLASSES = ("a", "b", "c", "d", "e")


def trained(model: ModelConfig, size: int, channels: int) -> Backbone:
    """With random weights, whose norms have statistics of their own."""
    seed_everything(0, model.name)
    backbone = build(model, Inputs(len(CLASSES), size, channels), "student").train()
    with torch.no_grad():
        for _ in range(3):
            backbone(torch.rand(8, channels, size, size))
    return backbone.eval()


# torch's exporters take up to half a minute for the deeper ones.
DEEP = ("MobileNetV2", "MobileNetV3", "MobileNetV4", "RegNet", "RepVGG", "MobileViT", "FastViT")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in DEEP else []) for name in FAMILIES],
)
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backbone, str]]:
    """A student whose graph is traced once for all formats, and whose ONNX file is written once."""
    backbone, programs = trained(*FAMILIES[request.param]), list[Any]()
    file, trace, write = tmp_path_factory.mktemp("onnx") / "model.onnx", torch_program.traced, onnx_file.write

    def traced_once(*given: Any) -> Any:
        if not programs:
            programs.append(trace(*given))
        return programs[0]

    def written_once(*given: Any) -> None:
        if not file.exists():
            write(given[0], file, *given[2:])
        shutil.copyfile(file, given[1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_program, "traced", traced_once)
        patch.setattr(onnx_file, "traced", traced_once)
        patch.setattr(openvino_file.onnx_file, "write", written_once)
        patch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], write=written_once))
        yield backbone, request.param


@pytest.mark.parametrize("name", FORMATS)
def test_the_file_answers_as_the_model(name: str, student: tuple[Backbone, str], tmp_path: Path) -> None:
    backbone, family = student
    size, channels = FAMILIES[family][1:]
    images = torch.rand(5, channels, size, size, generator=torch.Generator().manual_seed(1))
    wanted = Wanted(CLASSES, 1.0)
    check = export(backbone, tmp_path / f"model{FORMATS[name].suffix}", wanted, [(images, torch.zeros(5))], name)
    assert check.share <= check.bound
    assert check.agreement == 100

"""Models that see the same views at sizes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distillcli.config.schema import ModelConfig
from distillcli.distillation.advice import teacher_warnings
from distillcli.errors import UserError
from distillcli.formats.timm_folder import write as export
from distillcli.models.backbone import Backbone, build, describe
from distillcli.models.weights import read_weights
from distillcli.runtime import seed_everything
from distillcli.types import Inputs, Taps
from tests.conftest import Distill
from tests.tiny import last, tiny, train

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")

VIEWS = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def built(name: str, own: int | None, views: int) -> Backbone:
    seed_everything(0, name)
    return build(ModelConfig(name=name, image_size=own), Inputs(5, views), "student").eval()


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
@torch.no_grad()
def test_a_model_of_its_own_size_sees_the_view_as_an_antialiased_resize_would_show_it(name: str) -> None:
    """Pillow's bilinear filter is antialiased too; its 8 bits are the tolerance."""
    model, plain = built(name, 32, 48), built(name, None, 32)
    plain.net.load_state_dict(model.net.state_dict())
    pixels = (255 * VIEWS).round().to(torch.uint8)
    small = [
        np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BILINEAR))
        for image in pixels
    ]
    resized = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(model(pixels / 255).logits, plain(resized).logits, rtol=0.02, atol=0.02)


@torch.no_grad()
def test_views_of_the_models_own_size_are_left_alone() -> None:
    model, plain = built("test_resnet", 48, 96), built("test_resnet", None, 48)
    assert torch.equal(model(VIEWS).logits, plain(VIEWS).logits)


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_cost_and_stages_are_those_of_the_models_own_size(name: str) -> None:
    own = describe(ModelConfig(name=name, image_size=32), Inputs(5, 224), "student")
    assert own == describe(ModelConfig(name=name), Inputs(5, 32), "student")
    assert own.macs < describe(ModelConfig(name=name), Inputs(5, 224), "student").macs
    with torch.no_grad():
        (stage,) = built(name, 32, 224)(torch.rand(1, 3, 224, 224), Taps((-1,))).stages.values()
    assert stage.shape[1:] == own.stage_shapes[-1]


@pytest.mark.fault("R60")
def test_a_size_that_does_not_suit_the_model_names_the_key() -> None:
    with pytest.raises(UserError, match=r"images of 8 pixels.*student\.image_size"):
        build(ModelConfig(name="vgg11", image_size=8), Inputs(5, 32), "student")


def test_the_size_travels_with_the_weights(tmp_path: Path) -> None:
    export(built("vit_tiny_patch16_224", 32, 48), tmp_path, ("a", "b", "c", "d", "e"), 1.0)
    card = json.loads((tmp_path / "config.json").read_text())
    assert card["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert build(read_weights(str(tmp_path)).model, Inputs(5, 48), "eval").image_size == 32
    train(tiny("student.image_size=24", "trainer.epochs=1"), tmp_path / "run")
    assert last(tmp_path / "run")["image_size"] == 24


def test_more_pixels_than_the_views_have_are_said_in_one_line() -> None:
    config = tiny("student.image_size=32", "teacher.image_size=64")
    (warning,) = teacher_warnings(config)
    assert warning.startswith("teacher.image_size=64: test_resnet sees the views of 32 pixels enlarged")
    members = tiny("teacher=ensemble", "teacher.members=[{name: test_resnet},{name: test_vit, image_size: 40}]")
    assert ["test_vit" in warning for warning in teacher_warnings(members)] == [True]
    with pytest.raises(UserError, match=r"student\.image_size=4: must be at least 8"):
        tiny("student.image_size=4")


def test_student_and_members_of_three_sizes_from_command_to_evaluation(tmp_path: Path, distill: Distill) -> None:
    members = "teacher.members=[{name: test_resnet, image_size: 24},{name: vit_tiny_patch16_224, args: {depth: 1}}]"
    sizes = ("student.image_size=16", members, "teacher=ensemble", "teacher.fit.epochs=1", "trainer.epochs=1")
    run = tmp_path / "run"
    done = distill("train", "experiment=smoke", *sizes, "dataset.samples=64", "trainer.device=cpu", f"out={run}")
    assert done.code == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    assert result["student"]["macs"] == describe(ModelConfig("test_efficientnet"), Inputs(4, 16), "student").macs
    again = distill("eval", f"checkpoint={run}", "format=json", "trainer.device=cpu")
    assert again.code == 0, again.stderr
    numbers = json.loads(again.stdout)
    assert numbers["macs"] == result["student"]["macs"]
    assert numbers["nll"] == pytest.approx(result["student"]["nll"], rel=1e-5)
    assert numbers["agreement"] == pytest.approx(result["student"]["agreement"])

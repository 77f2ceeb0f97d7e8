"""Images of one channel, and of more than three: from the file to the exported model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny import CPU, last, tiny

from distillcli import cli
from distillcli.config.schema import AugmentConfig, DatasetConfig, ModelConfig
from distillcli.distillation.kinds import KINDS
from distillcli.errors import UserError
from distillcli.formats.timm_folder import write as export
from distillcli.models.backbone import build, describe
from distillcli.models.matching import load_into
from distillcli.models.weights import read_weights
from distillcli.runs.result import read_result, top1_of
from distillcli.sources.channels import with_channels
from distillcli.sources.decode import decode_file, luma
from distillcli.sources.open import open_source
from distillcli.sources.source import ArrayImages, Images
from distillcli.types import Inputs
from distillcli.views.loader import Loader
from distillcli.views.store import MemoryStore, Rows, StreamStore, open_store

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
MULTISPECTRAL = np.random.RandomState(0).randint(0, 256, (24, 16, 16, 5)).astype(np.uint8)
QUICK = ("trainer.threads=1", "trainer.device=cpu", "trainer.epochs=1", "teacher.fit.epochs=1", "trainer.batch_size=64")


def loader(images: Images, channels: int, memory_bytes: float = 1e9) -> Loader:
    config = DatasetConfig(name="test", image_size=16, channels=channels)
    store = open_store(images, config, 0, CPU, memory_bytes)
    return Loader(store, torch.zeros(len(images), dtype=torch.int64), config, CPU, 2)


def views(pixels: NDArray[np.uint8], **parts: Any) -> torch.Tensor:
    """The same ten views whatever the channels are."""
    source = loader(ArrayImages(pixels, "test"), pixels.shape[3])
    rows = Rows(np.arange(1, 11), np.arange(10))
    return next(source.views(AugmentConfig(name="test", **parts), 3, [rows])).images


# --- data ---------------------------------------------------------------------------------------------------------


def test_gray_keeps_its_values_and_colours_become_their_luma(tmp_path: Path) -> None:
    np.testing.assert_array_equal(luma(np.repeat(RAMP[..., None], 3, axis=2)), RAMP[..., None])
    pixels = np.random.RandomState(0).randint(0, 256, (4, 7, 9, 3)).astype(np.uint8)
    expected = pixels.astype(np.float64) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(luma(pixels)[..., 0], expected, atol=0.51)
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "16.png")
    np.testing.assert_array_equal(luma(decode_file(tmp_path / "16.png"))[..., 0], RAMP)


def test_every_source_has_one_channel(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (5, 4), (200, 100, number + len(part))).save(tmp_path / part / name / "0.png")
    for config in (DatasetConfig(name="digits"), DatasetConfig(name="folder", root=str(tmp_path))):
        rgb = open_source(config)
        assert with_channels(rgb, 3) is rgb, "what was fitted and cached before is found again"
        config.channels = 1
        gray = open_source(config)
        assert gray.fingerprint != rgb.fingerprint
        assert gray.val.labels.tolist() == rgb.val.labels.tolist()
        image = gray.val.images.read(0)
        np.testing.assert_array_equal(image, luma(rgb.val.images.read(0)))
        assert image.shape[2] == 1
        assert gray.val.images.name(0) == rgb.val.images.name(0)


def npz(folder: Path, images: NDArray[np.uint8] = MULTISPECTRAL) -> Path:
    np.savez(folder / "mine.npz", images=images, labels=np.arange(len(images)) % 2)
    return folder / "mine.npz"


def test_arrays_have_as_many_channels_as_are_asked_for(tmp_path: Path) -> None:
    source = open_source(DatasetConfig(name="npz", root=str(npz(tmp_path)), channels=5))
    assert source.train.images.read(0).shape == (16, 16, 5)
    with pytest.raises(UserError, match=r"16 x 16 x 5; expected .* 1 or 3 channels, .* set dataset\.channels=C"):
        open_source(DatasetConfig(name="npz", root=str(npz(tmp_path))))
    with pytest.raises(UserError, match=r"16 x 16 x 5; expected N x H x W x C with dataset\.channels=4"):
        open_source(DatasetConfig(name="npz", root=str(npz(tmp_path)), channels=4))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["dataset.channels=0"], "dataset.channels=0: must be at least 1"),
        (
            ["dataset.channels=5"],
            "dataset.channels=5: dataset=fake has images of 1 or 3 channels; for other numbers use dataset=npz",
        ),
        (["+dataset.channels=5", "augment=strong"], "augment.saturation=0.4: needs 1 or 3 channels"),
        (["+dataset.channels=5", "augment.hue=0.1"], "augment.hue=0.1: needs 1 or 3 channels"),
        (["+dataset.channels=2", "augment=trivial"], "augment.policy=trivial: needs 1 or 3 channels"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, overrides: list[str], said: str) -> None:
    arrays = ["dataset=npz", f"dataset.root={npz(tmp_path)}"] if overrides[0].startswith("+") else []
    with pytest.raises(UserError) as caught:
        tiny(*arrays, overrides[0].removeprefix("+"), *overrides[1:])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# --- views --------------------------------------------------------------------------------------------------------

GEOMETRY = {"flip": 0.5, "crop_area": [0.3, 1.0], "rotate": 20.0, "shear": 10.0, "translate": 0.1}


def test_channels_are_turned_and_brightened_one_by_one() -> None:
    parts = {**GEOMETRY, "brightness": 0.4, "cutmix": 1.0, "erase": 0.5}
    together = views(MULTISPECTRAL, **parts)
    assert together.shape == (10, 5, 16, 16)
    for channel in range(5):
        alone = views(MULTISPECTRAL[..., channel : channel + 1], **parts)
        torch.testing.assert_close(together[:, channel : channel + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivial", "autoaugment_cifar"])
def test_a_gray_view_is_a_channel_of_its_rgb_view(policy: str) -> None:
    """So saturation, hue and the policies' colours change nothing in either."""
    gray = MULTISPECTRAL[..., :1]
    parts = {**GEOMETRY, "contrast": 0.4, "saturation": 0.4, "hue": 0.5, "policy": policy}
    rgb = views(np.repeat(gray, 3, axis=3), **parts)
    # The weights that torchvision takes for gray sum to 0.9999; equalising and posterising make steps of that.
    assert ((views(gray, **parts) - rgb[:, :1]).abs() > 2e-3).float().mean() < 0.01


def test_contrast_of_many_channels_is_against_their_mean() -> None:
    plain, changed = views(MULTISPECTRAL), views(MULTISPECTRAL, contrast=0.3)
    mean = plain.mean(dim=(1, 2, 3), keepdim=True)
    inside = (changed > 0) & (changed < 1)
    factors = (changed - mean) / (plain - mean)
    for row in range(10):
        found = factors[row][inside[row] & ((plain[row] - mean[row]).abs() > 0.1)]
        torch.testing.assert_close(found, found.median().expand_as(found), rtol=0, atol=1e-4)
        assert 0.7 <= float(found.median()) <= 1.3


@pytest.mark.parametrize(("memory_bytes", "kind"), [(1e9, MemoryStore), (0.0, StreamStore)])
def test_memory_and_stream_hold_all_channels(memory_bytes: float, kind: type) -> None:
    large = MULTISPECTRAL.repeat(3, axis=1).repeat(3, axis=2)  # 48 px, which neither keeps whole
    together = loader(ArrayImages(large, "test"), 5, memory_bytes)
    assert isinstance(together.store, kind)
    (batch,) = together.plain()
    for channel in range(5):
        (alone,) = loader(ArrayImages(large[..., channel : channel + 1], "test"), 1, memory_bytes).plain()
        assert alone.images.std() > 0.1
        assert torch.equal(batch.images[:, channel : channel + 1], alone.images)


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@torch.no_grad()
def test_a_model_normalises_and_is_exported_with_its_channels(name: str, channels: int, tmp_path: Path) -> None:
    backbone = build(ModelConfig(name), Inputs(4, 32, channels), "student").eval()
    settings = timm.get_pretrained_cfg(name)
    assert settings is not None
    for buffer, values in ((backbone.mean, settings.mean), (backbone.std, settings.std)):
        assert buffer.shape == (1, channels, 1, 1)
        torch.testing.assert_close(buffer, torch.full_like(buffer, float(np.mean(values))))
    export(backbone, tmp_path, ("a", "b", "c", "d"), 1.0)
    exported = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert exported.pretrained_cfg["input_size"] == (channels, 32, 32)
    assert len(exported.pretrained_cfg["mean"]) == channels
    images = torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exported(images), backbone.net(images))
    again = build(ModelConfig(f"local-dir:{tmp_path}"), Inputs(4, 32, channels), "student").eval()
    load_into(again, read_weights(str(tmp_path)), "student")
    torch.testing.assert_close(again(images).logits, backbone(images).logits, rtol=0, atol=1e-6)


@pytest.mark.fault("R61")
def test_weights_of_other_channels_are_refused_with_the_key(tmp_path: Path) -> None:
    export(build(ModelConfig("test_resnet"), Inputs(4, 32, 1), "student"), tmp_path, ("a", "b", "c", "d"), 1.0)
    with pytest.raises(UserError, match=r"16 x 1 x 3 x 3, not 16 x 3 x 3 x 3\); set dataset\.channels=1"):
        load_into(build(ModelConfig("test_resnet"), Inputs(4, 32), "student"), read_weights(str(tmp_path)), "student")


def test_whoever_is_described_sees_the_channels_of_the_data() -> None:
    gray, rgb = (describe(ModelConfig("resnet18"), Inputs(10, 32, channels), "student") for channels in (1, 3))
    assert rgb.params - gray.params == 2 * 7 * 7 * 64
    assert rgb.macs - gray.macs == 2 * 7 * 7 * 64 * 16 * 16
    config = tiny("dataset.channels=1", "generations=2", "teacher=ensemble")
    gray = Inputs(4, 32, 1)
    student = describe(config.student, gray, "student")
    assert [spec.channels for spec in KINDS["fixed"].describe(config, student, gray)] == [1, 1]


# --- commands -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 5])
def test_a_run_from_the_data_to_the_exported_model(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["dataset=npz", f"dataset.root={npz(tmp_path, MULTISPECTRAL[..., :channels])}"]
    arguments = [*data, f"dataset.channels={channels}", "teacher.name=test_resnet", "student.name=test_efficientnet"]
    arguments += [*QUICK, "dataset.image_size=32", "out=run", "augment=light", "trainer.channels_last=null"]
    assert cli.run(["train", *arguments]) == 0, capsys.readouterr().err
    result = read_result(tmp_path / "run")
    assert result is not None
    assert top1_of(result.baseline) is not None
    assert result.student is not None
    capsys.readouterr()
    for what in ("run", "run/student", "run/checkpoints/last.pt"):
        assert cli.run(["eval", f"checkpoint={what}", "format=json", *QUICK[:2]]) == 0, capsys.readouterr().err
        numbers = json.loads(capsys.readouterr().out)
        student = result.student
        assert [numbers[key] for key in ("top1", "nll", "ece")] == [student.top1, student.nll, student.ece]
    exported = timm.create_model("local-dir:run/student", pretrained=True).eval()
    classes = (tmp_path / "run" / "classes.txt").read_text().splitlines()
    trained = timm.create_model("test_efficientnet", num_classes=len(classes), in_chans=channels).eval()
    trained.load_state_dict(last(tmp_path / "run")["student"])
    images = torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(exported(images), trained(images))
    for command in (["show", "views"], ["bench"]):
        assert cli.run([*command, *(word for word in arguments if not word.startswith("out="))]) == 0
    with Image.open("views.png") as sheet:
        colours = np.asarray(sheet.convert("RGB")).astype(int)
    assert (np.ptp(colours, axis=2).max() == 0) == (channels == 1)

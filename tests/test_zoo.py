"""The zoo of CIFAR nets: the sizes of published tables, the names of published weights, and what terms ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distillcli.config.model_names import model_names
from distillcli.config.schema import ModelConfig
from distillcli.models.backbone import Backbone, build, describe
from distillcli.models.inference import for_inference
from distillcli.models.matching import load_into
from distillcli.models.weights import read_weights
from distillcli.runtime import seed_everything
from distillcli.types import Inputs, Taps

# 100 classes, 32 x 32: parameters, and millions of multiply-accumulates as tables round them.
SIZES = {
    "resnet8": (83_892, 12.5),
    "resnet14": (181_108, 26.7),
    "resnet20": (278_324, 40.8),
    "resnet32": (472_756, 69.1),
    "resnet44": (667_188, 97.4),
    "resnet56": (861_620, 125.8),
    "resnet110": (1_736_564, 253.2),
    "resnet8x4": (1_233_540, 177.1),
    "resnet32x4": (7_433_860, 1083.0),
    "wrn_16_1": (180_916, 26.7),
    "wrn_16_2": (703_284, 101.1),
    "wrn_40_1": (569_780, 83.3),
    "wrn_40_2": (2_255_156, 327.6),
    "vgg8": (3_965_028, 96.2),
    "vgg11": (9_277_284, 209.4),
    "vgg13": (9_462_180, 284.9),
    "vgg16": (14_774_436, 398.2),
    "vgg19": (20_086_692, 511.4),
    "resnet50": (23_705_252, 1298.0),
    "mobilenetv2_half": (812_836, 6.5),
    "shufflenetv1": (949_258, 38.7),
    "shufflenetv2": (1_355_528, 44.5),
}
SMALL = ["resnet8", "wrn_16_1", "wrn_16_2", "vgg8", "mobilenetv2_half", "shufflenetv1", "shufflenetv2"]
PLAIN = Inputs(100, 32)


def built(name: str, inputs: Inputs = PLAIN) -> Backbone:
    """In eval mode, its norms with statistics of their own, so that leaving one out shows."""
    seed_everything(0, name)
    backbone = build(ModelConfig(f"cifar_{name}"), inputs, "student")
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            torch.nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            torch.nn.init.normal_(module.bias, std=0.1)
    return backbone.eval()


def images(size: int = 32) -> torch.Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_the_zoo_is_the_published_tables() -> None:
    assert {name for name in model_names() if name.startswith("cifar_")} == {f"cifar_{name}" for name in SIZES}
    for name, (params, macs) in SIZES.items():
        spec = describe(ModelConfig(f"cifar_{name}"), PLAIN, "student")
        assert spec.params == params, name
        assert round(spec.macs / 1e6, 1 if macs < 1000 else 0) == macs, name
        assert spec.mean == (0.5071, 0.4867, 0.4408)
        assert spec.std == (0.2675, 0.2565, 0.2761)


@pytest.mark.parametrize("name", SMALL)
def test_stages_and_a_fast_copy_change_no_answer(name: str) -> None:
    backbone = built(name)
    stages = tuple(range(len(backbone.spec.stage_shapes)))
    with torch.no_grad():
        plain = backbone(images()).logits
        tapped = backbone(images(), Taps(stages, embedding=True))
        fast = for_inference(backbone, "fp32")(images()).logits
    torch.testing.assert_close(tapped.logits, plain)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    assert [tuple(tapped.stages[stage].shape[1:]) for stage in stages] == [*backbone.spec.stage_shapes]
    assert tapped.embedding.shape == (3, backbone.spec.embedding_width)
    assert plain.std() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_learns(name: str) -> None:
    backbone = built(name, Inputs(4, 28)).train()
    backbone(images(28)).logits.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in backbone.net.parameters())
    assert built(name, Inputs(0, 32))(images()).logits.shape == (3, 0)


def norm(name: str) -> Iterator[str]:
    yield from (f"{name}.{value}" for value in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))


def names_of_resnet8x4() -> Iterator[str]:
    yield "conv1.weight"
    yield from norm("bn1")
    for stage in (1, 2, 3):
        block = f"layer{stage}.0"
        yield from (f"{block}.conv1.weight", f"{block}.conv2.weight", f"{block}.downsample.0.weight")
        for inner in ("bn1", "bn2", "downsample.1"):
            yield from norm(f"{block}.{inner}")
    yield from ("fc.weight", "fc.bias")


def names_of_wrn_16_2() -> Iterator[str]:
    yield "conv1.weight"
    for stage in (1, 2, 3):
        yield f"block{stage}.layer.0.convShortcut.weight"
        for block in (f"block{stage}.layer.{number}" for number in (0, 1)):
            yield from (f"{block}.conv1.weight", f"{block}.conv2.weight", *norm(f"{block}.bn1"), *norm(f"{block}.bn2"))
    yield from (*norm("bn1"), "fc.weight", "fc.bias")


def names_of_vgg13() -> Iterator[str]:
    for block in range(5):
        for conv in (0, 3):  # norm and activation follow; the last activation has no place
            yield from (f"block{block}.{conv}.weight", f"block{block}.{conv}.bias", *norm(f"block{block}.{conv + 1}"))
    yield from ("classifier.weight", "classifier.bias")


def names_of_resnet50() -> Iterator[str]:
    yield from ("conv1.weight", *norm("bn1"), "linear.weight", "linear.bias")
    for stage, count in zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True):
        yield from (f"layer{stage}.0.shortcut.0.weight", *norm(f"layer{stage}.0.shortcut.1"))
        for block in (f"layer{stage}.{number}" for number in range(count)):
            for number in (1, 2, 3):
                yield from (f"{block}.conv{number}.weight", *norm(f"{block}.bn{number}"))


def names_of_mobilenetv2_half() -> Iterator[str]:
    for outer in ("conv1", "conv2"):
        yield from (f"{outer}.0.weight", *norm(f"{outer}.1"))
    for group, count in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for block in (f"blocks.{group}.{number}.conv" for number in range(count)):
            for conv in (0, 3, 6):
                yield from (f"{block}.{conv}.weight", *norm(f"{block}.{conv + 1}"))
    yield from ("classifier.0.weight", "classifier.0.bias")


def names_of_shufflenetv1() -> Iterator[str]:
    yield from ("conv1.weight", *norm("bn1"), "linear.weight", "linear.bias")
    for stage, count in zip((1, 2, 3), (4, 8, 4), strict=True):
        for unit in (f"layer{stage}.{number}" for number in range(count)):
            for number in (1, 2, 3):
                yield from (f"{unit}.conv{number}.weight", *norm(f"{unit}.bn{number}"))


def names_of_shufflenetv2() -> Iterator[str]:
    yield from ("conv1.weight", *norm("bn1"), "conv2.weight", *norm("bn2"), "linear.weight", "linear.bias")
    for stage, count in zip((1, 2, 3), (4, 8, 4), strict=True):
        for unit in range(count):
            for number in range(1, 4 if unit else 6):
                name = f"layer{stage}.{unit}"
                yield from (f"{name}.conv{number}.weight", *norm(f"{name}.bn{number}"))


PUBLISHED = {
    "resnet8x4": names_of_resnet8x4,
    "wrn_16_2": names_of_wrn_16_2,
    "vgg13": names_of_vgg13,
    "resnet50": names_of_resnet50,
    "mobilenetv2_half": names_of_mobilenetv2_half,
    "shufflenetv1": names_of_shufflenetv1,
    "shufflenetv2": names_of_shufflenetv2,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_have_the_names_that_both_projects_give_them(name: str) -> None:
    with torch.device("meta"):
        net = build(ModelConfig(f"cifar_{name}"), PLAIN, "student").net
    assert set(net.state_dict()) == set(PUBLISHED[name]())


def test_a_checkpoint_of_mdistiller_loads(tmp_path: Path) -> None:
    source, target = built("resnet8"), build(ModelConfig("cifar_resnet8"), PLAIN, "teacher").eval()
    state = {f"module.{name}": value for name, value in source.net.state_dict().items()}
    torch.save({"epoch": 240, "model": state, "best_acc": 60.1}, tmp_path / "student_best")
    load_into(target, read_weights(str(tmp_path / "student_best")), "teacher")
    with torch.no_grad():
        assert torch.equal(target(images()).logits, source(images()).logits)

"""Teachers whose classes are others, more, or in another order than those of the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distillcli.config.schema import ModelConfig
from distillcli.distillation.teaching import find_teacher
from distillcli.errors import UserError
from distillcli.models import imagenet
from distillcli.models.backbone import Backbone, build
from distillcli.models.class_names import columns, teacher_classes
from distillcli.models.ensemble import Ensemble
from distillcli.models.imagenet import open_pretrained, pretrained_classes
from distillcli.models.matching import load_into, select_classes
from distillcli.models.weights import Weights
from distillcli.runs.folder import write_text
from distillcli.runtime import seed_everything
from distillcli.teachers.frozen import open_teacher
from distillcli.types import LOGITS_ONLY, Inputs, Taps
from tests.tiny import CPU, Watch, last, open_tiny, tiny, train

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
KNOWN = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on six classes."""
    folder = tmp_path_factory.mktemp("six") / "run"
    train(tiny("dataset.classes=6", "student.name=test_resnet", "distill=none", "trainer.epochs=1"), folder)
    return folder


def whole(run: Path) -> Backbone:
    backbone = build(ModelConfig("test_resnet"), Inputs(6, 32), "teacher").eval()
    backbone.net.load_state_dict(last(run)["student"])
    return backbone


def patterns(*numbers: int) -> tuple[str, ...]:
    return tuple(f"pattern {number}" for number in numbers)


@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (5, 4, 3, 2, 1, 0), (4, 1)])
@torch.no_grad()
def test_a_teacher_answers_with_the_columns_of_the_datas_classes(six: Path, numbers: tuple[int, ...]) -> None:
    teacher = open_teacher(tiny(), [str(six)], patterns(*numbers), Taps((-1,), True), CPU)
    images = IMAGES.to(memory_format=torch.channels_last)
    answer, reference = teacher.backbone(images, teacher.taps), whole(six)(IMAGES, teacher.taps)
    torch.testing.assert_close(answer.logits, reference.logits[:, list(numbers)], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(answer.embedding, reference.embedding, rtol=1e-5, atol=1e-6)
    # Renormalised: the probabilities given that one of these classes is shown.
    every = np.exp(reference.logits.double().numpy())[:, numbers]
    np.testing.assert_allclose(answer.logits.softmax(1), every / every.sum(1, keepdims=True), rtol=1e-4)
    assert teacher.backbone.spec.classes == len(numbers)


def test_a_checkpoint_of_more_classes_serves_without_a_fit(six: Path, tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}", f"teacher.checkpoint={six}")
    watch = Watch()
    _, runs = find_teacher(config, open_tiny(config), LOGITS_ONLY, watch.session)
    assert (runs, watch.labels) == ([None], [])


def test_a_missing_class_is_named(six: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_teacher(tiny(), [str(six)], (*patterns(0, 1), "zebra"), LOGITS_ONLY, CPU)
    message = str(caught.value)
    assert message.startswith(f"teacher.checkpoint={six}")
    assert "its classes are not the 3 of the data but 6 others" in message
    assert "'zebra'" in message
    assert "class_map" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("map.json", json.dumps({"stripes": "pattern 4", "dots": "pattern 2"})),
        ("map.csv", 'folder,class\nstripes,pattern 4\n"dots",pattern 2\n'),
        ("plain.csv", "stripes,pattern 4\ndots,pattern 2\n"),
        ("map.txt", "stripes\tpattern 4\n\ndots\tpattern 2\n"),
    ],
)
@torch.no_grad()
def test_other_names_are_mapped_by_a_file(six: Path, tmp_path: Path, file: str, text: str) -> None:
    write_text(tmp_path / file, text)
    config = tiny(f"teacher.checkpoint={six}", f"teacher.class_map={tmp_path / file}")
    teacher = open_teacher(config, [str(six)], ("dots", "pattern 0", "stripes"), LOGITS_ONLY, CPU)
    torch.testing.assert_close(
        teacher.backbone(IMAGES).logits, whole(six)(IMAGES).logits[:, [2, 0, 4]], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stripe,pattern 4\n", "'stripe' is no class"),
        ("stripes\n", "'stripes' is not a name and its class"),
        ("stripes,a,b\n", "'stripes,a,b' is not"),
    ],
)
def test_a_map_that_cannot_be_right_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    write_text(tmp_path / "map.csv", text)
    with pytest.raises(UserError, match=said) as caught:
        teacher_classes(str(tmp_path / "map.csv"), ("stripes", "dots"), "teacher.class_map")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["teacher.class_map=/no/such.csv", "teacher.pretrained=true"],
            "teacher.class_map=/no/such.csv: does not exist",
        ),
        (["teacher.class_map=pyproject.toml"], "teacher.checkpoint=PATH"),
        (["teacher=ensemble", "teacher.members=[{name: test_vit, temperature: 0}]"], "members[0].temperature=0"),
    ],
)
def test_mistakes_are_refused_before_torch_loads(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny(*overrides)
    assert said in str(caught.value)


def test_columns_are_found_by_name_and_never_twice() -> None:
    assert columns(("dog", "ant"), KNOWN) == [3, 0]
    assert columns(KNOWN, KNOWN) == [0, 1, 2, 3, 4]
    for wanted, known in ((("dog", "fox"), KNOWN), (("dog", "dog"), KNOWN), (("dog",), ("dog", "dog"))):
        with pytest.raises(KeyError):
            columns(wanted, known)


@pytest.mark.parametrize("name", ["test_vit", "levit_128s", "deit_tiny_distilled_patch16_224", "convnext_atto"])
@torch.no_grad()
def test_every_head_of_a_model_is_narrowed(name: str) -> None:
    seed_everything(0, name)
    full = build(ModelConfig(name), Inputs(5, 64), "teacher").eval()
    narrow = build(ModelConfig(name), Inputs(2, 64), "teacher").eval()
    weights = Weights(full.net.state_dict(), "full", classes=KNOWN)
    load_into(narrow, select_classes(weights, narrow, ("dog", "ant"), "teacher.checkpoint"), "teacher")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(narrow(images).logits, full(images).logits[:, [3, 0]], rtol=1e-5, atol=1e-5)


IMAGENETTE = ("n01440764", "n02102040", "n02979186")


@pytest.mark.parametrize(
    "wanted", [IMAGENETTE, ("tench, Tinca tinca", "cassette player"), ("tench", "English springer")]
)
def test_names_of_imagenet_are_wordnet_ids_descriptions_or_first_synonyms(wanted: tuple[str, ...]) -> None:
    names = pretrained_classes("resnet18", wanted)
    assert names is not None
    assert len(names) == 1000
    assert columns(wanted, names)[0] == 0


@pytest.mark.parametrize("wanted", [("crane",), ("tench", "n02102040"), ("pattern 0",)])
def test_names_that_are_ambiguous_mixed_or_unknown_are_no_match(wanted: tuple[str, ...]) -> None:
    assert pretrained_classes("resnet18", wanted) is None


@torch.no_grad()
def test_weights_for_imagenet_answer_for_some_of_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Backbone] = []

    def without_network(model: ModelConfig, inputs: Inputs, key: str) -> Backbone:
        made.append(build(ModelConfig(model.name), inputs, key))
        return made[-1]

    monkeypatch.setattr(imagenet, "build", without_network)
    backbone = open_pretrained(ModelConfig("test_resnet"), IMAGENETTE, Inputs(3, 32), "teacher").eval()
    torch.testing.assert_close(
        backbone(IMAGES).logits, made[0].eval()(IMAGES).logits[:, [0, 217, 482]], rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
def test_each_member_has_its_own_temperature() -> None:
    seed_everything(0, "members")
    members = [build(ModelConfig("test_resnet"), Inputs(5, 32), "teacher").eval() for _ in range(2)]
    answers = [member(IMAGES).logits.double().numpy() / heat for member, heat in zip(members, (2.0, 0.5), strict=True)]
    expected = sum(np.exp(answer) / np.exp(answer).sum(1, keepdims=True) for answer in answers) / 2
    answer = Ensemble(members, [1.0, 1.0], [2.0, 0.5], "probabilities")(IMAGES).logits.softmax(1)
    np.testing.assert_allclose(answer, expected, rtol=1e-5)

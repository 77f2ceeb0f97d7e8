"""A teacher that is given is asked before anything learns from it: chance, another order, and names for its outputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Distill
from numpy.typing import NDArray

from distillcli.distillation import proving
from distillcli.distillation.proving import judge, natural_order, prove_given
from distillcli.errors import UserError
from distillcli.runs.folder import write_text
from distillcli.sources.label_files import read_names
from distillcli.teachers.frozen import open_teacher
from distillcli.types import LOGITS_ONLY
from distillcli.views.loader import Data
from tests.tiny import CPU, Watch, last, open_tiny, tiny, train

Numbers = NDArray[np.int64]
GIVEN = ("dataset.samples=256", "trainer.epochs=3")


def answers_of(labels: Numbers, classes: int, accuracy: float, seed: int = 0) -> Numbers:
    """Right for a share of the images, and any class for the others."""
    random = np.random.RandomState(seed)
    guesses = random.randint(classes, size=len(labels))
    return np.where(random.rand(len(labels)) < accuracy, labels, guesses)


def labels_of(images: int, classes: int) -> Numbers:
    return np.random.RandomState(1).permutation(np.arange(images) % classes)


# --- the verdict ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("images", "classes"), [(150, 2), (60, 3), (300, 10), (500, 100), (5000, 1000)])
def test_a_teacher_that_guesses_knows_nothing_and_is_not_called_reordered(images: int, classes: int, seed: int) -> None:
    labels = labels_of(images, classes)
    verdict = judge(labels, answers_of(labels, classes, 0.0, seed), classes)
    assert verdict.reordered is None
    assert verdict.knows_nothing or verdict.right > 1.3 * verdict.chance  # by luck, one time in a hundred


@pytest.mark.parametrize("accuracy", [0.5, 0.8, 1.0])
@pytest.mark.parametrize(
    ("images", "classes"),
    [(1, 2), (2, 2), (4, 2), (8, 2), (12, 3), (20, 10), (40, 2), (300, 10), (500, 100), (5000, 1000), (5, 1)],
)
def test_a_teacher_that_knows_something_is_never_accused(images: int, classes: int, accuracy: float) -> None:
    labels = labels_of(images, classes)
    verdict = judge(labels, answers_of(labels, classes, accuracy), classes)
    assert not verdict.knows_nothing
    assert verdict.reordered is None


def test_always_the_frequent_class_is_no_knowledge() -> None:
    labels = np.array([0] * 270 + [1] * 30)
    verdict = judge(labels, np.zeros(300, np.int64), 2)
    assert (verdict.right, verdict.chance) == (pytest.approx(90), pytest.approx(90))
    assert verdict.knows_nothing
    assert not judge(labels, answers_of(labels, 2, 0.9), 2).knows_nothing


@pytest.mark.parametrize(("images", "classes"), [(40, 2), (60, 10), (300, 10), (500, 100), (5000, 1000)])
def test_outputs_in_another_order_are_told_from_noise(images: int, classes: int) -> None:
    labels = labels_of(images, classes)
    order = np.roll(np.arange(classes), 1)
    verdict = judge(labels, order[answers_of(labels, classes, 0.9)], classes)
    assert verdict.right < 20
    assert verdict.reordered is not None
    assert verdict.reordered > 80


def test_part_of_the_outputs_in_another_order_is_found_although_it_is_far_from_chance() -> None:
    labels = labels_of(300, 10)
    order = np.array([0, 1, 2, 3, 4, 5, 9, 6, 7, 8])
    verdict = judge(labels, order[answers_of(labels, 10, 0.95)], 10)
    assert not verdict.knows_nothing
    assert verdict.right < 65
    assert verdict.reordered is not None


@pytest.mark.parametrize(
    ("names", "is_natural"),
    [(["1", "2", "10"], True), (["class2", "class10"], True), (["1", "10", "2"], False), (["a", "b"], True)],
)
def test_numbers_in_names_are_ordered_by_value(names: list[str], is_natural: bool) -> None:
    assert (sorted(names, key=natural_order) == names) == is_natural


# --- a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Of a test_resnet that has learned the four classes."""
    folder = tmp_path_factory.mktemp("fitted") / "run"
    train(tiny("student.name=test_resnet", "distill=none", "baseline=false", *GIVEN), folder)
    found: dict[str, torch.Tensor] = last(folder)["student"]
    return found


@pytest.fixture(scope="module")
def data() -> Data:
    return open_tiny(tiny(*GIVEN))


ORDER = [1, 2, 3, 0]  # of the outputs in another order


def saved(folder: Path, weights: dict[str, torch.Tensor], what: str) -> Path:
    """A plain state dict: as it was trained, with its outputs in another order, or without what it learned."""
    content = dict(weights)
    for name in ("fc.weight", "fc.bias"):
        if what == "reordered":
            content[name] = content[name][ORDER]
        if what == "random":
            content[name] = torch.randn(content[name].shape, generator=torch.Generator().manual_seed(0))
    torch.save(content, folder / f"{what}.pth")
    return folder / f"{what}.pth"


def test_a_teacher_that_is_right_passes(weights: dict[str, torch.Tensor], data: Data, tmp_path: Path) -> None:
    path, watch = saved(tmp_path, weights, "sound"), Watch()
    assert prove_given(tiny(f"teacher.checkpoint={path}", *GIVEN), data, watch.session) == []
    assert watch.warnings == []


@pytest.mark.fault("F1.1", "R9")
@pytest.mark.parametrize("member", [False, True])
def test_outputs_in_another_order_stop_the_run_with_both_numbers(
    member: bool, weights: dict[str, torch.Tensor], data: Data, tmp_path: Path
) -> None:
    path, sound = saved(tmp_path, weights, "reordered"), saved(tmp_path, weights, "sound")
    members = f"teacher.members=[{{name: test_resnet, checkpoint: {sound}}}, {{name: test_resnet, checkpoint: {path}}}]"
    given = ("teacher=ensemble", members) if member else (f"teacher.checkpoint={path}",)
    key = "teacher.members[1]" if member else "teacher"
    with pytest.raises(UserError) as caught:
        prove_given(tiny(*given, *GIVEN), data, Watch().session)
    message = str(caught.value)
    assert message.startswith(f"{key}.checkpoint={path}: ")
    assert " % with its outputs reordered: its classes are in another order than those of the data" in message
    assert f"name its classes in its own order with {key}.classes=FILE; or insist with teacher.trust=true" in message
    assert "\n" not in message
    watch = Watch()
    insisting = prove_given(tiny(*given, *GIVEN, "teacher.trust=true"), data, watch.session)
    assert watch.warnings == insisting
    assert len(insisting) == 1


@pytest.mark.fault("F1.1")
@pytest.mark.parametrize("file", ["names.txt", "names.json"])
def test_a_file_of_names_puts_the_outputs_in_order(
    file: str, weights: dict[str, torch.Tensor], data: Data, tmp_path: Path
) -> None:
    path, names = saved(tmp_path, weights, "reordered"), [f"pattern {number}" for number in ORDER]
    text = "\n".join(names) + "\n" if file.endswith(".txt") else str(names).replace("'", '"')
    write_text(tmp_path / file, text)
    classes = f"teacher.classes={tmp_path / file}"
    config = tiny(f"teacher.checkpoint={path}", classes, *GIVEN)
    assert prove_given(config, data, Watch().session) == []
    teacher = open_teacher(config, [str(path)], data.source.classes, LOGITS_ONLY, CPU)
    torch.testing.assert_close(teacher.backbone.net.fc.weight, weights["fc.weight"])  # type: ignore[union-attr]
    # Together with other names for the classes of the data, and for fewer classes than it has.
    write_text(tmp_path / "map.csv", "stripes,pattern 2\n")
    mapped = tiny(f"teacher.checkpoint={path}", classes, f"teacher.class_map={tmp_path / 'map.csv'}")
    two = open_teacher(mapped, [str(path)], ("stripes", "pattern 0"), LOGITS_ONLY, CPU)
    torch.testing.assert_close(two.backbone.net.fc.bias, weights["fc.bias"][[2, 0]])  # type: ignore[union-attr]


@pytest.mark.fault("F1.1")
def test_a_given_teacher_that_knows_nothing_stops_the_run(
    weights: dict[str, torch.Tensor], data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, weights, "random")
    generator = np.random.RandomState(0)
    monkeypatch.setattr(proving, "_answers", lambda _, asked, __: generator.randint(4, size=len(asked.shown)))
    big = dataclasses.replace(data, evaluation=data.train)
    with pytest.raises(UserError, match=r"no better than chance \(2\d\.\d %\), so nothing can be learned from it"):
        prove_given(tiny(f"teacher.checkpoint={path}", *GIVEN), big, Watch().session)


def test_without_labels_nobody_is_accused(weights: dict[str, torch.Tensor], data: Data, tmp_path: Path) -> None:
    unknown = dataclasses.replace(data.val, labels=torch.full_like(data.val.labels, -1))
    blind = dataclasses.replace(data, val=unknown, evaluation=unknown)
    path = saved(tmp_path, weights, "reordered")
    assert prove_given(tiny(f"teacher.checkpoint={path}", *GIVEN), blind, Watch().session) == []


@pytest.mark.fault("F1.1")
def test_numbered_classes_and_a_nameless_teacher_are_warned_of(
    weights: dict[str, torch.Tensor], data: Data, tmp_path: Path
) -> None:
    path, watch = saved(tmp_path, weights, "sound"), Watch()
    source = dataclasses.replace(data.source, classes=("1", "2", "3", "10"))
    config = tiny(f"teacher.checkpoint={path}", *GIVEN)
    (warning,) = prove_given(config, dataclasses.replace(data, source=source), watch.session)
    assert "(1, 2, 3, ... here; as text 1, 10, 2, ...); name them with teacher.classes=FILE" in warning
    assert watch.warnings == [warning]


@pytest.mark.parametrize(
    ("text", "said"),
    [("ant\n\nbee\n", "name 2 of 3 is empty"), ("", "holds no name"), ("ant\n \n", "name 2 of 2 is empty")],
)
def test_names_that_are_missing_are_one_line(text: str, said: str, tmp_path: Path) -> None:
    write_text(tmp_path / "names.txt", text)
    with pytest.raises(UserError, match=said) as caught:
        read_names("teacher.classes", tmp_path / "names.txt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teacher.classes=/no/such.txt"], "teacher.classes=/no/such.txt: does not exist"),
        (["teacher.classes=pyproject.toml"], "set teacher.checkpoint=PATH, and keep teacher.fit.mode=auto"),
        (
            ["teacher.classes=pyproject.toml", "teacher.head=false", "teacher.checkpoint=."],
            "a teacher without a head has no classes",
        ),
        (
            ["teacher=ensemble", "teacher.members=[{name: test_vit, classes: pyproject.toml}]"],
            "teacher.members[0].classes=pyproject.toml: it names the classes of a checkpoint",
        ),
    ],
)
def test_a_file_of_names_without_a_checkpoint_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny(*overrides)
    assert said in str(caught.value)


def test_the_wrong_number_of_names_is_refused_with_both(
    weights: dict[str, torch.Tensor], data: Data, tmp_path: Path
) -> None:
    path = saved(tmp_path, weights, "sound")
    write_text(tmp_path / "names.txt", "ant\nbee\n")
    config = tiny(f"teacher.checkpoint={path}", f"teacher.classes={tmp_path / 'names.txt'}")
    with pytest.raises(UserError, match=r"names\.txt: names 2 classes, and the classifier in .* has 4"):
        open_teacher(config, [str(path)], data.source.classes, LOGITS_ONLY, CPU)


@pytest.mark.fault("F1.1")
def test_the_command_stops_before_the_first_step(
    weights: dict[str, torch.Tensor], distill: Distill, tmp_path: Path
) -> None:
    path = saved(tmp_path, weights, "reordered")
    given = ("train", "experiment=smoke", "trainer.device=cpu", "trainer.epochs=1", "baseline=false", *GIVEN[:1])
    answer = distill(*given, f"teacher.checkpoint={path}", "out=run")
    assert answer.code == 2
    assert "outputs reordered" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not list(tmp_path.rglob("checkpoints"))

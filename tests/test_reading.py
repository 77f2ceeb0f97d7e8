"""The files of a run: whatever is wrong with one ends in one line that names it, or in a way to go on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Distill
from tiny import CPU, STEPS, Watch, digest, last, open_tiny, tiny, train
from wrong_values import WRONG, places, replaced

from distillcli.commands import show
from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.errors import Interrupted, UserError
from distillcli.formats.timm_folder import write as export
from distillcli.models.backbone import build, describe
from distillcli.models.card import Card, check_model, read_card
from distillcli.models.weights import read_weights
from distillcli.runs.checksums import SUMS, compare, recorded
from distillcli.runs.folder import describe_folder, read_metrics, rewind_metrics
from distillcli.runs.reading import check_archive, read_config, read_json, read_yaml
from distillcli.runs.result import Result, read_result, write_result
from distillcli.teachers.cached import with_cache
from distillcli.teachers.frozen import FrozenTeacher, Teacher
from distillcli.types import Inputs

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "binary": bytes(range(256)),
    "zeros": bytes(4096),
    "list": b"[1, 2]",
    "number": b"3",
    "null": b"null",
    "torn": b'{"a": {"b": ',
    "latin": "a: résumé".encode("latin-1"),
    "deep": b"[" * 100_000,
    "deep mappings": b'{"a":' * 100_000,
    "number as a name": b"1: 2",
}


@pytest.mark.fault("F4.6", "R14")
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_whatever_a_file_holds_is_one_line(read: Callable[[Path], Any], content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for damage in (lambda: path.write_bytes(content), lambda: (path.unlink(), path.mkdir()), lambda: path.rmdir()):
        damage()
        with pytest.raises(UserError, match=r"file is broken: \S") as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


@pytest.mark.fault("F7.1")
def test_yaml_does_not_expand(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text, reason in ((BOMB, "more than 50,000 values"), ("a: &a {b: *a}", "the anchor a contains itself")):
        path.write_text(text)
        with pytest.raises(UserError, match=f"config.yaml is broken: .*{reason}"):
            read_yaml(path)
    path.write_text("seed: ${oc.env:HOME}")
    with pytest.raises(UserError, match="interpolations"):
        read_config(tmp_path)


@pytest.mark.fault("F4.6")
def test_a_config_of_a_run_has_the_types_of_the_schema(tmp_path: Path) -> None:
    path, whole = tmp_path / "config.yaml", yaml.safe_dump(dataclasses.asdict(tiny()))
    for text in ("seed: many", "trainer: 3", "trainer: [1]", "unknown: 1", "dataset: {image_size: {}}", "seed: .nan"):
        path.write_text(f"{whole}\n{text}")  # the last of two values counts
        with pytest.raises(UserError):
            read_config(tmp_path)
    path.write_text(f"{whole}\nseed: 3")
    assert read_config(tmp_path) == dataclasses.replace(tiny(), seed=3)


@pytest.mark.fault("F4.6")
def test_rows_without_an_epoch_are_no_rows(tmp_path: Path) -> None:
    rows = ['{"epoch": 1}', '{"kind": "eval"}', "[]", "3", '{"epoch": "x"}', '{"epoch": 2}', '{"epo', '{"epoch": 3}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    assert read_metrics(tmp_path) == [{"epoch": 1}, {"epoch": 2}]
    rewind_metrics(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    assert read_metrics(tmp_path) == []


# --- checksums -----------------------------------------------------------------------------------------------------


def flip(path: Path, draws: random.Random) -> None:
    """One bit anywhere."""
    content = bytearray(path.read_bytes())
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)


def exported(folder: Path) -> Path:
    export(build(ModelConfig("test_resnet"), Inputs(5, 32), "student"), folder, tuple("abcde"), 0.9)
    return folder


@pytest.mark.fault("F1.8", "R15")
def test_any_flipped_bit_of_exported_weights_is_found(tmp_path: Path) -> None:
    whole, draws = exported(tmp_path / "student"), random.Random(0)
    for number in range(60):
        copy = shutil.copytree(whole, tmp_path / str(number))
        flip(copy / draws.choice(["config.json", "model.safetensors"]), draws)
        for reader in (read_weights, lambda what: describe(ModelConfig(f"local-dir:{what}"), Inputs(5, 32), "student")):
            with pytest.raises(UserError, match=str(number)):
                reader(str(copy))
        shutil.rmtree(copy)
    read_weights(str(whole))


def test_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    folder = exported(tmp_path / "student")
    done = subprocess.run(["sha256sum", "--strict", "-c", SUMS], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == "config.json: OK\nmodel.safetensors: OK\n"


def test_folders_without_checksums_are_read(tmp_path: Path) -> None:
    folder = exported(tmp_path / "student")
    for damage in (lambda: (folder / SUMS).write_bytes(b"\xff\x00"), lambda: (folder / SUMS).unlink()):
        damage()
        assert read_weights(str(folder)).classes == tuple("abcde")


def test_what_is_cut_short_has_no_checksum_rather_than_a_false_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with recorded(tmp_path, name):
            (tmp_path / name).write_text(name)
    with contextlib.suppress(KeyboardInterrupt), recorded(tmp_path, "a"):
        (tmp_path / "a").write_text("half")
        raise KeyboardInterrupt
    compare(tmp_path / "a")
    compare(tmp_path / "b")
    (tmp_path / "b").write_text("other")
    with pytest.raises(ValueError, match="SHA-256"):
        compare(tmp_path / "b")


@pytest.mark.fault("F6.15")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_exported_weights_have_the_mode_of_other_files(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        folder = exported(tmp_path / "student")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o666 & ~umask}


def test_a_result_with_a_flipped_bit_is_none(tmp_path: Path) -> None:
    result, draws = Result(status="ok", name="x" * 200, seed=7), random.Random(0)
    for _ in range(50):
        write_result(tmp_path, result)
        assert read_result(tmp_path) == result
        flip(tmp_path / "result.json", draws)
        assert read_result(tmp_path) is None


@pytest.mark.fault("F4.4")
def test_what_is_in_the_place_of_a_file_is_one_line(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a command meets it, here in the listing of the runs."""
    (tmp_path / "runs").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(show, "find_runs", lambda _: (tmp_path / "runs").read_text())
        write_result(tmp_path / "runs", Result(status="ok"))
        answer = distill("show", "runs")
    assert answer.code == 2
    assert answer.stderr.startswith(f"error: {tmp_path}/runs: Is a directory; ")


# --- cards ---------------------------------------------------------------------------------------------------------

HOSTILE: list[tuple[Any, Any]] = [
    ("hf-hub:somebody/something", {}),
    ("HF-HUB:somebody/something", {}),
    ("local-dir:/elsewhere", {}),
    ("timm/resnet18", {}),
    ("../resnet18", {}),
    ("no_such_model", {}),
    (["test_resnet"], {}),
    (None, {}),
    ("test_resnet", []),
    ("test_resnet", {"pretrained": True}),
    ("test_resnet", {"checkpoint_path": "/elsewhere"}),
    ("test_resnet", {"cache_dir": "/elsewhere"}),
    ("test_resnet", {"pretrained_cfg": {"file": "/elsewhere"}}),
    ("test_resnet", {"pretrained_cfg_overlay": {"url": "https://elsewhere"}}),
    ("test_resnet", {"features_only": True}),
    ("test_resnet", {"device": "meta"}),
    ("test_resnet", {"depth": 10**9}),
    ("test_resnet", {"depth": float("nan")}),
    ("reused_head", {"body": "hf-hub:somebody/something", "head": "test_resnet"}),
    ("reused_head", {"body": "test_resnet", "head": "local-dir:/elsewhere"}),
    ("reused_head", {"body": "test_resnet", "head": "test_resnet", "body_args": {"pretrained": True}}),
]


@pytest.mark.fault("F7.2")
@pytest.mark.parametrize(("architecture", "args"), HOSTILE)
def test_a_card_names_a_model_and_nothing_else(architecture: Any, args: Any, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError)):
        check_model(architecture, args)
    folder = exported(tmp_path / "student")
    (folder / SUMS).unlink()
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**card, "architecture": architecture, "model_args": args}))
    for reader in (read_weights, lambda what: describe(ModelConfig(f"local-dir:{what}"), Inputs(5, 32), "student")):
        with pytest.raises(UserError, match=r"config\.json is broken"):
            reader(str(folder))


@pytest.mark.fault("F4.6")
def test_no_type_in_a_card_is_a_traceback(tmp_path: Path) -> None:
    """Every value in turn is something else: refused by name, or a card of the right types."""
    folder = exported(tmp_path / "student")
    (folder / SUMS).unlink()
    card = json.loads((folder / "config.json").read_text())
    for node, key in list(places(card)):
        for wrong in WRONG:
            with replaced(node, key, wrong):
                (folder / "config.json").write_text(json.dumps(card))
            found = card_or_refusal(folder)
            if isinstance(found, Card):
                assert type(found.channels) is int
                assert found.classes is None or all(isinstance(name, str) for name in found.classes)
        missing = node.pop(key)
        (folder / "config.json").write_text(json.dumps(card))
        card_or_refusal(folder)
        node.insert(key, missing) if isinstance(node, list) else node.update({key: missing})


def card_or_refusal(folder: Path) -> Card | str:
    try:
        return read_card(folder)
    except UserError as error:
        refusal = str(error)
    assert "config.json is broken" in refusal
    return refusal


# --- archives ------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F7.6")
def test_an_archive_that_inflates_is_refused_before_it_does(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"archive/data/{number}", bytes(1 << 24))
    with pytest.raises(UserError, match="inflate"):
        check_archive(path)


@pytest.mark.fault("F4.5")
def test_any_damage_to_the_structure_of_an_archive_is_one_line(tmp_path: Path) -> None:
    path, draws = tmp_path / "last.pt", random.Random(0)
    torch.save({"format": "distillcli", "student": {"a": torch.arange(64.0)}}, path)
    whole = path.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(draws.choice([1, 1, 4])):
            content[draws.randrange(directory, len(content))] = draws.randrange(256)
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            read_weights(str(path))


@pytest.mark.fault("F4.5")
def test_a_sound_archive_of_something_else_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    with pytest.raises(UserError, match=r"last\.pt: a zip archive of other files \(it holds word/document.xml\)"):
        read_weights(str(path))


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def averaged() -> TrainConfig:
    """What the runs below are runs of."""
    return tiny("trainer.ema=0.9")


@pytest.fixture(scope="module")
def stopped(averaged: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second epoch: previous.pt is the end of the first."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        train(averaged, folder, Watch(stop_after=STEPS + 1))
    return folder


@pytest.fixture(scope="module")
def finished(averaged: TrainConfig, stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = shutil.copytree(stopped, tmp_path_factory.mktemp("finished") / "run")
    train(averaged, folder)
    return digest(last(folder))


def reshaped(content: dict[str, Any]) -> None:
    name = next(iter(content["student"]))
    content["student"][name] = content["student"][name][:1]


def moments_reshaped(content: dict[str, Any]) -> None:
    content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)


SENSELESS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no student": lambda content: content.pop("student"),
    "no optimizer": lambda content: content.pop("optimizer"),
    "no step": lambda content: content.pop("step"),
    "no recipe": lambda content: content.pop("recipe"),
    "no last": lambda content: content.pop("last"),
    "no average": lambda content: content.update(ema=None),
    "student of a list": lambda content: content.update(student=[1]),
    "a tensor less": lambda content: content["student"].popitem(),
    "another shape": reshaped,
    "moments of another shape": moments_reshaped,
    "no betas": lambda content: content["optimizer"]["param_groups"][0].pop("betas"),
    "betas of words": lambda content: content["optimizer"]["param_groups"][0].update(betas=("a", "b")),
    "a group less": lambda content: content["optimizer"]["param_groups"].pop(),
    "a step that never comes": lambda content: content.update(step=10**12),
    "a negative step": lambda content: content.update(step=-1),
    "a broken step": lambda content: content.update(step=1.5),
    "no step at all": lambda content: content.update(step=None),
    "an epoch that never comes": lambda content: content["best"].update(epoch=99),
    "numbers of words": lambda content: content["last"].update(nll="low"),
    "no state of the optimizer": lambda content: content.update(optimizer=None, scaler=None),
    "another epoch": lambda content: content["last"].update(epoch=2),
}


@pytest.mark.fault("F4.5", "R15")
@pytest.mark.parametrize("change", SENSELESS.values(), ids=SENSELESS)
def test_a_senseless_checkpoint_falls_back_to_the_one_before(
    change: Callable[[dict[str, Any]], object], averaged: TrainConfig, stopped: Path, finished: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    content = last(folder)
    change(content)
    torch.save(content, folder / "checkpoints" / "last.pt")
    watch = Watch()
    train(averaged, folder, watch)
    assert len(watch.warnings) == 1
    assert "last.pt is broken: " in watch.warnings[0]
    assert watch.warnings[0].endswith("going on from previous.pt")
    assert digest(last(folder)) == finished


@pytest.mark.fault("F6.9")
def test_a_run_whose_checkpoints_are_gone_says_that_it_begins_again(
    averaged: TrainConfig, stopped: Path, finished: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    watch = Watch()
    train(averaged, folder, watch)
    assert [warning.partition(": ")[2] for warning in watch.warnings] == [
        "1 epochs are recorded, but no checkpoint is left; beginning at epoch 1"
    ]
    assert digest(last(folder)) == finished
    assert [row["epoch"] for row in read_metrics(folder)] == [1, 1, 2, 2]


# --- commands ------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F4.6")
def test_a_broken_cache_is_named_and_the_others_are_listed(distill: Distill, tmp_path: Path) -> None:
    keys = [b"", b"[]", b"{}", b'{"teacher": [], "format": "x"}', b"\xff"]
    sound = {"teacher": ["test_resnet"], "format": "float16", "width": 4, "images": 8}
    keys += [json.dumps({**sound, **wrong}).encode() for wrong in ({"width": "4"}, {"images": -1}, {"format": []})]
    keys += [json.dumps({**sound, "images": 10**15}).encode(), json.dumps(sound).encode()]
    for number, key in enumerate(keys):
        folder = tmp_path / "runs" / "cache" / str(number)
        folder.mkdir(parents=True)
        (folder / "key.json").write_bytes(key)
        (folder / "view-00001.rx").write_bytes(b"x")
    answer = distill("cache", "ls")
    assert answer.code == 0
    assert answer.stderr.count("key.json is broken") == 8
    assert answer.stdout.splitlines()[-1].startswith("9  test_resnet  float16  0 views, 0 rows")


@pytest.mark.fault("R68")
def test_an_unfinished_run_is_evaluated_and_marked(stopped: Path, distill: Distill, tmp_path: Path) -> None:
    folder, config = shutil.copytree(stopped, tmp_path / "run"), tiny("trainer.ema=0.9")
    describe_folder(folder, dataclasses.asdict(config), "distill train", [], ("0", "1", "2", "3"), {})
    answer = distill("eval", "checkpoint=run", "format=json")
    assert answer.code == 0, answer.stderr
    assert json.loads(answer.stdout)["checkpoint"] == "run"
    assert "warning: run: the run is not finished" in answer.stderr


@pytest.mark.fault("F4.6", "F7.1")
@pytest.mark.parametrize("content", [*BROKEN.values(), BOMB.encode()], ids=[*BROKEN, "bomb"])
def test_a_broken_config_of_a_run_is_one_line_of_every_command(
    content: bytes, distill: Distill, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "environment.json").write_text('{"overrides": ["experiment=smoke"]}')
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    for command in (("eval", "checkpoint=run"), ("train", "resume=run"), ("cache", "verify", "run")):
        answer = distill(*command)
        assert (answer.code, answer.stderr.count("\n")) == (2, 1), answer.stderr
        assert "run: config.yaml is broken: " in answer.stderr
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"seed": 1}))
    (tmp_path / "run" / "environment.json").write_bytes(content)
    answer = distill("train", "resume=run")
    assert (answer.code, answer.stderr.count("\n")) == (2, 1), answer.stderr
    assert "run: environment.json is broken: " in answer.stderr


@pytest.mark.fault("F6.9", "R38")
def test_damaged_rows_are_counted_when_a_run_meets_them(tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}", "trainer.epochs=1")
    data = open_tiny(config)

    def cached(live: FrozenTeacher | None) -> Teacher:
        assert live is not None
        return with_cache(config, data, live, CPU)[0]

    train(config, tmp_path / "cold", swap=cached)
    (path,) = tmp_path.glob("cache/*/view-00001.r0")
    content = bytearray(path.read_bytes())
    row = len(content) // 64
    for number in (3, 40):
        content[number * row] ^= 1
    path.write_bytes(content)
    watch = Watch()
    train(config, tmp_path / "warm", watch, swap=cached)
    assert watch.warnings == ["teacher cache: 2 damaged rows were computed again"]
    assert digest(last(tmp_path / "warm")["student"]) == digest(last(tmp_path / "cold")["student"])


@pytest.mark.fault("F7.2")
def test_a_checkpoint_names_its_model_wherever_that_came_from(tmp_path: Path) -> None:
    export(build(ModelConfig("test_efficientnet"), Inputs(4, 32), "student"), tmp_path / "model", tuple("abcd"), 0.9)
    train(tiny(f"student.name=local-dir:{tmp_path / 'model'}", "trainer.epochs=1"), tmp_path / "run")
    shutil.rmtree(tmp_path / "model")
    weights = read_weights(str(tmp_path / "run" / "checkpoints" / "last.pt"))
    assert weights.architecture == "test_efficientnet"
    build(weights.model, Inputs(4, 32), "").net.load_state_dict(weights.state)

"""The commands that only look: show, configs, completion."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from distillcli.commands import completion, configs, show, show_views
from distillcli.commands.completion import candidates
from distillcli.commands.show_views import label_words
from distillcli.config.keys import dotted_keys
from distillcli.config.schema import TrainConfig
from distillcli.errors import UserError
from distillcli.terms import TERMS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTILL_CONFIG_DIR", raising=False)


def test_experiments_show_their_leading_comment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\n# distill train experiment=mine\n# 93.1 % top-1\nseed: 1\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    monkeypatch.setenv("DISTILL_CONFIG_DIR", str(tmp_path))
    show.run(["experiments", "mine"])
    out = capsys.readouterr().out
    assert "mine        distill train experiment=mine\n            93.1 % top-1\n" in out
    assert "@package" not in out


@pytest.mark.parametrize(
    ("topic", "expected"), [("teachers", "resnet50"), ("students", "mobilenetv3"), ("datasets", "digits")]
)
def test_groups_are_listed(topic: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    show.run([topic])
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("term", "needs"),
    [
        ("kl", "logits of both models"),
        ("ce", "logits of the student, labels"),
        ("dkd", "logits of both models, labels"),
        ("hint", "maps of stages of both models"),
        ("reviewkd", "embeddings and maps of stages of both models"),
        ("simkd", "the features before the head of both models"),
        ("rkd", "embeddings of both models, whole batches"),
        ("queue_kl", "embeddings of both models, whole batches, one process"),
    ],
)
def test_terms_say_what_they_need(term: str, needs: str, capsys: pytest.CaptureFixture[str]) -> None:
    show.run(["terms", f"[{term[0]}]{term[1:]}"])
    out = capsys.readouterr().out
    assert f"needs {needs}\n" in out
    assert "  weight=1" in out


def test_every_term_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    show.run(["terms"])
    assert capsys.readouterr().out.count("  needs ") == len(TERMS)


def test_models_take_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    show.run(["models", "resnet1?"])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:] if line.strip()]
    assert names == ["resnet10t", "resnet14t"] or "resnet18" in names
    with pytest.raises(UserError, match="resnet18"):
        show.run(["models", "resnt18"])


def test_runs_read_result_files(capsys: pytest.CaptureFixture[str]) -> None:
    show.run(["runs"])
    assert "no runs here yet" in capsys.readouterr().out
    run = Path("runs/kd/2026-01-01_00-00-00")
    run.mkdir(parents=True)
    result = {"name": "k\x1b[31md", "status": "ok", "student": {"model": "resnet18", "top1": 91.234}, "gap_closed": 0.5}
    (run / "result.json").write_text(json.dumps(result))
    Path("runs/kd/latest").symlink_to(run.name)
    torn = Path("runs/torn")
    torn.mkdir()
    (torn / "result.json").write_text('{"status": ')
    show.run(["runs"])
    out = capsys.readouterr().out
    assert out.count("resnet18") == 1
    assert "91.23" in out
    assert "50 %" in out
    assert "\x1b" not in out


def test_views_are_drawn_as_they_are_trained_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show.run(["views", "experiment=smoke", "dataset.samples=64", "augment.mixup=1", "trainer.progressive=[0.5,0.5]"])
    assert "views.png: 6 images of fake in 8 views of augment=light, seed 0" in capsys.readouterr().out
    with Image.open("views.png") as sheet:
        assert sheet.width > 1000
        assert sheet.height > 1000
    monkeypatch.setattr(show_views, "IMAGES", 2)
    monkeypatch.setattr(show_views, "VIEWS", 2)

    def drawn(seed: int) -> bytes:
        mixed = ("dataset.samples=64", "augment.mixup=1", "trainer.progressive=[0.5,0.5]")
        show.run(["views", "experiment=smoke", *mixed, f"seed={seed}"])
        return Path("views.png").read_bytes()

    assert drawn(0) == drawn(0) != drawn(1)


def test_views_of_a_config_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"augment.mixup"):
        show.run(["views", "augment.mixpu=1"])
    with pytest.raises(UserError, match=r"views"):
        show.run(["view"])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ([1.0, 0.0, 0.0], "cat"),
        ([0.3, 0.0, 0.7], "70% cow + 30% cat"),
        ([0.0, 0.6, 0.0], "60% dog"),
        ([0.0, 0.0, 0.0], "no label"),
        ([0.999, 0.001, 0.0], "cat"),
        (2, "cow"),
        (-1, "no label"),
    ],
)
def test_labels_are_named_with_their_shares(target: int | list[float], words: str) -> None:
    assert label_words(target, ("cat", "dog", "cow")) == words


def test_a_config_is_copied_once(capsys: pytest.CaptureFixture[str]) -> None:
    configs.run(["ls"])
    assert "distill/kd" in capsys.readouterr().out.splitlines()
    configs.run(["cp", "distill/kd", "my configs"])
    assert "distill train distill=kd --config-dir 'my configs'" in capsys.readouterr().out
    Path("my configs/distill/kd.yaml").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        configs.run(["cp", "distill/kd", "my configs"])
    assert Path("my configs/distill/kd.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "current", "expected"),
    [
        ([], "tr", "train"),
        (["show"], "te", "terms"),
        (["train"], "distill.te", "distill.temperature="),
        (["train"], "teacher.name=resnet5", "teacher.name=resnet50"),
        (["train"], "teacher=res", "teacher=resnet50"),
        (["train"], "--c", "--cfg"),
        (["show"], "vi", "views"),
        (["show", "views"], "augment.mixu", "augment.mixup="),
        (["train"], "baseline=", "baseline=true"),
        (["train", "seed=1"], "schedule.name=c", "schedule.name=cosine"),
        (["eval"], "format=", "format=json"),
        (["train"], "out=./mo", "out=./model_dir/"),
        (["configs", "cp"], "distill/", "distill/kd"),
        (["train"], "+experi", "+experiment="),
        (["train"], "+experiment=smo", "+experiment=smoke"),
        (["train"], "distill.te", "distill.terms.kl.weight="),
        (["train"], "distill.terms.at.", "distill.terms.at.power="),
        (["train"], "resume=", "resume=runs/mine/one"),
        (["eval"], "checkpoint=runs/sw", "checkpoint=runs/sweeps/one/0"),
        (["cache"], "v", "verify"),
        (["cache", "verify"], "", "runs/mine/one"),
        (["cache", "clear"], "ab", "abc"),
        (["show"], "ke", "keys"),
    ],
)
@pytest.mark.fault("F6.14")
def test_completion_knows(words: list[str], current: str, expected: str) -> None:
    Path("model_dir").mkdir()
    for file in ("runs/mine/one/config.yaml", "runs/sweeps/one/0/config.yaml", "runs/cache/abc/key.json"):
        Path(file).parent.mkdir(parents=True)
        Path(file).touch()
    assert expected in candidates(words, current)


@pytest.mark.fault("F6.14")
def test_every_key_is_shown_with_its_comment(capsys: pytest.CaptureFixture[str]) -> None:
    show.run(["keys"])
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert set(told) >= {key for key, word in dotted_keys(TrainConfig).items() if word != "config"}
    assert "decay of an exponential moving average of the weights" in told["trainer.ema"]
    assert re.search(r"text +auto +auto [|] cpu", told["trainer.device"])
    assert "further arguments of timm.create_model" in told["teacher.args"]
    show.run(["keys", "optimizer"])
    assert "trainer.ema" not in capsys.readouterr().out


def test_completion_keeps_to_what_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert candidates(["train"], "zzz") == []
    assert candidates(["nonsense"], "") == []
    completion.complete(["distill train schedule.name=mul"])
    assert capsys.readouterr().out == "schedule.name=multistep\n"

"""Configs and command lines of somebody else: no endless expansion, no folder elsewhere, no secret, no escape code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT, Distill

from distillcli.config import search
from distillcli.config.compose import compose
from distillcli.config.schema import TrainConfig
from distillcli.config.yaml_files import read_yaml
from distillcli.errors import UserError
from distillcli.launch.launch import launch


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTILL_CONFIG_DIR", raising=False)
    search.use([])


def write(name: str, text: str) -> Path:
    file = Path("mine") / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def bomb(fill: str, open_: str, close: str) -> str:
    """Nine levels of nine references each: 387 million values in a few lines."""
    rows = [f"a0: &a0 {fill}"]
    for level in range(1, 10):
        parts = ", ".join(f"{f'k{place}: ' if open_ == '{' else ''}*a{level - 1}" for place in range(9))
        rows.append(f"a{level}: &a{level} {open_}{parts}{close}")
    return "\n".join(rows) + "\n"


BOMBS = {
    "a list of lists": bomb("[x, x]", "[", "]"),
    "a mapping of mappings": bomb("{x: 1}", "{", "}"),
    "merge keys": "a: &a {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: *a, y: [{'*a, ' * 30}]}}\n" for n in range(2000)),
    "brackets": "a: " + "[" * 5000 + "]" * 5000 + "\n",
    "mappings": "".join(f"{' ' * depth}a:\n" for depth in range(100)),
    "itself": "a: &a [*a]\n",
    "size": "a: 1\n" * 300_000,
}


@pytest.mark.fault("F7.1")
@pytest.mark.parametrize("kind", BOMBS)
def test_a_config_that_expands_without_end_is_refused_by_its_file(kind: str, distill: Distill) -> None:
    file = write("experiment/bad", BOMBS[kind])
    answer = distill("train", "experiment=bad", "--config-dir", "mine")
    assert (answer.code, answer.stderr.count("\n")) == (2, 1)
    assert str(file) in answer.stderr
    with pytest.raises(UserError, match=re.escape(str(file))):
        read_yaml(file)


@pytest.mark.fault("F7.1")
@pytest.mark.parametrize("topic", ["teachers", "students"])
def test_a_list_of_configs_does_not_expand_them_either(
    topic: str, distill: Distill, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(f"{topic.removesuffix('s')}/bad", BOMBS["merge keys"])
    monkeypatch.setenv("DISTILL_CONFIG_DIR", str(Path("mine").absolute()))
    answer = distill("show", topic)
    assert (answer.code, answer.stderr.count("\n")) == (2, 1)
    assert str(file) in answer.stderr


def test_anchors_that_say_something_once_are_kept() -> None:
    file = write("experiment/good", "# @package _global_\nx: &fit {epochs: 3}\nteacher: {fit: *fit}\n")
    assert read_yaml(file) == {"x": {"epochs": 3}, "teacher": {"fit": {"epochs": 3}}}
    write("experiment/good", "# @package _global_\nteacher: {fit: {epochs: &n 3}}\ntrainer: {epochs: *n}\n")
    search.use(["mine"])
    config = compose("train", ["experiment=good"])
    assert isinstance(config, TrainConfig)
    assert (config.teacher.fit.epochs, config.trainer.epochs) == (3, 3)


@pytest.mark.fault("F7.3", "R63")
@pytest.mark.parametrize("key", ["run: {dir: outside/here}", "sweep: {subdir: ../../outside}", "sweep: {dir: outside}"])
@pytest.mark.parametrize("words", [[], ["-m", "seed=1,2"]])
def test_a_config_cannot_say_where_hydra_makes_folders(key: str, words: list[str], tmp_path: Path) -> None:
    write("experiment/bad", f"# @package _global_\nhydra:\n  {key}\n")
    with pytest.raises(UserError, match="only out=FOLDER on the command line says where to write"):
        launch("train", ["experiment=bad", "--config-dir", "mine", *words], lambda config, job: None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.fault("F7.5", "R63")
@pytest.mark.parametrize(
    "words",
    [
        ["student.args={hf_token: abc}"],
        ["student.args={a: {b: [{password: abc}]}}"],
        ["+student.args.api_key=abc"],
        ["optimizer.args.my_secret=abc"],
        ["-m", "student.args={hf_token: abc},{hf_token: abc}"],
        ["experiment=secret", "--config-dir", "mine"],
    ],
)
def test_a_secret_is_refused_wherever_it_stands_and_not_repeated(words: list[str], distill: Distill) -> None:
    write("experiment/secret", "# @package _global_\nstudent: {args: {hf_token: abc}}\n")
    answer = distill("train", *words)
    assert answer.code == 2
    assert "secrets do not belong in configs" in answer.stderr
    assert "abc" not in answer.stderr + answer.stdout


def test_arguments_that_are_only_called_like_secrets_are_kept() -> None:
    config = compose("train", ["student.args.class_token=false", "student.args.reg_tokens=4"])
    assert isinstance(config, TrainConfig)
    assert config.student.args == {"class_token": False, "reg_tokens": 4}


ESCAPE = "\x1b]0;title\x07\x1b[31mred\u202e"


@pytest.mark.fault("F7.4", "R29")
@pytest.mark.parametrize(
    "words",
    [
        [f"tr{ESCAPE}ain"],
        ["train", f"--{ESCAPE}"],
        ["train", f"seed{ESCAPE}=3"],
        ["train", f"seed=3{ESCAPE}"],
        ["train", f"name=a{ESCAPE}"],
        ["train", f"student.name={ESCAPE}"],
        ["train", f"teacher={ESCAPE}"],
        ["train", f"dataset=folder dataset.root={ESCAPE}"],
        ["train", "dataset=folder", f"dataset.root={ESCAPE}"],
        ["train", f"distill.terms.kl.{ESCAPE}=3"],
        ["train", "--config-dir", ESCAPE],
        ["eval", f"checkpoint={ESCAPE}"],
        ["show", ESCAPE],
        ["show", "models", ESCAPE],
        ["configs", "cp", ESCAPE, "here"],
        ["cache", "clear", ESCAPE],
    ],
)
def test_no_escape_code_reaches_the_terminal(words: list[str], distill: Distill) -> None:
    answer = distill(*words)
    assert answer.code == 2
    assert answer.stderr.startswith("error: ")
    assert all(char.isprintable() or char == "\n" for char in answer.stderr + answer.stdout)


@pytest.mark.fault("F5.10")
@pytest.mark.parametrize(
    "name",
    [
        "1e5",
        "007",
        "1_000",
        "0x10",
        "true",
        "NaN",
        "inf",
        "1.0",
        "résumé",
        "re\u0301sume\u0301",
        "日本",
        "1",
        "-3",
        "a+b",
    ],
)
def test_a_name_stays_as_it_was_typed(name: str) -> None:
    config = compose("train", [f"name={name}"])
    assert isinstance(config, TrainConfig)
    assert config.name == name


@pytest.mark.fault("F5.10", "F6.13")
def test_names_in_a_sweep_stay_as_typed(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[TrainConfig] = []
    with pytest.raises(SystemExit):
        launch("train", ["-m", "name=1e5,résumé,007"], lambda config, job: seen.append(config))
    assert [config.name for config in seen] == ["1e5", "résumé", "007"]
    told = capsys.readouterr().out
    assert "[2/3] name='résumé'\n" in told


@pytest.mark.parametrize("name", ["a" * 201, "é" * 101, "a/b", "..", ".a", "a b", "a\nb", ""])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="name="):
        compose("train", [f"name={name}"])


@pytest.mark.fault("F4.7")
@pytest.mark.parametrize("key", ["out", "runs", "dataset.root", "teacher.checkpoint", "resume"])
def test_the_home_of_nobody_is_named_by_its_key(key: str, distill: Distill) -> None:
    answer = distill("train", f"{key}=~nobody_of_that_name/x")
    assert (answer.code, answer.stderr.count("\n")) == (2, 1)
    assert f"{key}=~nobody_of_that_name/x: there is no home folder" in answer.stderr


@pytest.mark.fault("F6.14")
def test_experiments_are_spelt_without_a_plus_sign() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
    assert [path.name for path in documents if "+experiment=" in path.read_text("utf-8")] == []

"""``~`` in a config means the home folder, under every key that can hold a path."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distillcli.config import search
from distillcli.config.compose import compose
from distillcli.errors import UserError

FILES = ("labels.csv", "map.csv", "teacher.pt", "member.pt", "student.pt")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "home"
    for folder in ("photos/cat", "photos/dog", "model", "cache", "runs", "~odd"):
        (place / folder).mkdir(parents=True)
    for file in FILES:
        (place / file).write_text("x")
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.chdir(place)
    search.use([])
    return place


PATHS = {
    "runs": "~/runs",
    "out": "~/runs/one",
    "dataset.root": "~/photos",
    "dataset.labels": "~/labels.csv",
    "dataset.class_map": "~/map.csv",
    "teacher.checkpoint": "~/teacher.pt",
    "teacher.class_map": "~/map.csv",
    "teacher.cache.dir": "~/cache",
    "student.name": "local-dir:~/model",
    "student.checkpoint": "~/student.pt",
}
MEMBER = {"name": "test_vit", "checkpoint": "local-dir:~/model", "class_map": "~/map.csv"}


def value_of(config: Any, key: str) -> str:
    for name in key.split("."):
        config = getattr(config, name)
    assert isinstance(config, str)
    return config


def texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from texts(item)


@pytest.mark.fault("F5.4")
@pytest.mark.parametrize("typed", [True, False], ids=["typed", "in a file"])
def test_every_path_is_expanded(home: Path, typed: bool) -> None:
    overrides = [f"{key}={value}" for key, value in PATHS.items()]
    if not typed:
        tree: dict[str, Any] = {"peers": [], "teacher": {"members": []}}
        for key, value in PATHS.items():
            *above, name = key.split(".")
            inner = tree
            for part in above:
                inner = inner.setdefault(part, {})
            inner[name] = value
        (home / "mine" / "experiment").mkdir(parents=True)
        (home / "mine" / "experiment" / "x.yaml").write_text("# @package _global_\n" + yaml.safe_dump(tree))
        search.use([str(home / "mine")])
        overrides = ["+experiment=x"]
    config = compose("train", ["dataset=folder", *overrides])
    for key, value in PATHS.items():
        assert value_of(config, key) == value.replace("~", str(home)), key


@pytest.mark.fault("F5.4")
def test_the_paths_of_list_elements_and_of_eval_are_expanded(home: Path) -> None:
    member = ", ".join(f"{key}: '{value}'" for key, value in MEMBER.items())
    config: Any = compose("train", [f"teacher.members=[{{{member}}}]"])
    assert not [text for text in texts(dataclasses.asdict(config)) if "~" in text]
    assert config.teacher.members[0].checkpoint == f"local-dir:{home / 'model'}"
    evaluation = compose("eval", ["checkpoint=~/teacher.pt", "dataset=folder", "dataset.root=~/photos"])
    assert value_of(evaluation, "checkpoint") == str(home / "teacher.pt")
    assert value_of(evaluation, "dataset.root") == str(home / "photos")


@pytest.mark.fault("F5.4", "F4.4")
@pytest.mark.fault("F4.7")
def test_a_tilde_that_is_no_home_folder_is_a_name_where_it_is_written_as_one(home: Path) -> None:
    config: Any = compose("train", ["out=./~odd"])
    assert config.out == "./~odd"
    with pytest.raises(UserError, match=r"out=~nobody-of-this-name: there is no home folder .* write out=\./~nobody"):
        compose("train", ["out=~nobody-of-this-name"])

"""Hugging Face tables from files that are made here: columns, splits, and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import png
from PIL import Image
from sklearn.datasets import load_digits

from distillcli import cli
from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.runs.result import read_result
from distillcli.sources.open import open_source
from distillcli.sources.source import Source

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


FILES = itertools.count()  # no two files are equal


def table(count: int, labels: list[Any] | None = None, names: list[str] | None = None, **columns: Any) -> Any:
    """``count`` images whose gray value is their row."""
    values = labels if labels is not None else [row % 2 for row in range(count)]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names) if names else None}
    found = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": png(row, f"{next(FILES)}"), "path": None} for row in range(count)],
            "label": values,
            **columns,
        }
    )
    found = found.cast_column("image", features["image"])
    return found.cast_column("label", features["label"]) if names else found


def opened(path: Path | str, **options: Any) -> Source:
    return open_source(DatasetConfig(name="hf", path=str(path), **options))


def refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def gray(source: Source) -> list[int]:
    return [int(source.train.images.read(row)[0, 0, 0]) for row in range(len(source.train.labels))]


def test_one_parquet_file_is_split(tmp_path: Path) -> None:
    table(20, names=["cat", "dog"]).to_parquet(tmp_path / "all.parquet")
    source = opened(tmp_path / "all.parquet", val_fraction=0.2)
    assert source.classes == ("cat", "dog")
    assert np.bincount(source.val.labels).tolist() == [2, 2]
    assert [value % 2 for value in gray(source)] == source.train.labels.tolist()
    assert source.val.images.read(0).shape == (4, 4, 3)


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_splits(tmp_path: Path, kind: str) -> None:
    parts = {"train": table(6), "validation": table(4), "test": table(2, [-1, -1])}
    if kind == "saved":
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "data")
    else:
        for part, found in parts.items():
            found.to_parquet(tmp_path / "data" / f"{part}-00000-of-00001.parquet")
    source = opened(tmp_path / "data")
    assert (source.name, source.classes) == ("data", ("0", "1"))
    assert gray(source) == list(range(6))
    assert source.val.labels.tolist() == [0, 1, 0, 1]
    assert source.test is None, "its labels are not public"
    assert source.train.images.name(3) == f"{tmp_path / 'data'}/train[3]"


def test_files_written_without_the_package(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    content = {"jpg": [png(row) for row in range(6)], "class": ["b", "a"] * 3, "id": list(range(6))}
    parquet.write_table(pyarrow.table(content), tmp_path / "bytes.parquet")
    source = opened(tmp_path / "bytes.parquet", val_fraction=0.3)
    assert source.classes == ("a", "b")
    assert [1 - value % 2 for value in gray(source)] == source.train.labels.tolist()
    structs = {"image": [{"bytes": png(row), "path": "x.png"} for row in range(4)], "label": [0, 1, 0, 1]}
    parquet.write_table(pyarrow.table(structs), tmp_path / "structs.parquet")
    assert len(gray(opened(tmp_path / "structs.parquet", val_fraction=0.5))) == 2


def test_columns_are_chosen_by_name_if_there_are_several(tmp_path: Path) -> None:
    found = table(6, thumbnail=[png(9)] * 6, coarse=[0] * 3 + [1] * 3)
    found.to_parquet(tmp_path / "a.parquet")
    assert "'image', 'thumbnail' are possible; choose with dataset.image_column=NAME" in refused(tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet", image_column="thumbnail", label_column="coarse", val_fraction=0.34)
    assert set(gray(source)) == {9}
    assert source.train.labels.tolist() == [0, 0, 1, 1]
    assert "dataset.label_column=fine: " in refused(tmp_path / "a.parquet", image_column="image", label_column="fine")
    found.rename_column("label", "what").to_parquet(tmp_path / "b.parquet")
    assert "choose with dataset.label_column=NAME" in refused(tmp_path / "b.parquet", image_column="image")


def test_what_is_refused(tmp_path: Path) -> None:
    assert "dataset=hf needs dataset.path" in refused("")
    assert "dataset.path=nobody/nothing: cannot be opened" in refused("nobody/nothing")
    (tmp_path / "a.parquet").write_text("no table")
    assert "a.parquet: cannot be opened" in refused(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("")
    assert "must end in .parquet or .arrow" in refused(tmp_path / "a.csv")
    table(4, [0.5, 1.0, 0.5, 1.0]).to_parquet(tmp_path / "b.parquet")
    assert "column 'label' is float64 in train" in refused(tmp_path / "b.parquet")
    table(4, [0, -1, 0, 1]).to_parquet(tmp_path / "c.parquet")
    assert "row 1 of the train part has label -1" in refused(tmp_path / "c.parquet")
    datasets.DatasetDict({"validation": table(4)}).save_to_disk(tmp_path / "d")
    assert "has the splits 'validation' but no train" in refused(tmp_path / "d")


def test_the_fingerprint_is_of_the_data_not_of_the_place(tmp_path: Path) -> None:
    table(6).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a.parquet", tmp_path / "b" / "a.parquet")
    table(6, [1, 0] * 3).to_parquet(tmp_path / "c.parquet")
    first = opened(tmp_path / "a.parquet").fingerprint
    assert opened(tmp_path / "b" / "a.parquet").fingerprint == first
    assert opened(tmp_path / "c.parquet").fingerprint != first


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert refused("x/y") == "dataset=hf needs the package datasets: pip install 'distillcli[hf]'"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_run_on_a_local_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    gray = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for part, rows in (("train", range(200)), ("test", range(200, 280))):
        found = datasets.Dataset.from_dict(
            {"image": [Image.fromarray(gray[row]) for row in rows], "label": digits.target[rows].tolist()},
            features=datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list("0123456789"))),
        )
        if kind == "parquet":
            found.to_parquet(tmp_path / "digits" / f"{part}-00000-of-00001.parquet")
        else:
            found.save_to_disk(tmp_path / "saved" / part)
    if kind == "arrow":
        parts = {part: datasets.load_from_disk(tmp_path / "saved" / part) for part in ("train", "test")}
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "digits")
    quick = ["trainer.threads=1", "trainer.device=cpu"]
    arguments = ["dataset=hf", "dataset.path=digits", "dataset.image_size=32", "trainer.epochs=2", "out=run", *quick]
    arguments += ["teacher.name=test_resnet", "teacher.fit.epochs=2", "student.name=test_efficientnet"]
    assert cli.run(["train", *arguments]) == 0, capsys.readouterr().err
    result = read_result(tmp_path / "run")
    assert result is not None
    assert result.student is not None
    assert result.dataset is not None
    assert (result.dataset.name, result.evaluated_on) == ("digits", "test")
    assert (result.dataset.classes, result.dataset.train, result.dataset.val, result.dataset.test) == (10, 180, 20, 80)
    capsys.readouterr()
    assert cli.run(["eval", "checkpoint=run", "format=json", *quick]) == 0, capsys.readouterr().err
    numbers = json.loads(capsys.readouterr().out)
    student = result.student
    assert [numbers[name] for name in ("top1", "nll", "agreement")] == [student.top1, student.nll, student.agreement]


@pytest.mark.fault("F5.9")
def test_rows_without_a_label_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    table(6, [1, 0, None, 1, None, 0]).to_parquet(tmp_path / "a.parquet")
    message = refused(tmp_path / "a.parquet")
    assert "row 2 of the train part has no label, 'label' is null (2 such rows)" in message

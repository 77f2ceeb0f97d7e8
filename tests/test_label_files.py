"""Labels and class names beside the images: what is read and what is refused, with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import put, put_classes

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.open import open_source
from distillcli.sources.source import EncodedImages, Source, Split
from distillcli.sources.tree import composed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(8):
        put(tmp_path / "images" / f"{number}.png", number)
    return tmp_path / "images"


def opened(root: Path, **options: Any) -> Source:
    return open_source(DatasetConfig(name="folder", root=str(root), **options))


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(root: Path, name: str, text: str) -> str:
    file = root.parent / name
    file.write_text(text, "utf-8")
    return str(file)


def pairs(source: Source, *splits: Split | None) -> dict[str, str]:
    found = {}
    for split in splits:
        assert split is not None
        assert isinstance(split.images, EncodedImages)
        found |= {name: source.classes[label] for name, label in zip(split.images.names, split.labels, strict=True)}
    return found


ROWS = [(f"{number}.png", "cat" if number % 2 else "dog") for number in range(8)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "filename,label\n" + "".join(f"{file},{label}\n" for file, label in ROWS)),
        ("a.CSV", "\ufeffid,Path,Class\n" + "".join(f'7,"./{file}",{label}\r\n' for file, label in ROWS)),
        ("a.tsv", "target\timage\n" + "".join(f"{label}\t{file}\n" for file, label in ROWS)),
        ("a.jsonl", "".join(json.dumps({"file": file, "label": label}) + "\n" for file, label in ROWS)),
    ],
)
def test_a_flat_folder_with_labels(root: Path, name: str, text: str) -> None:
    source = opened(root, labels=written(root, name, text), val_fraction=0.25)
    assert source.classes == ("cat", "dog")
    assert pairs(source, source.train, source.val) == dict(ROWS)
    assert np.bincount(source.val.labels).tolist() == [1, 1]
    row = source.train.images.name(0)
    assert source.train.images.read(0)[0, 0, 0] == int(Path(row).stem)


def test_splits_and_files_that_are_not_listed(root: Path) -> None:
    splits = ["train", "train", "Validation", "val", "test", "train"]
    text = "file,label,split\n" + "".join(f"{n}.png,{10 - n % 2},{split}\n" for n, split in enumerate(splits))
    source = opened(root, labels=written(root, "a.csv", text))
    assert source.classes == ("9", "10"), "numbers by their value"
    assert pairs(source, source.train) == {"0.png": "10", "1.png": "9", "5.png": "9"}
    assert pairs(source, source.val) == {"2.png": "10", "3.png": "9"}
    assert pairs(source, source.test) == {"4.png": "10"}


@pytest.mark.fault("R27")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\n0.png,a\nnone.png,b\n", "a.csv, line 3: no image 'none.png' in"),
        ("file,label\n../images/0.png,a\n", "no image '../images/0.png'"),
        ("file,label\n0.png,a\n./0.png,b\n", "line 3: '0.png' is already listed in line 2"),
        ("file,label\n0.png,a\n1.png,\n", "line 3: label is ''"),
        ("file,label\n0.png,a\n1.png\n", "line 3: its columns do not match the header"),
        ("file,label\n0.png,a\n1.png,b,c\n", "line 3: its columns do not match the header"),
        ("file,label,split\n0.png,a,dev\n", "line 2: split 'dev' is none of train, val and test"),
        ("file,label,split\n0.png,a,val\n", "lists no training images"),
        ("file,label,split\n0.png,a,train\n1.png,b,train\n2.png,c,val\n", "'c' only in val"),
        ("file,path,label\n0.png,x,a\n", "'file', 'path' could each be the file"),
        ("file,label,class\n0.png,1,a\n", "'class', 'label' could each be the label"),
        ("0.png,a\n1.png,b\n", "no column file, file_name, filename, path, image among '0.png', 'a'"),
        ("file,label\n", "has no rows"),
        ('file,label\n"0.png,a\n', "correct it"),
    ],
)
def test_rows_that_could_be_misread(root: Path, text: str, said: str) -> None:
    assert said in refused(root, labels=written(root, "a.csv", text))


def test_files_that_are_no_tables(root: Path) -> None:
    assert "must end in .csv" in refused(root, labels=written(root, "a.xlsx", ""))
    assert "line 2: is not JSON" in refused(root, labels=written(root, "a.jsonl", '{"file": "0.png", "label": 1}\n{'))
    assert "label is 0.5" in refused(root, labels=written(root, "b.jsonl", '{"file": "0.png", "label": 0.5}'))
    assert "line 1: is not a JSON object" in refused(root, labels=written(root, "c.jsonl", "[1]"))
    (root.parent / "latin.csv").write_bytes(b"file,label\n0.png,\xfc\n")
    assert "is not UTF-8" in refused(root, labels=str(root.parent / "latin.csv"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"n01": "pet", "n02": "wild cat", "n03": "pet", "n99": "rock"}'),
        ("a.csv", "folder,class\nn02,wild cat\nn01,pet\nn03,pet\n"),
        ("a.tsv", "n02\twild cat\nn01\tpet\n\nn03\tpet\n"),
        ("a.txt", "n01 pet\n\nn02  wild cat\nn03\tpet\n"),
    ],
)
def test_a_class_map_renames_and_merges(tmp_path: Path, name: str, text: str) -> None:
    for part in ("train", "val"):
        put_classes(tmp_path / "images" / part, 2, ("n01", "n02", "n03"))
    source = opened(tmp_path / "images", class_map=written(tmp_path / "images", name, text))
    assert source.classes == ("pet", "wild cat")
    assert source.train.labels.tolist() == [0, 0, 1, 1, 0, 0]
    assert source.val.labels.tolist() == [0, 0, 1, 1, 0, 0]
    assert source.fingerprint != opened(tmp_path / "images").fingerprint


def test_class_maps_that_do_not_fit(tmp_path: Path) -> None:
    root = put_classes(tmp_path / "images", 2, ("n01", "n02", "n03"))
    assert "has no class for 'n02', 'n03'" in refused(root, class_map=written(root, "a.txt", "n01 pet\n"))
    assert "'n01' is not a name and its class" in refused(root, class_map=written(root, "b.txt", "n01\n"))
    assert "'n01' is both 'a' and 'b'" in refused(root, class_map=written(root, "c.txt", "n01 a\nn01 b\n"))
    assert "n01 is ['a']" in refused(root, class_map=written(root, "d.json", '{"n01": ["a"]}'))


def test_a_key_that_nothing_reads_is_refused_at_once(distill: Any, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\n")
    answer = distill("train", "dataset=fake", "dataset.labels=labels.csv")
    assert answer.code == 2
    assert answer.stderr.strip().endswith("dataset=folder, archive, or leave it out")


# --- what other programs write -------------------------------------------------------------------------------------


def text_of(header: str, delimiter: str = ",", spell: Any = lambda name: name) -> str:
    rows = [delimiter.join((spell(file), label)) for file, label in ROWS]
    return "\n".join([header.replace(",", delimiter), *rows, ""])


@pytest.mark.fault("F5.6")
@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("metadata.csv", text_of("file_name,label"), "utf-8"),
        ("semicolons.csv", text_of("file,label", ";"), "utf-8"),
        ("tabs.csv", text_of("file,label", "\t"), "utf-8"),
        ("commas.tsv", text_of("file,label"), "utf-8"),
        ("named.csv", "sep=;\n" + text_of("file,label", ";"), "utf-8"),
        ("blanks.csv", text_of(" file ,label\u00a0"), "utf-8"),
        ("marked.csv", text_of("file,label"), "utf-8-sig"),
        ("utf16.csv", text_of("file,label", "\t"), "utf-16"),
        ("capitals.csv", text_of("File_Name,LABEL"), "utf-8"),
        ("empty_rows.csv", text_of("file,label").replace("\n2.png", "\n,\n \n2.png"), "utf-8"),
        ("old_mac.csv", text_of("file,label").replace("\n", "\r"), "utf-8"),
        ("utf16.jsonl", "".join(json.dumps({"file_name": f, "label": c}) + "\r\n" for f, c in ROWS), "utf-16"),
    ],
)
def test_tables_of_other_programs_are_read(root: Path, name: str, text: str, encoding: str) -> None:
    (root.parent / name).write_bytes(text.encode(encoding))
    source = opened(root, labels=str(root.parent / name), val_fraction=0.25)
    assert source.classes == ("cat", "dog")
    assert pairs(source, source.train, source.val) == dict(ROWS)
    assert source.notes == ()


@pytest.mark.fault("F5.6")
def test_paths_are_found_as_windows_macos_and_hugging_face_write_them(tmp_path: Path) -> None:
    accented = "\u00e9t\u00e9"
    for number in range(4):
        put(tmp_path / "images" / "train" / accented / f"{number}.png", number)
    rows = [(f"{accented}/{number}.png", "ab"[number % 2]) for number in range(4)]
    spelt = {
        "windows": [f"train\\{file}".replace("/", "\\") for file, _ in rows],
        "macos": [f"./train/{file}".replace("\u00e9", "e\u0301") for file, _ in rows],
        "train/metadata": [file for file, _ in rows],  # below the folder of the table
    }
    for name, files in spelt.items():
        table = tmp_path / "images" / f"{name}.csv"
        lines = [f"{file},{label}" for file, (_, label) in zip(files, rows, strict=True)]
        table.write_text("\n".join(["file_name,label", *lines]), "utf-8")
        source = opened(tmp_path / "images", labels=str(table), val_fraction=0.0)
        assert pairs(source, source.train) == {f"train/{file}": label for file, label in rows}


@pytest.mark.fault("F5.6", "R28")
@pytest.mark.parametrize("odd", ["a\u2028b", "a\x85b", "a\x0bb", "\u7f8a \u263a", "a\u00a0b", "e\u0301"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_any_letter_may_stand_in_names_of_files_and_classes(root: Path, odd: str, ending: str) -> None:
    for number in range(4):
        (root / f"{number}.png").rename(root / f"{odd}{number}.png")
    rows = [(f"{odd}{number}.png", odd if number % 2 else "z") for number in range(4)]
    tables = {
        "csv": "file,label\n" + "".join(f"{file},{label}\n" for file, label in rows),
        "jsonl": "".join(json.dumps({"file": f, "label": c}, ensure_ascii=False) + "\n" for f, c in rows),
    }
    source = opened(root, labels=written(root, f"a.{ending}", tables[ending]), val_fraction=0.0)
    assert set(source.classes) == {composed(odd), "z"}
    assert set(pairs(source, source.train)) == {file for file, _ in rows}


@pytest.mark.fault("F5.6")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"file,label\n0.png,a\n1.png,caf\xe9\n", "line 3: is not UTF-8 text (byte 0xe9); save it as UTF-8"),
        ("file,label\n0.png,a\n".encode("utf-16-le"), "UTF-16 without its mark"),
        (b"file,label,label\n0.png,a,b\n", "two columns are named 'label'"),
        (b"file;label,class\n0.png;a,b\n", "no column"),
        (b"file,label,split\n0.png,a,train\n1.png,b,holdout\n", "split 'holdout' is none of"),
    ],
)
def test_what_cannot_be_read_says_why(root: Path, content: bytes, said: str) -> None:
    (root.parent / "a.csv").write_bytes(content)
    assert said in refused(root, labels=str(root.parent / "a.csv"))


def test_images_that_are_not_listed_are_counted(root: Path) -> None:
    source = opened(root, labels=written(root, "a.csv", "file,label\n0.png,a\n1.png,b\n2.png,a\n3.png,b\n"))
    (note,) = source.notes
    assert "4 images left aside" in note


@pytest.mark.fault("F5.6")
def test_a_listed_file_that_is_not_read_says_why(root: Path) -> None:
    (root / "x.heic").write_bytes(b"x")
    message = refused(root, labels=written(root, "a.csv", "file,label\n0.png,a\nx.heic,b\n"))
    assert "line 3: 'x.heic' is no image that is read (Pillow does not read .heic)" in message


@pytest.mark.fault("F5.6")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "n01;pet\nn02;\u00e9t\u00e9\n".encode()),
        ("a.csv", "folder;class\nn01;pet\nn02;\u00e9t\u00e9\n".encode("utf-16")),
        ("a.tsv", "n01,pet\nn02,e\u0301te\u0301\n".encode("utf-8-sig")),
        ("a.txt", "n01 pet\r\nn02 \u00e9t\u00e9\r\n".encode()),
        ("a.json", json.dumps({"n01": "pet", "n02": "\u00e9t\u00e9"}).encode("utf-16")),
    ],
)
def test_class_maps_of_other_programs_are_read(tmp_path: Path, name: str, content: bytes) -> None:
    root = put_classes(tmp_path / "images", 2, ("n01", "n02"))
    (tmp_path / name).write_bytes(content)
    assert opened(root, class_map=str(tmp_path / name)).classes == ("pet", "\u00e9t\u00e9")

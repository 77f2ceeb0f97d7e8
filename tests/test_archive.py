"""Archives of images and WebDataset shards: the same data as the folder, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import pickle
import shutil
import subprocess
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import png, put, put_classes

from distillcli.config.schema import AugmentConfig, DatasetConfig
from distillcli.errors import UserError
from distillcli.runtime import Runtime
from distillcli.sources.archive import members_of
from distillcli.sources.open import open_source
from distillcli.sources.source import EncodedImages, Source, Split
from distillcli.views.loader import open_data
from distillcli.views.showing import Showing


def opened(root: Path, name: str = "archive", **options: Any) -> Source:
    return open_source(DatasetConfig(name=name, root=str(root), **options))


def refused(root: Path, name: str = "archive", **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def packed(folder: Path, kind: str) -> Path:
    """What is in ``folder``, by the tools people use."""
    if kind == "tar":
        subprocess.run(["tar", "-cf", "../mine.tar", "."], cwd=folder, check=True)
    else:
        method = zipfile.ZIP_STORED if kind == "stored zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(folder.parent / "mine.zip", "w", method) as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder))
    return folder.parent / f"mine.{kind[-3:]}"


def shard(file: Path, **files: bytes) -> Path:
    """A tar of files whose names are written with __ for a dot."""
    file.parent.mkdir(exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.replace("__", "."))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file


def names(split: Split) -> tuple[str, ...]:
    assert isinstance(split.images, EncodedImages)
    return split.images.names


@pytest.mark.parametrize("kind", ["tar", "stored zip", "deflated zip"])
@pytest.mark.parametrize("around", ["", "dataset/inner"])
def test_an_archive_is_the_folder_that_was_packed(tmp_path: Path, kind: str, around: str) -> None:
    folder = tmp_path / "images" / around
    for part, count in (("train", 5), ("test", 3)):
        put_classes(folder / part, count)
    put(folder / "train" / "cat" / "deep" / "x.PNG", 99)
    put(folder / "train" / "cat" / ".hidden.png")
    put(folder / "train" / "__MACOSX" / "cat.png")
    expected, found = opened(folder, "folder"), opened(packed(tmp_path / "images", kind))
    assert (found.name, found.classes) == ("mine", expected.classes)
    for one, other in ((expected.train, found.train), (expected.val, found.val), (expected.test, found.test)):
        assert one is not None
        assert other is not None
        assert names(one) == names(other)
        assert one.labels.tolist() == other.labels.tolist()
        for row in reversed(range(len(one.labels))):
            np.testing.assert_array_equal(one.images.read(row), other.images.read(row))


def test_labels_and_class_map_serve_archives_too(tmp_path: Path) -> None:
    for number in range(4):
        put(tmp_path / "flat" / f"{number}.png", number)
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(4)))
    (tmp_path / "map.txt").write_text("0 even\n1 odd\n")
    archive = packed(tmp_path / "flat", "tar")
    source = opened(archive, labels=str(tmp_path / "labels.csv"), class_map=str(tmp_path / "map.txt"))
    assert source.classes == ("even", "odd")
    assert [source.train.images.read(row)[0, 0, 0] % 2 for row in range(2)] == source.train.labels.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_read_the_right_images(tmp_path: Path, workers: int) -> None:
    put_classes(tmp_path / "images", 6)
    config = DatasetConfig(
        name="archive", root=str(packed(tmp_path / "images", "deflated zip")), image_size=8, memory_gb=0
    )
    source = open_source(config)
    loader = open_data(source, config, workers, Runtime(torch.device("cpu"))).train
    for batch in [
        *loader.plain(),
        *(part for parts in Showing(loader, AugmentConfig(), 0, 4).epoch(1) for part in parts),
    ]:
        expected = [source.train.images.read(position)[0, 0, 0] / 255 for position in batch.index.tolist()]
        np.testing.assert_allclose(batch.images.mean((1, 2, 3)), expected, atol=1e-3)


def test_damage_is_noticed_and_named(tmp_path: Path) -> None:
    for kind in ("stored zip", "deflated zip"):
        file = packed(put_classes(tmp_path / "images"), kind)
        source = opened(file)
        data = bytearray(file.read_bytes())
        with zipfile.ZipFile(file) as archive:
            entry = archive.getinfo("cat/1.png")
        data[entry.header_offset + 30 + len(entry.filename) + 20] ^= 1
        file.write_bytes(data)
        row = [*names(source.train)].index("cat/1.png") if "cat/1.png" in names(source.train) else None
        split, row = (source.train, row) if row is not None else (source.val, names(source.val).index("cat/1.png"))
        with pytest.raises(UserError, match=r"mine\.zip/cat/1\.png: (is damaged|cannot be read)"):
            split.images.read(row)
        file.unlink()
        with pytest.raises(UserError, match=r"mine\.zip/cat/.*: cannot be read"):
            split.images.read(row)


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    put_classes(tmp_path / "images")
    for name in ("cat", "dog"):
        (tmp_path / "images" / name / "0.png").write_bytes(b"<html>404")
    source = opened(packed(tmp_path / "images", "tar"), val_fraction=0.5)
    row = names(source.train).index("cat/0.png") if "cat/0.png" in names(source.train) else -1
    split = source.train if row >= 0 else source.val
    with pytest.raises(UserError, match=r"mine\.tar/cat/0\.png: a web page"):
        split.images.read(names(split).index("cat/0.png"))


def test_what_has_no_random_access_or_could_be_misread_is_refused(tmp_path: Path) -> None:
    folder = put_classes(tmp_path / "images")
    subprocess.run(["tar", "-czf", "../mine.tar.gz", "."], cwd=folder, check=True)
    assert "a compressed tar has no random access" in refused(tmp_path / "mine.tar.gz")
    assert "is a folder" in refused(folder)
    assert "no such file" in refused(tmp_path / "none.zip")
    cut = packed(folder, "tar")
    whole = cut.read_bytes()
    for length in (700, 1500, 1536, 1600):  # within a header, within an image, between members
        cut.write_bytes(whole[:length])
        message = refused(cut)
        assert "the end is missing" in message or "unexpected end of data" in message
    cut = packed(folder, "stored zip")
    cut.write_bytes(cut.read_bytes()[:-30])
    assert "cannot be read as an archive" in refused(cut)
    with zipfile.ZipFile(cut, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a/b.png", png())
    assert "unsupported compression" in refused(cut)
    with zipfile.ZipFile(cut, "w") as archive:
        archive.writestr("readme.txt", "")
    assert "contains no images" in refused(cut)
    (folder / "cat" / "link.png").symlink_to("0.png")
    assert "cat/link.png: is a link" in refused(packed(folder, "tar"))
    with tarfile.open(cut, "w") as archive:
        archive.add(folder / "cat" / "0.png", "cat/0.png")
        archive.add(folder / "dog" / "0.png", "cat/0.png")
    assert "is in the archive twice" in refused(cut)
    put(folder / "loose.png")
    (folder / "cat" / "link.png").unlink()
    assert "1 image outside the class folders" in refused(packed(folder, "tar"))


def test_a_source_travels_to_a_spawned_process(tmp_path: Path) -> None:
    source = opened(packed(put_classes(tmp_path / "images"), "tar"))
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.train.images.read(2), source.train.images.read(2))


# WebDataset


def shards(folder: Path) -> Path:
    shard(folder / "mine-train-0000.tar", a__png=png(1), a__cls=b"2", b__PNG=png(2), b__cls=b"10\n")
    shard(
        folder / "mine-train-0001.tar", a__jpg=png(3), a__json=b'{"label": 10, "width": 4}', c__png=png(4), c__cls=b"2"
    )
    shard(folder / "mine-val-0000.tar", v__json=b'{"class": "2"}', v__png=png(5))
    return folder


def test_shards(tmp_path: Path) -> None:
    source = opened(shards(tmp_path), "webdataset")
    assert source.classes == ("2", "10")
    files = ["0000.tar/a.png", "0000.tar/b.PNG", "0001.tar/a.jpg", "0001.tar/c.png"]
    assert list(names(source.train)) == [f"mine-train-{file}" for file in files]
    assert source.train.labels.tolist() == [0, 1, 1, 0]
    assert [source.train.images.read(row)[0, 0, 0] for row in range(4)] == [1, 2, 3, 4]
    assert source.val.labels.tolist() == [0]
    assert source.test is None
    (tmp_path / "names.csv").write_text("folder,class\n2,tabby\n10,pug\n")
    assert opened(tmp_path, "webdataset", class_map=str(tmp_path / "names.csv")).classes == ("tabby", "pug")


def test_shards_without_val_are_split(tmp_path: Path) -> None:
    files = {f"{number}__png": png(number) for number in range(8)}
    shard(tmp_path / "train.tar", **files, **{f"{number}__cls": b"ab"[number % 2 :][:1] for number in range(8)})
    source = opened(tmp_path, "webdataset", val_fraction=0.25)
    assert np.bincount(source.val.labels).tolist() == [1, 1]
    for split in (source.train, source.val):
        assert [split.images.read(row)[0, 0, 0] % 2 for row in range(len(split.labels))] == split.labels.tolist()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a__png": png()}, "sample 'a' has no label in a .cls or .json file, only 'png'"),
        ({"a__cls": b"1"}, "sample 'a' has no image, only 'cls'"),
        ({"a__png": png(), "a__jpg": png(), "a__cls": b"1"}, "sample 'a' has 2 images"),
        ({"a__png": png(), "a__cls": b" \n"}, "its label is empty"),
        ({"a__png": png(), "a__json": b"{"}, "is not JSON"),
        ({"a__png": png(), "a__json": b'{"label": [1, 0]}'}, "needs one label"),
        (
            {"a__png": png(), "a__json": b'{"label": 1, "class": "x"}'},
            "'label', 'class' of its .json could each",
        ),
        ({"a__v2__png": png(), "a__v2__cls": b"1"}, "'a.v2.cls' is the .v2.cls of 'a'; rename such files"),
        ({"a__png": png(), "a__v2__cls": b"1"}, "a name ends at its first dot"),
    ],
)
def test_samples_that_could_be_misread(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    shard(tmp_path / "train-0.tar", **files)
    assert said in refused(tmp_path, "webdataset")


def test_shards_of_no_part(tmp_path: Path) -> None:
    assert "has no training shards" in refused(tmp_path, "webdataset")
    shards(tmp_path)
    shard(tmp_path / "extra.tar", a__png=png(), a__cls=b"2")
    assert "extra.tar: the name must say" in refused(tmp_path, "webdataset")
    (tmp_path / "extra.tar").rename(tmp_path / "train_val.tar")
    assert "train_val.tar: the name must say" in refused(tmp_path, "webdataset")
    (tmp_path / "train_val.tar").unlink()
    shard(tmp_path / "test.tar", a__png=png(), a__cls=b"3")
    assert "'3' only in test, no training image has that class" in refused(tmp_path, "webdataset")


# --- hostile and foreign archives ----------------------------------------------------------------------------------


@pytest.mark.fault("F7.6")
def test_a_member_is_not_inflated_beyond_the_size_that_the_archive_tells(tmp_path: Path) -> None:
    file = packed(put_classes(tmp_path / "images"), "deflated zip")
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/bomb.png", bytes(50_000_000))
    member = dataclasses.replace(members_of(file)["cat/bomb.png"], size=100)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"cat/bomb\.png: is damaged or has changed"):
        member.content()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    with pytest.raises(UserError, match=r"has 1,073,741,825 bytes, more than an image may have"):
        dataclasses.replace(member, size=2**30 + 1).content()


@pytest.mark.fault("F5.9")
def test_a_zip_with_the_paths_of_windows_is_read(tmp_path: Path) -> None:
    folder = put_classes(tmp_path / "images")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("cat\\", b"")
        for path in sorted(folder.rglob("*.png")):
            archive.writestr(str(path.relative_to(folder)).replace("/", "\\"), path.read_bytes())
    source = opened(tmp_path / "mine.zip")
    assert source.classes == ("cat", "dog")
    assert len(source.train.labels) + len(source.evaluation.labels) == 8


@pytest.mark.fault("F1.3", "F1.5", "F1.6", "F5.7", "F5.8")
def test_archives_are_read_by_the_rules_of_folders(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    put_classes(folder / "Training", 4)
    put(folder / "testing" / "1.png")
    put(folder / "val" / "dog" / "1.png")
    (folder / "Training" / "cat" / "a.heic").write_bytes(b"x")
    (folder / "Training" / "cat" / "b.bin").write_bytes(png())
    source = opened(packed(folder, "tar"))
    assert (len(source.train.labels), source.evaluation.labels.tolist(), source.test) == (8, [1], None)
    assert source.ignored == (
        "Training/cat/a.heic: Pillow does not read .heic",
        "Training/cat/b.bin: an image named .bin",
    )
    assert len(source.notes) == 3
    shutil.copytree(folder / "Training", folder / "Test")
    shutil.rmtree(folder / "testing")
    assert "test repeats train" in refused(packed(folder, "tar"))


@pytest.mark.fault("F1.5")
def test_arrays_and_shards_may_not_repeat_either(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 255, (8, 4, 4), np.uint8)
    arrays = {"x_train": pixels, "y_train": np.arange(8) % 2}
    np.savez(tmp_path / "all.npz", **arrays, x_val=pixels[:4], y_val=np.arange(4) % 2)
    assert "val repeats train" in refused(tmp_path / "all.npz", "npz")
    other = np.concatenate([pixels[:1], pixels[:3] + 1])
    np.savez(tmp_path / "some.npz", **arrays, x_val=other, y_val=np.arange(4) % 2)
    assert "1 of the 4 images of val are in train too" in opened(tmp_path / "some.npz", "npz").notes[0]
    files = {"a__png": png(1), "a__cls": b"x", "b__png": png(2), "b__cls": b"y"}
    shard(tmp_path / "shards" / "train.tar", **files)
    shard(tmp_path / "shards" / "val.tar", **files)
    assert "val repeats train" in refused(tmp_path / "shards", "webdataset")


@pytest.mark.fault("F8.11")
@pytest.mark.parametrize("name", ["npz", "archive", "webdataset"])
def test_every_data_set_can_keep_all_images_for_training(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    if name == "npz":
        root = tmp_path / "a.npz"
        np.savez(root, images=np.arange(8 * 16, dtype=np.uint8).reshape(8, 4, 4), labels=np.arange(8) % 2)
    elif name == "archive":
        root = packed(put_classes(tmp_path / "images"), "tar")
    else:
        shard(
            root / "train.tar",
            **{f"{n}__png": png(n) for n in range(8)},
            **{f"{n}__cls": b"%d" % (n % 2) for n in range(8)},
        )
    source = opened(root, name, val_fraction=0.0)
    assert (source.val, len(source.train.labels), source.evaluated_on) == (None, 8, "all")

"""Folders of images: what is read, what is refused, and what the fingerprint depends on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import put, put_classes

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.folder import FileImages
from distillcli.sources.listing import hold_out
from distillcli.sources.open import open_source
from distillcli.sources.source import Source, Split


def opened(root: Path, **options: object) -> Source:
    return open_source(DatasetConfig(name="folder", root=str(root), **options))  # type: ignore[arg-type]


def refused(root: Path, *said: str, **options: object) -> None:
    with pytest.raises(UserError) as caught:
        opened(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message, message


def names(split: Split | None) -> tuple[str, ...]:
    assert split is not None
    assert isinstance(split.images, FileImages)
    return split.images.names


@pytest.mark.parametrize("val", ["val", "validation", "valid", "Val"])
def test_train_val_and_test_folders(tmp_path: Path, val: str) -> None:
    for part in ("train", val, "test"):
        put_classes(tmp_path / part)
    source = opened(tmp_path)
    assert source.classes == ("cat", "dog")
    assert names(source.train)[:2] == ("train/cat/0.png", "train/cat/1.png")
    assert names(source.val)[0] == f"{val}/cat/0.png"
    assert names(source.test)[-1] == "test/dog/3.png"
    assert source.train.labels.tolist() == [0] * 4 + [1] * 4
    assert source.train.labels.dtype == np.int64
    assert source.train.images.read(5)[0, 0].tolist() == [51, 51, 51]
    assert source.train.images.name(5) == str(tmp_path / "train/dog/1.png")
    assert source.evaluated_on == "test"


def test_train_and_val_without_test_are_evaluated_on_val(tmp_path: Path) -> None:
    put_classes(tmp_path / "train")
    put_classes(tmp_path / "val")
    put(tmp_path / "extra" / "1.png")
    source = opened(tmp_path)
    assert source.test is None
    assert source.evaluated_on == "val"
    assert len(names(source.train)) == 8


def test_without_val_it_is_held_out_of_train_and_test_stays(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", 10)
    put_classes(tmp_path / "test", 3)
    source = opened(tmp_path, val_fraction=0.2)
    assert all(name.startswith("train/") for name in names(source.train) + names(source.val))
    assert len(names(source.train)) == 16
    assert source.val.labels.tolist() == [0, 0, 1, 1]
    assert len(names(source.test)) == 6


def test_a_flat_folder_is_split_by_class_disjoint_and_the_same_every_time(tmp_path: Path) -> None:
    put_classes(tmp_path, 20, ("a",))
    put_classes(tmp_path, 10, ("b", "c"))
    source = opened(tmp_path, val_fraction=0.3)
    assert np.bincount(source.train.labels).tolist() == [14, 7, 7]
    assert np.bincount(source.val.labels).tolist() == [6, 3, 3]
    assert set(names(source.train)).isdisjoint(names(source.val))
    assert len(set(names(source.train) + names(source.val))) == 40
    assert all(name[0] == "abc"[label] for name, label in zip(names(source.val), source.val.labels, strict=True))
    assert names(opened(tmp_path, val_fraction=0.3).val) == names(source.val)
    assert names(opened(tmp_path, val_fraction=0.3, split_seed=1).val) != names(source.val)


def test_every_class_keeps_an_image_on_both_sides() -> None:
    labels = np.array([0] * 100 + [1] * 2)
    for fraction in (0.01, 0.99):
        kept, held = hold_out(labels, ("a", "b"), fraction, 0, "here")
        assert np.bincount(labels[kept]).min() == np.bincount(labels[held]).min() == 1
        assert sorted([*kept, *held]) == list(range(102))
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="val_fraction"):
            hold_out(labels, ("a", "b"), fraction, 0, "here")


def test_images_at_any_depth_any_case_and_odd_names(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "deep" / "er" / "A B.PNG")
    put(tmp_path / "cat" / "b\nc.JpEg")
    put(tmp_path / "größe 猫" / "ü.tIFF")
    put(tmp_path / "größe 猫" / "x.webp")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    source = opened(tmp_path, val_fraction=0.5)
    assert source.classes == ("cat", "größe 猫")
    found = {*names(source.train), *names(source.val)}
    assert found == {"cat/b\nc.JpEg", "cat/deep/er/A B.PNG", "größe 猫/x.webp", "größe 猫/ü.tIFF"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only Unicode names")
def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    put_classes(tmp_path)
    (tmp_path / "cat" / "0.png").rename(os.fsdecode(os.fsencode(tmp_path / "cat") + b"/\xff.png"))
    source = opened(tmp_path, val_fraction=0.5)
    assert len(source.fingerprint) == 32
    os.truncate(os.fsencode(tmp_path / "cat") + b"/\xff.png", 0)
    position, split = next(
        (split.images.names.index("cat/\udcff.png"), split)  # type: ignore[attr-defined]
        for split in (source.train, source.val)
        if "cat/\udcff.png" in names(split)
    )
    with pytest.raises(UserError, match="empty") as caught:
        split.images.read(position)
    str(caught.value).encode()


def test_classes_are_in_lexicographic_order(tmp_path: Path) -> None:
    put_classes(tmp_path, 2, ("class10", "class9", "B", "a"))
    assert opened(tmp_path).classes == ("B", "a", "class10", "class9")


def test_hidden_files_and_leftovers_are_ignored(tmp_path: Path) -> None:
    put_classes(tmp_path)
    before = opened(tmp_path)
    put_classes(tmp_path / "__MACOSX")
    put(tmp_path / ".hidden" / "a.png")
    put(tmp_path / ".loose.png")
    put(tmp_path / "cat" / "._0.png")
    put(tmp_path / "cat" / ".thumbnails" / "0.png")
    for leftover in (".DS_Store", "Thumbs.db", "cat/Thumbs.db", "cat/.DS_Store"):
        (tmp_path / leftover).write_bytes(b"x")
    assert opened(tmp_path).fingerprint == before.fingerprint


def test_classes_called_like_a_part(tmp_path: Path) -> None:
    put_classes(tmp_path / "vehicles", 2, ("bus", "train"))
    assert opened(tmp_path / "vehicles").classes == ("bus", "train")
    put_classes(tmp_path / "quality", 2, ("invalid", "valid"))
    assert opened(tmp_path / "quality").classes == ("invalid", "valid")


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    put_classes(tmp_path / "real")
    root = tmp_path / "linked"
    root.mkdir()
    (root / "cat").symlink_to(tmp_path / "real" / "cat")
    put(root / "dog" / "a.png")
    (root / "dog" / "b.png").symlink_to(tmp_path / "real" / "dog" / "0.png")
    (root / "dog" / "again").symlink_to(root / "dog")
    (root / "dog" / "up").symlink_to(root)
    (root / "dog" / "self").symlink_to(root / "dog" / "self")
    source = opened(root)
    assert source.classes == ("cat", "dog")
    found = sorted(names(source.train) + names(source.val))
    assert found == ["cat/0.png", "cat/1.png", "cat/2.png", "cat/3.png", "dog/a.png", "dog/b.png"]


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    put_classes(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert len(names(opened(tmp_path).train)) == 6


def test_the_root_must_be_a_folder_of_class_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs dataset\.root=PATH"):
        open_source(DatasetConfig(name="folder"))
    refused(tmp_path / "none", str(tmp_path / "none"), "no such folder", "expected ROOT/CLASS/IMAGES")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", str(tmp_path / "file"), "is a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", str(tmp_path / "empty"), "no class folders")


def test_loose_images_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "flat" / "a.png")
    refused(tmp_path / "flat", str(tmp_path / "flat"), "1 image outside the class folders", "'a.png'", "move them")
    put_classes(tmp_path / "mixed")
    put(tmp_path / "mixed" / "a.png")
    refused(tmp_path / "mixed", "1 image outside the class folders")
    for part in ("train", "val"):
        put_classes(tmp_path / "parts" / part)
    for name in ("a.png", "b.png"):
        put(tmp_path / "parts" / "test" / name)
    refused(tmp_path / "parts", str(tmp_path / "parts" / "test"), "2 images outside the class folders")
    put(tmp_path / "only" / "train" / "a.png")
    refused(tmp_path / "only", str(tmp_path / "only" / "train"), "outside the class folders")


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    put_classes(tmp_path)
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / "notes.txt").write_text("")
    refused(tmp_path, str(tmp_path / "cow"), "without images", "add some or remove it")


def test_one_class_is_refused_and_points_to_the_folder_inside(tmp_path: Path) -> None:
    put_classes(tmp_path / "unpacked")
    refused(tmp_path, "only one class folder", f"dataset.root={tmp_path / 'unpacked'}")


def test_different_classes_are_listed(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", 2, ("ant", "bee", "cat"))
    put_classes(tmp_path / "val", 2, ("bee", "cat", "dog"))
    refused(tmp_path, str(tmp_path), "'ant' only in train/", "'dog' only in val/")
    shutil.rmtree(tmp_path / "val")
    put_classes(tmp_path / "test", 2, ("ant", "bee"))
    refused(tmp_path, "'cat' only in train/", "train/ and test/")


def test_a_class_with_one_image_cannot_be_split(tmp_path: Path) -> None:
    put_classes(tmp_path)
    put(tmp_path / "rare" / "a.png")
    refused(tmp_path, str(tmp_path), "class 'rare' has 1 image,", "val/")


def test_the_same_folder_twice_is_refused(tmp_path: Path) -> None:
    put_classes(tmp_path / "train")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    refused(tmp_path, str(tmp_path / "train"), str(tmp_path / "val"), "are the same folder")


def test_ambiguous_parts_are_refused(tmp_path: Path) -> None:
    put_classes(tmp_path / "two" / "train")
    put_classes(tmp_path / "two" / "val")
    put_classes(tmp_path / "two" / "valid")
    refused(tmp_path / "two", "'val', 'valid' could each be the val part")
    put_classes(tmp_path / "no_train" / "training")
    put_classes(tmp_path / "no_train" / "validation")
    refused(tmp_path / "no_train", "'validation' but no train/")
    put_classes(tmp_path / "beside" / "train")
    put(tmp_path / "beside" / "bus" / "a.png")
    refused(tmp_path / "beside", "train/ beside 'bus'", f"dataset.root={tmp_path / 'beside' / 'train'}")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    put_classes(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    refused(tmp_path, str(tmp_path / "cat" / "gone.png"), "cannot be read", "remove it")


def test_hostile_names_stay_on_one_line(tmp_path: Path) -> None:
    put_classes(tmp_path, 2, ("a\nb", "c"))
    (tmp_path / "x\x1b[31m\ny").mkdir()
    refused(tmp_path, r"x\x1b[31m\ny", "without images")


def test_the_fingerprint_is_that_of_the_data_not_of_the_place_or_the_time(tmp_path: Path) -> None:
    put_classes(tmp_path / "one")
    fingerprint = opened(tmp_path / "one").fingerprint
    shutil.copytree(tmp_path / "one", tmp_path / "deep" / "two", copy_function=shutil.copyfile)
    for path in (tmp_path / "deep" / "two").rglob("*.png"):
        os.utime(path, (1, 1))
    assert opened(tmp_path / "deep" / "two").fingerprint == fingerprint


def test_the_fingerprint_changes_with_content_names_labels_and_the_split(tmp_path: Path) -> None:
    root = put_classes(tmp_path)
    seen = {opened(root).fingerprint}

    def changed() -> bool:
        fingerprint = opened(root).fingerprint
        new = fingerprint not in seen
        seen.add(fingerprint)
        return new

    data = bytearray((root / "cat" / "0.png").read_bytes())
    data[-20] ^= 1
    (root / "cat" / "0.png").write_bytes(data)
    assert changed()  # one bit
    (root / "cat" / "1.png").rename(root / "cat" / "9.png")
    assert changed()
    (root / "cat" / "9.png").rename(root / "dog" / "9.png")
    assert changed()
    (root / "dog").rename(root / "wolf")
    assert changed()
    assert opened(root, split_seed=5).fingerprint not in seen


def test_nothing_here_imports_torch() -> None:
    code = (
        "import sys, distillcli.sources.open; assert not {'torch', 'torchvision', 'timm', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

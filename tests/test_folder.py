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
from PIL import Image

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources import overlap
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


@pytest.mark.fault("F1.3")
@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("train", "validation", "Test"),
        ("Training", "valid", "Testing"),
        ("training_set", "Val", "test-set"),
        ("trainset", "Validation Set", "testset"),
    ],
)
def test_folders_named_after_parts_are_parts_in_every_usual_spelling(
    tmp_path: Path, train: str, val: str, test: str
) -> None:
    for part in (train, val, test):
        put_classes(tmp_path / part)
    source = opened(tmp_path)
    assert source.classes == ("cat", "dog")
    assert names(source.train)[:2] == (f"{train}/cat/0.png", f"{train}/cat/1.png")
    assert names(source.val)[0] == f"{val}/cat/0.png"
    assert names(source.test)[-1] == f"{test}/dog/3.png"
    assert source.train.labels.tolist() == [0] * 4 + [1] * 4
    assert source.train.labels.dtype == np.int64
    assert source.train.images.read(5)[0, 0].tolist() == [51, 51, 51]
    assert source.train.images.name(5) == str(tmp_path / train / "dog/1.png")
    assert source.evaluated_on == "test"


def test_train_and_val_without_test_are_evaluated_on_val(tmp_path: Path) -> None:
    put_classes(tmp_path / "train")
    put_classes(tmp_path / "val")
    put(tmp_path / "extra" / "1.png")
    source = opened(tmp_path)
    assert source.test is None
    assert source.evaluated_on == "val"
    assert len(names(source.train)) == 8
    (note,) = source.notes
    assert str(tmp_path / "extra") in note
    assert "left aside, 1 image" in note


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


@pytest.mark.fault("R28")
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


@pytest.mark.fault("R28")
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


@pytest.mark.fault("R28")
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


@pytest.mark.fault("R18")
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
    put(tmp_path / "only" / "train" / "a.png")
    refused(tmp_path / "only", str(tmp_path / "only" / "train"), "outside the class folders")


@pytest.mark.fault("R19")
def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    put_classes(tmp_path)
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / "notes.txt").write_text("")
    refused(tmp_path, str(tmp_path / "cow"), "without images", "add some or remove it")


def test_one_class_is_refused_and_points_to_the_folder_inside(tmp_path: Path) -> None:
    put_classes(tmp_path / "unpacked")
    refused(tmp_path, "only one class folder", f"dataset.root={tmp_path / 'unpacked'}")


@pytest.mark.fault("R20", "F5.7")
def test_a_class_that_no_training_image_has_is_refused(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", 2, ("ant", "bee", "cat"))
    put_classes(tmp_path / "val", 2, ("bee", "cat", "dog"))
    refused(tmp_path, str(tmp_path / "val"), "'dog' only in val/", "no training image has that class")


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
    put_classes(tmp_path / "no_train" / "test")
    put_classes(tmp_path / "no_train" / "validation")
    refused(tmp_path / "no_train", "'validation', 'test' but no train/")
    put_classes(tmp_path / "beside" / "train")
    put(tmp_path / "beside" / "bus" / "a.png")
    refused(tmp_path / "beside", "train/ beside 'bus'", f"dataset.root={tmp_path / 'beside' / 'train'}")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    put_classes(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    refused(tmp_path, str(tmp_path / "cat" / "gone.png"), "cannot be read", "remove it")


@pytest.mark.fault("R28", "R29")
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


# --- nothing about the layout is guessed ---------------------------------------------------------------------------


@pytest.mark.fault("F1.3")
@pytest.mark.parametrize(
    "parts", [("seg_train", "seg_test"), ("asl-train", "asl-val", "pred"), ("A", "B"), ("f1", "f2")]
)
def test_folders_that_look_like_parts_are_never_taken_for_classes(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        put_classes(tmp_path / part, 2)
    refused(tmp_path, "look like parts", repr(parts[0]), "rename them to train, val and test", "dataset.class_map=FILE")


@pytest.mark.fault("F1.3")
def test_folders_that_look_like_parts_are_refused_however_deep_their_classes_are(tmp_path: Path) -> None:
    put_classes(tmp_path / "seg_train" / "seg_train", 2)
    put_classes(tmp_path / "seg_test" / "seg_test", 2)
    put(tmp_path / "seg_pred" / "1.png")
    refused(tmp_path, "'seg_test', 'seg_train' look like parts")


@pytest.mark.fault("F1.3")
def test_who_names_the_classes_may_have_the_same_folders_in_all_of_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        put_classes(tmp_path / "images" / name, 2, ("day", "night"))
    refused(tmp_path / "images", "every class folder holds the same sub-folders ('day', 'night')")
    (tmp_path / "map.csv").write_text("cat,cat\ndog,dog\n")
    assert opened(tmp_path / "images", class_map=str(tmp_path / "map.csv")).classes == ("cat", "dog")


def test_one_folder_in_every_class_is_no_part(tmp_path: Path) -> None:
    for name in ("cat", "dog", "test_tube"):
        put(tmp_path / name / "images" / "1.png")
        put(tmp_path / name / "images" / "2.png")
    assert opened(tmp_path).classes == ("cat", "dog", "test_tube")


@pytest.mark.fault("F1.5")
@pytest.mark.parametrize("part", ["val", "test"])
def test_a_part_that_repeats_train_is_refused_by_its_content(tmp_path: Path, part: str) -> None:
    put_classes(tmp_path / "train")
    shutil.copytree(tmp_path / "train", tmp_path / part)
    (tmp_path / part / "cat" / "0.png").rename(tmp_path / part / "cat" / "other.png")
    refused(tmp_path, str(tmp_path), f"{part} repeats train, each of its images is there too", "point", "remove it")


@pytest.mark.fault("F1.5")
def test_test_may_not_repeat_val(tmp_path: Path) -> None:
    put_classes(tmp_path / "train")
    put_classes(tmp_path / "val")
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    refused(tmp_path, "test repeats val")


@pytest.mark.fault("F1.5")
def test_a_partial_overlap_is_said_with_its_count(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", 5)
    put_classes(tmp_path / "val", 3)
    for name in ("cat", "dog"):
        shutil.copy(tmp_path / "train" / name / "4.png", tmp_path / "val" / name / "copy.png")
    (note,) = opened(tmp_path).notes
    assert "2 of the 8 images of val are in train too" in note
    assert "val/cat/copy.png" in note
    assert "train/cat/4.png" in note


@pytest.mark.fault("F1.5")
def test_copies_on_both_sides_of_a_held_out_part_are_said(tmp_path: Path) -> None:
    put_classes(tmp_path, 4)
    for file in [*tmp_path.rglob("*.png")]:
        for number in range(3):
            shutil.copy(file, file.with_name(f"{file.stem}-{number}.png"))
    (note,) = opened(tmp_path, val_fraction=0.25).notes
    assert "of the 8 images of val are in train too" in note


@pytest.mark.fault("F1.5")
def test_large_parts_are_compared_by_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MOST_READ", 1)
    monkeypatch.setattr(overlap, "SAMPLE", 2)
    put_classes(tmp_path / "train", 6)
    put_classes(tmp_path / "val", 4)
    shutil.copy(tmp_path / "train" / "cat" / "0.png", tmp_path / "val" / "cat" / "0.png")
    assert "1 of the 2 images of val that were compared (of 8)" in opened(tmp_path).notes[0]


@pytest.mark.fault("F1.6")
@pytest.mark.parametrize("ending", ["jfif", "jpe", "JP2", "tga", "ico", "pbm", "dib", "webp", "mpo"])
def test_what_pillow_reads_is_read(tmp_path: Path, ending: str) -> None:
    put_classes(tmp_path, 2)
    kind = {"jfif": "JPEG", "jpe": "JPEG", "mpo": "JPEG"}.get(ending)
    mode = "1" if ending == "pbm" else "RGB"
    Image.new(mode, (16, 16)).save(tmp_path / "cat" / f"x.{ending}", kind)
    source = opened(tmp_path, val_fraction=0.4)
    found = dict(zip(names(source.train) + names(source.val), range(5), strict=True))
    assert f"cat/x.{ending}" in found
    assert (source.ignored, source.notes) == ((), ())
    for split in (source.train, source.val):
        for row in range(len(split.images)):
            split.images.read(row)


@pytest.mark.fault("F1.6")
def test_files_that_look_like_images_and_are_not_read_are_counted_with_the_reason(tmp_path: Path) -> None:
    put_classes(tmp_path, 3)
    (tmp_path / "cat" / "a.heic").write_bytes(b"x")
    (tmp_path / "cat" / "deep").mkdir()
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / "deep" / "backup.png~")
    shutil.copy(tmp_path / "dog" / "0.png", tmp_path / "dog" / "0001")
    (tmp_path / "dog" / "notes.docx").write_bytes(b"PK")
    (tmp_path / "dog" / "box.txt").write_text("1 2 3 4")
    source = opened(tmp_path)
    assert sorted(source.ignored) == [
        "cat/a.heic: Pillow does not read .heic",
        "cat/deep/backup.png~: an image named .png~",
        "dog/0001: an image whose name has no ending",
    ]
    (note,) = source.notes
    assert "3 files look like images and are not read, e.g. 'cat/a.heic' (Pillow does not read .heic)" in note


@pytest.mark.fault("F1.6")
def test_a_class_of_images_that_are_not_read_says_so(tmp_path: Path) -> None:
    put_classes(tmp_path)
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / "a.heic").write_bytes(b"x")
    refused(tmp_path, "cow: class folder without images; 1 file looks like an image", "'cow/a.heic'", "convert")


@pytest.mark.fault("F5.7", "R20")
def test_a_class_may_be_absent_from_val_and_test_and_this_is_counted(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", 2, ("ant", "bee", "cat"))
    put_classes(tmp_path / "val", 2, ("bee", "cat"))
    put(tmp_path / "test" / "cat" / "a.png")
    before = opened(tmp_path)
    assert before.val is not None
    assert before.val.labels.tolist() == [1, 1, 2, 2]
    assert before.evaluation.labels.tolist() == [2]
    of_val, of_test = before.notes
    assert "val has no image of 1 of the 3 classes ('ant')" in of_val
    assert "test has no image of 2 of the 3 classes ('ant', 'bee')" in of_test
    (tmp_path / "val" / "ant").mkdir()
    (tmp_path / "val" / "dog").mkdir()
    after = opened(tmp_path)
    assert (after.notes, after.fingerprint) == (before.notes, before.fingerprint), "an empty folder is no folder"


@pytest.mark.fault("F5.8")
@pytest.mark.parametrize("part", ["test", "val"])
def test_a_part_without_labels_is_left_aside_and_this_is_said(tmp_path: Path, part: str) -> None:
    put_classes(tmp_path / "train", 4)
    for number in range(3):
        put(tmp_path / part / f"{number}.png", number)
    source = opened(tmp_path, val_fraction=0.25)
    assert (len(source.train.labels), len(source.evaluation.labels), source.evaluated_on) == (6, 2, "val")
    (note,) = source.notes
    assert note.startswith(str(tmp_path / part))
    assert "left aside, 3 images outside class folders, so without labels" in note


@pytest.mark.fault("F5.6")
def test_accents_written_in_two_ways_are_one_class(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", 2, ("\u00e9t\u00e9", "zoo"))
    put_classes(tmp_path / "val", 2, ("e\u0301te\u0301", "zoo"))
    source = opened(tmp_path)
    assert source.classes == ("zoo", "\u00e9t\u00e9")
    assert source.evaluation.labels.tolist() == [0, 0, 1, 1]
    put(tmp_path / "train" / "e\u0301te\u0301" / "a.png")
    refused(tmp_path, "two folders are named '\u00e9t\u00e9'", "merge them")


@pytest.mark.fault("F5.9", "R24")
@pytest.mark.parametrize(("largest", "said"), [(4095, "16"), (255, "257"), (65535, None)])
def test_sixteen_bits_that_hold_fewer_are_said_with_the_factor(tmp_path: Path, largest: int, said: str | None) -> None:
    for name in ("cat", "dog"):
        for number in range(4):
            (tmp_path / name).mkdir(exist_ok=True)
            values = np.linspace(0, largest, 16).reshape(4, 4).astype(np.uint16)
            values[0, number] = 1 + 10 * number + (name == "dog")
            Image.fromarray(values).save(tmp_path / name / f"{number}.png")
    notes = opened(tmp_path).notes
    assert opened(tmp_path, channels=1).notes == notes
    if said is None:
        assert notes == ()
    else:
        assert f"largest value is {largest:,} of 65,535" in notes[-1]
        assert f"multiply their values by {said}," in notes[-1]


# --- without validation data ---------------------------------------------------------------------------------------


@pytest.mark.fault("F8.11")
def test_nothing_is_held_out_with_a_fraction_of_zero(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", 5)
    put_classes(tmp_path / "test", 2)
    source = opened(tmp_path, val_fraction=0.0)
    assert (source.val, len(source.train.labels), source.evaluated_on) == (None, 10, "test")
    put_classes(tmp_path / "val", 2)
    assert opened(tmp_path, val_fraction=0.0).val is not None, "a part of the data stays"
    assert opened(tmp_path, val_fraction=0.0).fingerprint != source.fingerprint

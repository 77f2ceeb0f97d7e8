"""The built-in sets, and torchvision's real loading code on tiny files in the formats it expects."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import hashlib
import importlib
import inspect
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from distillcli.config.datasets import DATASETS
from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.open import check_source, open_source
from distillcli.sources.source import ArrayImages, Source, Split
from distillcli.sources.torchvision_sets import TORCHVISION_SETS, open_torchvision

CONFIGS = Path(__file__).parent.parent / "configs" / "dataset"
RANDOM = np.random.RandomState(0)


def opened(name: str, root: Path | None = None, **options: Any) -> Source:
    return open_source(DatasetConfig(name=name, root=None if root is None else str(root), **options))


def refused(name: str, root: Path | None = None, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(name, root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def parts(source: Source) -> list[Split]:
    return [split for split in (source.train, source.val, source.test) if split is not None]


def photo(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (value, value, value)).save(path, quality=100)


# built-in


def test_digits_are_1797_images_in_three_disjoint_stratified_parts() -> None:
    from sklearn.datasets import load_digits

    source = opened("digits")
    assert [len(split.images) for split in parts(source)] == [1297, 200, 300]
    assert source.classes == tuple("0123456789")
    for split in parts(source):
        share = np.bincount(split.labels, minlength=10) / len(split.labels)
        assert share.min() > 0.08
        assert share.max() < 0.12

    # Every published image is in exactly one part: as multisets of (pixels, label) they are the same.
    digits = load_digits()
    scaled = np.rint(digits.images * 255 / 16).astype(np.uint8)
    published = sorted(image.tobytes() + bytes([label]) for image, label in zip(scaled, digits.target, strict=True))
    ours = sorted(
        split.images.read(row)[..., 0].tobytes() + bytes([split.labels[row]])
        for split in parts(source)
        for row in range(len(split.labels))
    )
    assert ours == published
    image = source.train.images.read(0)
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    assert (image[..., 0] == image[..., 2]).all()


def test_the_split_of_digits_is_a_constant() -> None:
    source = opened("digits", split_seed=7, val_fraction=0.5, image_size=64)
    assert source.fingerprint == opened("digits").fingerprint
    # A change here makes every published number about digits incomparable.
    labels = b"".join(split.labels.astype("u1").tobytes() for split in parts(source))
    assert hashlib.sha256(labels).hexdigest()[:16] == "34a3982b1f52b92c"


def test_fake_is_deterministic_balanced_and_can_be_learned() -> None:
    source = opened("fake", classes=5, samples=100, image_size=24)
    assert [len(split.images) for split in parts(source)] == [100, 25, 25]
    assert np.bincount(source.train.labels).tolist() == [20] * 5
    assert source.train.images.read(0).shape == (24, 24, 3)
    assert opened("fake", classes=5, samples=100, image_size=24).fingerprint == source.fingerprint
    assert opened("fake", classes=5, samples=100, image_size=25).fingerprint != source.fingerprint

    train, test = source.train, source.evaluation
    assert isinstance(train.images, ArrayImages)
    assert isinstance(test.images, ArrayImages)
    means = np.stack([train.images.pixels[train.labels == label].mean(0) for label in range(5)])
    distances = ((test.images.pixels[:, None] - means) ** 2).mean((2, 3, 4))
    assert (distances.argmin(1) == test.labels).all()


def test_fake_needs_classes_and_samples() -> None:
    assert "dataset.classes=1" in refused("fake", classes=1)
    assert "dataset.samples=3" in refused("fake", samples=3)


# the table


def test_an_unknown_name_is_never_taken_for_a_folder(tmp_path: Path) -> None:
    photo(tmp_path / "cat" / "a.png")
    message = refused("cifar_10", tmp_path)
    assert "did you mean 'cifar10'" in message
    assert "dataset=folder dataset.root=PATH" in message


def test_every_data_set_has_a_reader() -> None:
    for name, known in DATASETS.items():
        module, function = known.reader.split(".")
        reader = getattr(importlib.import_module(f"distillcli.sources.{module}"), function)
        assert inspect.signature(reader).return_annotation == "Source", name
        assert set(known.keys) <= {field.name for field in dataclasses.fields(DatasetConfig)}, name
    own = {"fashion_mnist"}  # which torchvision only downloads
    assert {name for name, known in DATASETS.items() if "torchvision" in known.reader} == set(TORCHVISION_SETS) - own


def test_every_data_set_has_a_config_and_a_description() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(DATASETS)
    for name in DATASETS:
        text = (CONFIGS / f"{name}.yaml").read_text()
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DatasetConfig), OmegaConf.create(text)))
        assert isinstance(config, DatasetConfig)
        assert config.name == name
        assert text.startswith("# ")
        assert config.root == (f"data/{name}" if name in set(TORCHVISION_SETS) - {"fashion_mnist"} else None)


def test_the_table_matches_torchvision() -> None:
    import torchvision.datasets

    for name, record in TORCHVISION_SETS.items():
        assert record.cls in torchvision.datasets.__all__, name
        assert (record.pixels is None) != (record.files is None), name
        assert set(record.parts) <= {"train", "val", "test"}, name


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 2], "row 2 of the train part ('x[2]') has label 2, outside 0..1"),
        ([0, -100, 1], "row 1 of the train part ('x[1]') has label -100"),
        ([0, 1], "3 images but 2 labels"),
    ],
)
@pytest.mark.fault("R27")
def test_stray_labels_are_refused_with_their_row(labels: list[int], said: str) -> None:
    images = ArrayImages(np.zeros((3, 2, 2, 3), np.uint8), "x")
    good = Split(images, np.array([0, 1, 0]))
    with pytest.raises(UserError) as caught:
        check_source(Source("x", ("a", "b"), Split(images, np.array(labels)), good, None, ""))
    assert said in str(caught.value)


def test_empty_parts_few_classes_and_repeated_names_are_refused() -> None:
    good = Split(ArrayImages(np.zeros((1, 2, 2, 3), np.uint8), "x"), np.array([0]))
    empty = Split(ArrayImages(np.zeros((0, 2, 2, 3), np.uint8), "x"), np.array([], np.int64))
    for source, said in (
        (Source("x", ("a", "b"), good, good, empty, ""), "the test part is empty"),
        (Source("x", ("a",), good, good, None, ""), "1 class;"),
        (Source("x", ("a", "b", "a"), good, good, None, ""), "two classes are named 'a'"),
    ):
        with pytest.raises(UserError, match=said):
            check_source(source)


# torchvision, missing data


@pytest.mark.parametrize("name", sorted(set(TORCHVISION_SETS) - {"imagenet", "stanford_cars", "fashion_mnist"}))
@pytest.mark.parametrize("root_exists", [False, True])
def test_missing_data_says_how_to_get_it(tmp_path: Path, name: str, root_exists: bool) -> None:
    root = tmp_path if root_exists else tmp_path / "none"
    message = refused(name, root)
    assert str(root) in message
    assert "dataset.download=true" in message
    assert TORCHVISION_SETS[name].cls in message
    assert "download=True" not in message


@pytest.mark.parametrize(("name", "file"), [("imagenet", "ILSVRC2012_devkit_t12.tar.gz"), ("stanford_cars", "devkit/")])
def test_sets_that_cannot_be_downloaded_say_so(tmp_path: Path, name: str, file: str) -> None:
    message = refused(name, tmp_path, download=True)
    assert "cannot be downloaded" in message
    assert file in message
    for message in (refused(name, tmp_path), refused(name, tmp_path / "none")):
        assert file in message
        assert "dataset.download" not in message


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    def fail(self: object) -> None:
        raise OSError("Network is\nunreachable")

    monkeypatch.setattr(CIFAR10, "download", fail)
    message = refused("cifar10", tmp_path, download=True)
    assert "could not be downloaded" in message
    assert "Network is unreachable" in message


def test_roots_are_checked_first(tmp_path: Path) -> None:
    assert "dataset.root=PATH" in refused("cifar10")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("cifar10", tmp_path / "file")


# torchvision, real formats


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """20 images a batch. Returns the training pixels, N x 32 x 32 x 3."""
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = RANDOM.randint(0, 256, (6, 20, 32, 32, 3)).astype(np.uint8)
    labels = [number % 10 for number in range(20)]

    def dump(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    batches = [
        dump(name, {"data": batch.transpose(0, 3, 1, 2).reshape(20, -1), "labels": labels})
        for name, batch in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], images, strict=True)
    ]
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = dump("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "train_list", batches[:5])
    monkeypatch.setattr(CIFAR10, "test_list", batches[5:])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return images[:5].reshape(100, 32, 32, 3)


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar10(tmp_path, monkeypatch)
    source = opened("cifar10", tmp_path, val_fraction=0.2)
    assert source.classes[:2] == ("airplane", "automobile")
    assert [len(split.images) for split in parts(source)] == [80, 20, 20]
    assert np.bincount(source.val.labels).tolist() == [2] * 10
    assert source.val.images.name(3) == "cifar10/val[3]"
    held = [source.val.images.read(row) for row in range(20)]
    kept = [source.train.images.read(row) for row in range(80)]
    assert sorted(image.tobytes() for image in kept + held) == sorted(image.tobytes() for image in pixels)
    assert opened("cifar10", tmp_path, val_fraction=0.2).fingerprint == source.fingerprint
    assert opened("cifar10", tmp_path, val_fraction=0.2, split_seed=1).fingerprint != source.fingerprint

    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"damaged")
    assert "corrupted" in refused("cifar10", tmp_path)


def write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {np.dtype(np.uint8): 8, np.dtype(np.int32): 12}[values.dtype]
    header = struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(values.dtype.newbyteorder(">")).tobytes())


@pytest.mark.parametrize(
    ("name", "cls", "prefixes", "first", "count"),
    [
        ("mnist", "MNIST", ("train", "t10k"), "0 - zero", 10),
        ("fashion_mnist", "FashionMNIST", ("train", "t10k"), "T-shirt/top", 10),
        ("kmnist", "KMNIST", ("train", "t10k"), "o", 10),
        ("emnist", "EMNIST", ("emnist-balanced-train", "emnist-balanced-test"), "0", 47),
        ("qmnist", "QMNIST", ("qmnist-train", "qmnist-test"), "0 - zero", 10),
    ],
)
def test_sets_in_idx_files(
    tmp_path: Path, name: str, cls: str, prefixes: tuple[str, str], first: str, count: int
) -> None:
    images = RANDOM.randint(0, 256, (4 * count, 28, 28)).astype(np.uint8)
    labels = (np.arange(4 * count) % count).astype(np.uint8)
    for prefix in prefixes:
        write_idx(tmp_path / cls / "raw" / f"{prefix}-images-idx3-ubyte", images)
        if name == "qmnist":
            wide = np.zeros((len(labels), 8), np.int32)
            wide[:, 0] = labels
            write_idx(tmp_path / cls / "raw" / f"{prefix}-labels-idx2-int", wide)
        else:
            write_idx(tmp_path / cls / "raw" / f"{prefix}-labels-idx1-ubyte", labels)
    source = opened(name, tmp_path)
    assert source.classes[0] == first
    assert len(source.classes) == count
    assert [len(split.images) for split in parts(source)] == [3 * count, count, 4 * count]
    assert source.test is not None
    np.testing.assert_array_equal(source.test.images.read(7), np.repeat(images[7][..., None], 3, axis=2))
    np.testing.assert_array_equal(source.test.labels, labels)


def write_fashion_mnist(folder: Path, compressed: bool) -> None:
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = np.random.RandomState(count).randint(0, 256, (count, 28, 28)).astype(np.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
            path = folder / f"{prefix}-{name}-ubyte"
            write_idx(path, values)
            if compressed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()


def test_fashion_mnist_is_the_same_compressed_or_not_and_as_torchvision_reads_it(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "debian", compressed=True)
    write_fashion_mnist(tmp_path / "torchvision" / "FashionMNIST" / "raw", compressed=False)
    sources = [opened("fashion_mnist", tmp_path / "debian"), opened("fashion_mnist", tmp_path / "torchvision")]
    config = DatasetConfig(name="fashion_mnist", root=str(tmp_path / "torchvision"))
    sources.append(open_torchvision(config))
    assert len({source.fingerprint for source in sources}) == 1
    assert len({source.classes for source in sources}) == 1
    for part in ("train", "val", "test"):
        first, *others = (source.parts[part] for source in sources)
        for other in others:
            assert first.images.name(0) == other.images.name(0)
            np.testing.assert_array_equal(first.labels, other.labels)
            assert all((first.images.read(row) == other.images.read(row)).all() for row in range(len(first.labels)))


@pytest.mark.parametrize("content", [b"", b"PK\3\4", gzip.compress(b"\0\0\x08\x03")], ids=["empty", "zip", "short"])
def test_a_damaged_file_of_fashion_mnist_is_named(tmp_path: Path, content: bytes) -> None:
    write_fashion_mnist(tmp_path, compressed=True)
    damaged = tmp_path / "train-images-idx3-ubyte.gz"
    damaged.write_bytes(content)
    assert f"{damaged}: " in refused("fashion_mnist", tmp_path)
    damaged.unlink()
    assert "apt-get install dataset-fashion-mnist" in refused("fashion_mnist", tmp_path)


def test_usps(tmp_path: Path) -> None:
    for file in ("usps.bz2", "usps.t.bz2"):
        rows = [f"{n % 10 + 1} " + " ".join(f"{i + 1}:{1 if i else -1}" for i in range(256)) for n in range(20)]
        (tmp_path / file).write_bytes(bz2.compress("\n".join(rows).encode()))
    source = opened("usps", tmp_path)
    assert source.classes == tuple("0123456789")
    assert source.test is not None
    assert source.test.labels.tolist() == [*range(10), *range(10)]
    assert source.test.images.read(0)[0, :2].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    images = RANDOM.randint(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    labels = np.array([number % 10 or 10 for number in range(20)], np.uint8)[:, None]
    records = {}
    for part in ("train", "test"):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": labels})
        digest = hashlib.md5((tmp_path / f"{part}_32x32.mat").read_bytes()).hexdigest()
        records[part] = ["", f"{part}_32x32.mat", digest]
    monkeypatch.setattr(SVHN, "split_list", records)
    source = opened("svhn", tmp_path)
    assert source.test is not None
    assert source.test.labels.tolist() == [number % 10 for number in range(20)]
    np.testing.assert_array_equal(source.test.images.read(3), images[3])
    assert source.classes == tuple("0123456789")


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    images = RANDOM.randint(0, 256, (20, 96, 96, 3)).astype(np.uint8)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for part in ("train", "test"):
        images.transpose(0, 3, 2, 1).tofile(folder / f"{part}_X.bin")  # columns first
        (np.arange(20) % 10 + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"name {number}" for number in range(10)))
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    source = opened("stl10", tmp_path)
    assert source.test is not None
    assert source.classes[3] == "name 3"
    np.testing.assert_array_equal(source.test.images.read(3), images[3])
    assert source.test.labels.tolist() == [number % 10 for number in range(20)]


def test_flowers102(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    folder = tmp_path / "flowers-102"
    for number in range(1, 7):
        photo(folder / "jpg" / f"image_{number:05d}.jpg", number * 20)
    savemat(folder / "imagelabels.mat", {"labels": [[1, 2, 1, 2, 102, 1]]})
    savemat(folder / "setid.mat", {"trnid": [[1, 2]], "valid": [[4, 3]], "tstid": [[5, 6]]})
    files = dict(Flowers102._file_dict)
    for key in ("label", "setid"):
        digest = hashlib.md5((folder / files[key][0]).read_bytes()).hexdigest()
        files[key] = (files[key][0], digest)
    monkeypatch.setattr(Flowers102, "_file_dict", files)
    source = opened("flowers102", tmp_path)
    assert source.classes[0] == "pink primrose"
    assert [split.labels.tolist() for split in parts(source)] == [[0, 1], [0, 1], [101, 0]]
    assert source.val.images.read(0)[0, 0].tolist() == [60, 60, 60]
    assert source.val.images.name(0) == str(folder / "jpg" / "image_00003.jpg")
    assert opened("flowers102", tmp_path).fingerprint == source.fingerprint

    (folder / "jpg" / "image_00003.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"image_00003\.jpg: the file is empty"):
        source.val.images.read(0)

    monkeypatch.delattr(Flowers102, "classes")
    assert opened("flowers102", tmp_path).classes[:2] == ("0", "1")


def test_eurosat(tmp_path: Path) -> None:
    for label, name in enumerate(("AnnualCrop", "Forest")):
        for number in range(10):
            photo(tmp_path / "eurosat" / "2750" / name / f"{name}_{number}.jpg", label * 100)
    source = opened("eurosat", tmp_path)
    assert source.classes == ("AnnualCrop", "Forest")
    assert source.test is None
    assert source.val.labels.tolist() == [0, 1]
    assert [source.val.images.read(row)[0, 0, 0] for row in range(2)] == [0, 100]


def test_imagenet(tmp_path: Path) -> None:
    import torch

    names = {"n01": ("tench", "Tinca tinca"), "n02": ("crane",), "n03": ("crane",)}
    torch.save((names, []), tmp_path / "meta.bin")
    for part, count in (("train", 3), ("val", 1)):
        for label, folder in enumerate(names):
            for number in range(count):
                photo(tmp_path / part / folder / f"{folder}_{number}.JPEG", label)
    source = opened("imagenet", tmp_path)
    assert source.classes == ("tench, Tinca tinca", "crane (1)", "crane (2)")
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert source.val.labels.tolist() == [0, 1, 2]
    assert source.evaluated_on == "val"


def test_food101_and_pets_and_aircraft_and_textures(tmp_path: Path) -> None:
    food = tmp_path / "food-101"
    for folder in ("images", "meta"):
        (food / folder).mkdir(parents=True)
    for part in ("train", "test"):
        listing = {dish: [f"{dish}/{part}{number}" for number in range(3)] for dish in ("waffles", "apple_pie")}
        (food / "meta" / f"{part}.json").write_text(json.dumps(listing))
        for path in [path for paths in listing.values() for path in paths]:
            photo(food / "images" / f"{path}.jpg")
    source = opened("food101", tmp_path)
    assert source.classes == ("apple_pie", "waffles")
    assert [split.labels.tolist() for split in parts(source)] == [[0, 0, 1, 1], [0, 1], [0, 0, 0, 1, 1, 1]]

    pets = tmp_path / "oxford-iiit-pet"
    for folder in ("images", "annotations"):
        (pets / folder).mkdir(parents=True)
    for part in ("trainval", "test"):
        rows = [f"{breed}_{n} {label} 1 1" for n in range(3) for label, breed in ((1, "Abyssinian"), (2, "pug_dog"))]
        (pets / "annotations" / f"{part}.txt").write_text("\n".join(rows))
        for row in rows:
            photo(pets / "images" / f"{row.split()[0]}.jpg")
    source = opened("oxfordiiitpet", tmp_path)
    assert source.classes == ("Abyssinian", "Pug Dog")
    assert [len(split.images) for split in parts(source)] == [4, 2, 6]

    planes = tmp_path / "fgvc-aircraft-2013b" / "data"
    planes.mkdir(parents=True)
    (planes / "variants.txt").write_text("707-320\nA 340\n")
    for part in ("train", "val", "test"):
        (planes / f"images_variant_{part}.txt").write_text("02 A 340\n01 707-320\n")
    for number in ("01", "02"):
        photo(planes / "images" / f"{number}.jpg")
    assert opened("fgvc_aircraft", tmp_path).val.labels.tolist() == [0, 1]

    textures = tmp_path / "dtd" / "dtd"
    (textures / "labels").mkdir(parents=True)
    for part in ("train", "val", "test"):
        (textures / "labels" / f"{part}1.txt").write_text("woven/a.jpg\nbanded/b.jpg\n")
    for path in ("woven/a.jpg", "banded/b.jpg"):
        photo(textures / "images" / path)
    assert opened("dtd", tmp_path).classes == ("banded", "woven")
    (textures / "labels" / "val1.txt").write_text("woven/a.jpg\n")
    assert "the val part" in refused("dtd", tmp_path)


def test_cars_signs_scenes_and_objects(tmp_path: Path) -> None:
    from scipy.io import savemat

    cars = tmp_path / "stanford_cars"
    (cars / "devkit").mkdir(parents=True)
    rows = np.array(
        [("b.jpg", 2), ("a.jpg", 1), ("c.jpg", 1), ("d.jpg", 2)], dtype=[("fname", object), ("class", "u1")]
    )
    savemat(cars / "devkit" / "cars_train_annos.mat", {"annotations": rows})
    savemat(cars / "cars_test_annos_withlabels.mat", {"annotations": rows})
    savemat(cars / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM General", "Acura RL"], dtype=object)})
    for folder in ("cars_train", "cars_test"):
        for name in "abcd":
            photo(cars / folder / f"{name}.jpg")
    source = opened("stanford_cars", tmp_path)
    assert source.classes == ("AM General", "Acura RL")
    assert source.test is not None
    assert source.test.labels.tolist() == [0, 1, 0, 1]  # a, b, c, d

    for label in range(43):
        for number in range(2):
            photo(tmp_path / "gtsrb" / "GTSRB" / "Training" / f"{label:05d}" / f"{number}.ppm")
    photo(tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "0.ppm")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;42\n")
    source = opened("gtsrb", tmp_path)
    assert source.test is not None
    assert (source.classes[-1], source.test.labels.tolist()) == ("42", [42])

    scenes = tmp_path / "SUN397"
    for name in ("a/abbey", "b/bar/outdoor"):
        for number in range(2):
            photo(scenes / name / f"sun_{number}.jpg")
    (scenes / "ClassName.txt").write_text("/a/abbey\n/b/bar/outdoor\n")
    source = opened("sun397", tmp_path)
    assert source.classes == ("abbey", "bar/outdoor")
    assert source.train.labels.tolist() == [0, 1]

    for part in ("train", "valid", "test"):
        for name in ("AD", "AE"):
            photo(tmp_path / "country211" / part / name / "1.jpg")
    assert opened("country211", tmp_path).val.labels.tolist() == [0, 1]

    for part in ("train", "val"):
        for name in ("n01440764", "n02102040"):
            photo(tmp_path / "imagenette2" / part / name / "1.JPEG")
    assert opened("imagenette", tmp_path).classes[0] == "tench, Tinca tinca"

    for name in ("BACKGROUND_Google", "ant", "bass"):
        for number in (1, 2):
            photo(tmp_path / "caltech101" / "101_ObjectCategories" / name / f"image_{number:04d}.jpg")
    for label, name in enumerate(("001.ak47", "002.flag"), 1):
        for number in (1, 2):
            photo(tmp_path / "caltech256" / "256_ObjectCategories" / name / f"{label:03d}_{number:04d}.jpg")
    for name, classes in (("caltech101", ("ant", "bass")), ("caltech256", ("001.ak47", "002.flag"))):
        source = opened(name, tmp_path)
        assert source.classes == classes
        assert source.test is None
        for split in parts(source):
            assert [split.images.read(row).shape for row in range(2)] == [(5, 6, 3)] * 2


def test_places365(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Places365

    (tmp_path / "categories_places365.txt").write_text("/a/airfield 0\n/b/bar 1\n")
    (tmp_path / "places365_train_standard.txt").write_text("/b/bar/1.jpg 1\n/a/airfield/1.jpg 0\n")
    (tmp_path / "places365_val.txt").write_text("Places365_val_1.jpg 1\nPlaces365_val_2.jpg 0\n")
    for path in ("data_256_standard/a/airfield/1.jpg", "data_256_standard/b/bar/1.jpg"):
        photo(tmp_path / path)
    for path in ("val_256/Places365_val_1.jpg", "val_256/Places365_val_2.jpg"):
        photo(tmp_path / path)
    monkeypatch.setattr(Places365, "_check_integrity", lambda self, file, md5, download: True)
    source = opened("places365", tmp_path)
    assert source.classes == ("/a/airfield", "/b/bar")
    assert (source.train.labels.tolist(), source.val.labels.tolist()) == ([0, 1], [1, 0])
    assert source.train.images.read(0).shape == (5, 6, 3)

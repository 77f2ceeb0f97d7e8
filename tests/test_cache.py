"""The teacher-output cache: exact, never stale, whole after a crash."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distillcli.config.schema import TrainConfig
from distillcli.errors import UserError
from distillcli.models.backbone import describe
from distillcli.teachers.cached import CachedTeacher, cache_key, compare_with_live, with_cache
from distillcli.teachers.frozen import FrozenTeacher, Teacher
from distillcli.teachers.rows import FORMATS, RowCache, cache_folders, choose_format, look_into
from distillcli.terms.objective import Objective
from distillcli.types import Batch, Inputs, Output
from distillcli.views.showing import showing
from tests.tiny import CPU, digest, last, open_tiny, setting, some_teacher, tiny, train

IMAGES, CLASSES = 40, 7


def rows(seed: int, count: int = 16, width: int = CLASSES, scale: float = 4.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=(count, width)) * scale).astype(np.float32)


# --- rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_rows_come_back_as_write_returned_them_and_for_their_own_view_only(name: str, tmp_path: Path) -> None:
    cache = RowCache(tmp_path, FORMATS[name], CLASSES, IMAGES)
    index = np.random.default_rng(0).permutation(IMAGES)[:16]
    assert not cache.read(3, index)[1].any()
    returned = cache.write(3, index, rows(1))
    again, present = RowCache(tmp_path, FORMATS[name], CLASSES, IMAGES).read(3, index[::-1].copy())
    assert present.all()
    np.testing.assert_array_equal(again, returned[::-1])
    assert not cache.read(4, index)[1].any()
    others = np.setdiff1d(np.arange(IMAGES), index)
    assert not cache.read(3, others)[1].any()


@pytest.mark.parametrize(("name", "bound"), [("float32", 0.0), ("float16", 2**-11 * 16), ("int8", 0.5 / 255 * 32)])
def test_rounding_is_within_the_step_of_the_format(name: str, bound: float, tmp_path: Path) -> None:
    given = np.clip(rows(2), -16, 16)
    returned = RowCache(tmp_path, FORMATS[name], CLASSES, IMAGES).write(1, np.arange(16), given)
    assert np.abs(returned - given).max() <= bound * (1 + 1e-5)


def test_int8_keeps_a_constant_row(tmp_path: Path) -> None:
    constant = np.full((2, CLASSES), 3.5, dtype=np.float32)
    np.testing.assert_array_equal(
        RowCache(tmp_path, FORMATS["int8"], CLASSES, IMAGES).write(1, np.arange(2), constant), constant
    )


def test_topk_rows_are_distributions_with_the_largest_classes_kept_and_the_rest_spread(tmp_path: Path) -> None:
    width = 200
    given = rows(3, width=width)
    probabilities = np.exp(given.astype(np.float64)) / np.exp(given.astype(np.float64)).sum(axis=1, keepdims=True)
    decoded = RowCache(tmp_path, FORMATS["topk"], width, IMAGES).write(1, np.arange(16), given).astype(np.float64)
    np.testing.assert_allclose(np.exp(decoded).sum(axis=1), 1, atol=2e-3)
    top = np.argsort(-probabilities, axis=1)[:, :50]
    kept, true = (np.take_along_axis(table, top, axis=1) for table in (np.exp(decoded), probabilities))
    np.testing.assert_allclose(kept, true, rtol=1e-2)
    rest = np.ones_like(probabilities, dtype=bool)
    np.put_along_axis(rest, top, False, axis=1)
    assert all(len(np.unique(decoded[row][rest[row]])) == 1 for row in range(16))


@pytest.mark.fault("R38")
def test_a_damaged_or_torn_row_is_absent_and_counted(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, FORMATS["float16"], CLASSES, IMAGES)
    cache.write(1, np.arange(16), rows(4))
    path = tmp_path / "view-00001.r0"
    content = bytearray(path.read_bytes())
    content[5 * cache.row_bytes + 3] ^= 1  # one bit of row 5
    content[9 * cache.row_bytes + cache.row_bytes - 1] ^= 0x80  # the checksum of row 9
    path.write_bytes(content)
    again = RowCache(tmp_path, FORMATS["float16"], CLASSES, IMAGES)
    _, present = again.read(1, np.arange(16))
    assert sorted(np.flatnonzero(~present)) == [5, 9]
    assert again.damaged == 2


@pytest.mark.fault("R38")
def test_a_truncated_file_is_made_anew(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, FORMATS["float16"], CLASSES, IMAGES)
    cache.write(1, np.arange(16), rows(4))
    path = tmp_path / "view-00001.r0"
    path.write_bytes(path.read_bytes()[:-7])
    again = RowCache(tmp_path, FORMATS["float16"], CLASSES, IMAGES)
    assert not again.read(1, np.arange(16))[1].any()
    again.write(1, np.arange(16), rows(4))
    assert again.read(1, np.arange(16))[1].all()


def test_ranks_write_their_own_file_and_read_all(tmp_path: Path) -> None:
    first, second = (RowCache(tmp_path, FORMATS["float32"], CLASSES, IMAGES, rank) for rank in (0, 1))
    first.write(1, np.arange(0, 16, 2), rows(5, 8))
    second.write(1, np.arange(1, 16, 2), rows(6, 8))
    for cache in (first, second, RowCache(tmp_path, FORMATS["float32"], CLASSES, IMAGES)):
        found, present = cache.read(1, np.arange(16))
        assert present.all()
        np.testing.assert_array_equal(found[0::2], rows(5, 8))
        np.testing.assert_array_equal(found[1::2], rows(6, 8))


def test_a_writer_killed_at_any_moment_leaves_whole_rows(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from distillcli.teachers.rows import FORMATS, RowCache\n"
        "cache = RowCache(Path(sys.argv[1]), FORMATS['float32'], 7, 40)\n"
        "print('ready', flush=True)\n"
        "for turn in range(10**9):\n"
        "    index = np.arange(40)\n"
        "    cache.write(1, index, np.repeat(index[:, None], 7, 1).astype(np.float32) + 1)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    cache = RowCache(tmp_path, FORMATS["float32"], 7, 40)
    while not (tmp_path / "view-00001.r0").exists():
        pass
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    found, present = cache.read(1, np.arange(40))
    np.testing.assert_array_equal(found[present], np.repeat(np.arange(40)[present][:, None], 7, 1) + 1)


def test_a_full_disk_is_one_line_before_any_row_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"No space left.*teacher.cache.mode=off"):
        RowCache(tmp_path, FORMATS["float16"], CLASSES, IMAGES).write(1, np.arange(16), rows(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("width", "max_gb", "temperature", "embedding", "expected"),
    [
        (100, 1.0, 4.0, False, "float16"),
        (100, 0.15, 4.0, False, "int8"),
        (1000, 0.5, 4.0, False, "off"),
        (1000, 0.5, 1.0, False, "topk"),
        (100, 0.15, 1.0, True, "off"),
    ],
)
def test_auto_takes_the_most_exact_format_that_fits(
    width: int, max_gb: float, temperature: float, embedding: bool, expected: str
) -> None:
    assert choose_format("auto", width, 10_000, 100, max_gb, temperature, embedding)[0] == expected


def test_embeddings_are_not_kept_in_formats_for_logits() -> None:
    with pytest.raises(UserError, match=r"teacher.cache.mode=int8.*float16"):
        choose_format("int8", 100, 10, 1, 1.0, 1.0, embedding=True)


# --- the teacher -------------------------------------------------------------------------------------------------


class Counting(FrozenTeacher):
    """A live teacher that counts the batches it was asked for."""

    def __call__(self, batch: Batch) -> Output:
        calls.extend(batch.view.unique().tolist())
        return super().__call__(batch)


calls: list[int] = []


def cached(config: TrainConfig) -> tuple[CachedTeacher, Any]:
    calls.clear()
    data = open_tiny(config)
    size, classes = config.dataset.image_size, len(data.source.classes)
    learner, expert = (
        describe(config.student, Inputs(classes, size), "student"),
        describe(config.teacher, Inputs(classes, size), "teacher"),
    )
    objective = Objective(config.distill, setting(learner, expert))
    live = some_teacher(config, objective, classes)
    teacher = with_cache(config, data, Counting(live.backbone, live.precision, live.taps), CPU)[0]
    assert isinstance(teacher, CachedTeacher)
    return teacher, data


def batches(config: TrainConfig, data: Any, epoch: int) -> list[Batch]:
    return [batch for parts in showing(config, data.train).epoch(epoch) for batch in parts]


def test_mixed_views_are_cached_exactly(tmp_path: Path) -> None:
    """Other batches, the same mixes: in the second epoch of a cycle of one view every row is met in another batch."""
    mixing = ("augment.mixup=1", "augment.cutmix=1", "teacher.cache.views=1")
    config = tiny(f"runs={tmp_path}", "teacher.cache.mode=float32", *mixing)
    teacher, data = cached(config)
    first = [batch.index.tolist() for batch in batches(config, data, 1) if teacher(batch)]
    calls.clear()
    for batch, before in zip(batches(config, data, 2), first, strict=True):
        assert batch.index.tolist() != before
        answer, live = teacher(batch).logits, teacher.live.backbone.eval()(batch.images).logits
        torch.testing.assert_close(answer, live, rtol=0, atol=1e-4)
        assert not torch.equal(batch.targets, batch.targets.round())
    assert calls == []


@pytest.mark.parametrize("mode", ["float32", "float16", "int8"])
def test_first_and_later_answers_are_equal_bit_for_bit_and_asked_once(mode: str, tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}", f"teacher.cache.mode={mode}")
    teacher, data = cached(config)
    first = [teacher(batch).logits for batch in batches(config, data, 1)]
    assert len(calls) == len(first)
    again, data = cached(config)
    later = [again(batch).logits for batch in batches(config, data, 1)]
    assert calls == []
    assert all(torch.equal(a, b) for a, b in zip(first, later, strict=True))
    live = [teacher.live(batch).logits for batch in batches(config, data, 1)]
    bound = {"float32": 0.0, "float16": 2e-3, "int8": 4e-2}[mode]
    assert max(float((a - b).abs().max()) for a, b in zip(first, live, strict=True)) <= bound


def test_embeddings_are_cached_beside_the_logits(tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}", "distill=rkd", "teacher.cache.mode=float32")
    teacher, data = cached(config)
    batch = batches(config, data, 1)[0]
    answer, live = teacher(batch), teacher.live(batch)
    assert answer.embedding is not None
    assert live.embedding is not None
    assert torch.equal(answer.embedding, live.embedding)
    assert torch.equal(answer.logits, live.logits)


def test_stages_are_asked_live(tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}", "distill=hint")
    with pytest.raises(AssertionError):
        cached(config)


def test_views_come_again_after_a_cycle(tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}", "teacher.cache.views=2")
    teacher, data = cached(config)
    shown = []
    for epoch in (1, 2, 3):
        order = batches(config, data, epoch)
        for batch in order:
            teacher(batch)
        images = torch.cat([batch.images for batch in order])[torch.cat([batch.index for batch in order]).argsort()]
        shown.append(images)
    assert torch.equal(shown[0], shown[2])
    assert not torch.equal(shown[0], shown[1])
    assert set(calls) == {1, 2}
    assert len(calls) == 8


@pytest.mark.fault("R39")
def test_everything_that_can_change_a_row_changes_the_key(tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}")
    teacher, data = cached(config)
    reference = cache_key(config, data, teacher.live, CPU)
    with torch.no_grad():
        next(teacher.live.backbone.parameters())[0, 0, 0, 0] += 1e-3
    assert cache_key(config, data, teacher.live, CPU) != reference
    for override in (
        "seed=1",
        "augment.rotate=11",
        "augment.flip=0.5",
        "augment.mixup=0.2",
        "dataset.image_size=40",
        "teacher.image_size=24",
        "dataset.crop_fraction=0.9",
        "dataset.samples=80",
        "trainer.channels_last=false",
        "teacher.precision=fp32" if teacher.live.precision == "bf16" else "dataset.classes=5",
    ):
        other = tiny(f"runs={tmp_path}", override)
        changed, other_data = cached(other)
        live = dataclasses.replace(changed.live, precision=other.teacher.precision)
        assert cache_key(other, other_data, live, CPU) != reference, override
    for override in ("distill.temperature=2", "distill.alpha=0.5", "trainer.epochs=3", "student.name=test_resnet"):
        same, other_data = cached(tiny(f"runs={tmp_path}", override))
        assert cache_key(tiny(override), other_data, same.live, CPU) == reference, override


def test_a_run_with_a_warm_cache_ends_in_the_same_weights(tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}")
    data = open_tiny(config)

    def counting(live: FrozenTeacher | None) -> Teacher:
        assert live is not None
        return with_cache(config, data, Counting(live.backbone, live.precision, live.taps), CPU)[0]

    ends = []
    for turn in ("cold", "warm"):
        calls.clear()
        train(config, tmp_path / turn, swap=counting)
        ends.append(digest(last(tmp_path / turn)["student"]))
        assert (calls == []) == (turn == "warm")
    assert ends[0] == ends[1]


def test_caches_are_listed_with_what_they_hold(tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}")
    teacher, data = cached(config)
    for batch in batches(config, data, 1):
        teacher(batch)
    (folder,) = cache_folders(tmp_path / "cache")
    listed = look_into(folder)
    assert (listed.views, listed.rows, listed.damaged) == (1, 64, 0)
    assert (listed.teacher, listed.format) == ("test_resnet", "float16")


def test_the_live_teacher_agrees_with_its_cache_until_a_row_is_false(tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}")
    teacher, data = cached(config)
    assert compare_with_live(config, data, teacher, 32)[0] == 0
    for batch in batches(config, data, 1):
        teacher(batch)
    compared, largest, allowed = compare_with_live(config, data, teacher, 32)
    assert compared >= 16
    assert 0 < largest <= allowed
    first = batches(config, data, 1)[0]
    teacher.cache.write(1, first.index.numpy(), teacher.cache.read(1, first.index.numpy())[0] + 1)
    _, largest, allowed = compare_with_live(config, data, teacher, 32)
    assert largest > allowed


@pytest.mark.fault("R37")
def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(OSError, match="cache"):
        cached(tiny(f"runs={tmp_path}"))


@pytest.mark.fault("F6.17")
def test_the_teacher_cache_says_its_size_in_a_unit_that_suits_it() -> None:
    for images, words in ((64, "up to 768 B"), (1_281_167, "up to 15.4 MB")):
        assert choose_format("float16", 4, images, 1, 20.0, 4.0, False)[0] == "float16"
        assert choose_format("auto", 4, images, 1, 20.0, 4.0, False)[1].endswith(words)

"""Every objective in configs/distill trains: one epoch of two steps, from the preset as it is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from distillcli.config.search import builtin_folder
from tests.tiny import Watch, tiny, train

PRESETS = sorted(path.stem for path in (builtin_folder() / "distill").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains(preset: str, tmp_path: Path) -> None:
    config = tiny(f"distill={preset}", "dataset.samples=36", "trainer.epochs=1")  # 4 of the images are for validation
    watch = Watch()
    train(config, tmp_path / "run", watch)
    assert watch.steps == 2
    row, numbers = watch.rows[0]
    assert {f"loss/{name}" for name in config.distill.terms} <= row.keys()
    assert math.isfinite(row["loss"])
    assert 0 < row["grad_norm"] < math.inf
    assert math.isfinite(numbers["nll"])

"""The run that a checkpoint lies in and the images it is looked at with, for commands that open one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from distillcli.config.check_data import check_dataset
from distillcli.config.schema import DatasetConfig, TrainConfig
from distillcli.distillation.same_data import data_changes, may_be_same_images
from distillcli.errors import UserError
from distillcli.report.console import warn
from distillcli.runs.reading import read_config, try_json
from distillcli.sources.labels import with_class_names
from distillcli.sources.open import open_source
from distillcli.sources.overlap import training_note
from distillcli.sources.source import Source


@dataclass(frozen=True)
class Surroundings:
    """``run``, ``trained``: the run folder and its config; None where the checkpoint lies in none."""

    run: Path | None
    trained: TrainConfig | None


def surroundings(what: str) -> Surroundings:
    """Raises UserError for a run whose config is broken."""
    run = _run_folder(Path(what))
    trained = None if run is None else read_config(run)
    if trained is not None:
        check_dataset(trained.dataset)
    return Surroundings(run, trained)


def open_images(what: str, named: DatasetConfig | None, around: Surroundings) -> tuple[DatasetConfig, Source]:
    """The data that is named, or else that of the run, whose class names it has. Warns of what is wrong with it.

    ``what``: the checkpoint, for messages. Raises UserError when neither is known.
    """
    dataset, source = _open(what, named, around.run, around.trained)
    if around.run is not None:
        source = with_class_names(source, _class_names(around.run))
    for note in source.notes:
        warn(note)
    seen = None if around.trained is None else _seen_in_training(source, dataset, around.trained.dataset)
    if seen is not None:
        warn(seen)
    return dataset, source


def _class_names(run: Path) -> tuple[str, ...]:
    """Those of the run's student; empty where it has not left one yet."""
    exported = try_json(run / "student" / "config.json") or {}
    names = exported.get("label_names")
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _open(
    what: str, named: DatasetConfig | None, run: Path | None, trained: TrainConfig | None
) -> tuple[DatasetConfig, Source]:
    """What is looked at: the data that is named, or else that of the run.

    The images that the run was trained on are left out, as they were by the run, wherever its data lies now.
    """
    own = None if trained is None else trained.dataset
    if run is None or own is None:
        if named is None:
            raise UserError(
                f"checkpoint={what}: no config.yaml next to it, so the dataset is unknown; add dataset=NAME"
            )
        return _opened(dataclasses.replace(named, val_fraction=0.0))
    if named is not None and _place(named) != _place(own):
        dataset, source = _opened(dataclasses.replace(named, val_fraction=0.0))
        if source.evaluated_on != "all" or not may_be_same_images(run, source):
            return dataset, source
        as_split = _opened(_split_as(named, own))
        return (dataset, source) if data_changes(run, as_split[1]) else as_split
    dataset, source = _opened(own if named is None else _split_as(named, own))
    changes = data_changes(run, source)
    if changes:
        warn(
            f"{source.name} has changed since the run began ({changes}): the run may have been trained on some of the"
            " images it is evaluated on"
        )
    return dataset, source


def _seen_in_training(source: Source, dataset: DatasetConfig, own: DatasetConfig) -> str | None:
    """A line where some of the evaluated images were trained on; None too where the run's data is no longer there."""
    if _place(dataset) == _place(own):
        return None
    try:
        return training_note(source, open_source(dataclasses.replace(own, on_error="raise")))
    except UserError:
        return None


def _opened(dataset: DatasetConfig) -> tuple[DatasetConfig, Source]:
    return dataset, open_source(dataset)


def _split_as(dataset: DatasetConfig, own: DatasetConfig) -> DatasetConfig:
    return dataclasses.replace(dataset, val_fraction=own.val_fraction, split_seed=own.split_seed)


def _place(dataset: DatasetConfig) -> tuple[str, str | None, str | None]:
    """Where the images of a data set are."""
    root, path = (None if place is None else str(Path(place).resolve()) for place in (dataset.root, dataset.path))
    return dataset.name, root, path


def _run_folder(what: Path) -> Path | None:
    """The run folder that ``what`` is, or lies in: RUN, RUN/student, RUN/checkpoints/best.pt."""
    for folder in (what, *what.parents[:2]):
        if (folder / "config.yaml").is_file():
            return folder
    return None

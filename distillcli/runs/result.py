"""``result.json``: what a run measured, with what made it. Typed, and read the same way by every command.

The comment behind each field is its meaning; ``docs/result.md`` repeats them. Reading is tolerant, because a run may
have failed, been interrupted or been written by another version: what is missing, torn or of a wrong type is None.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from distillcli.runs.checksums import recorded
from distillcli.runs.folder import write_json
from distillcli.runs.reading import try_json


@dataclass(frozen=True)
class ClassAccuracy:
    """One class in the evaluated part of the data."""

    top1: float | None = None  # percent of its images that the model gets right
    count: int | None = None  # its images


@dataclass(frozen=True)
class Calibrated:
    """A model whose logits are divided by a temperature that was fitted on the validation part."""

    temperature: float | None = None  # the one with the best likelihood on the validation part; above 1: too sure
    nll: float | None = None  # as of the model itself, on the evaluated part
    ece: float | None = None  # the same
    brier: float | None = None  # the same


@dataclass(frozen=True)
class EpochNumbers:
    """One epoch of a run, on the validation part and on the evaluated part of the data."""

    epoch: int | None = None  # counted from 1
    val_top1: float | None = None  # percent, on the validation part; null where it has no labels
    top1: float | None = None  # percent, on the evaluated part
    val_kl_to_teacher: float | None = None  # nats, on the validation part; measured only where it has no labels
    kl_to_teacher: float | None = None  # nats, on the evaluated part


@dataclass(frozen=True)
class Measured:
    """The numbers of one model, on the evaluated part of the data."""

    model: str | None = None  # its timm name, or a description of a model made of several
    params: int | None = None  # parameters
    macs: int | None = None  # multiply-accumulates of one forward pass of one image
    top1: float | None = None  # percent of the labelled images whose class is the most likely one
    top5: float | None = None  # percent of them whose class is among the five most likely (fewer if there are fewer)
    balanced_accuracy: float | None = None  # percent: the mean over the classes of their top-1
    nll: float | None = None  # negative log-likelihood of the labels, nats per image
    ece: float | None = None  # expected calibration error in 15 equal bins, between 0 and 1
    brier: float | None = None  # Brier score: mean squared distance to the label's one-hot vector, between 0 and 2
    calibrated: Calibrated | None = None  # after temperature scaling; null without validation labels of its own
    agreement: float | None = None  # percent of all images for which it predicts the same class as the teacher
    kl_to_teacher: float | None = None  # KL(teacher || model) at temperature 1, nats per image
    per_class: dict[str, ClassAccuracy] | None = None  # class name -> its accuracy; classes without an image are absent
    latency_ms: float | None = None  # milliseconds of one forward pass of one image: the 10 % quantile of 10 to 50
    latency_spread_ms: float | None = None  # from there to the median
    latency_setting: str | None = None  # its batch, precision, device and threads
    latency_doubt: str | None = None  # why it was too unsteady to be given
    run: str | None = None  # the run folder it was trained in; null for this run's student and for given weights
    runs: tuple[str | None, ...] | None = None  # teacher only: the same for every member of an ensemble
    best: EpochNumbers | None = None  # control only: its best epoch
    knn_top1: float | None = None  # percent, top-1 of 20 nearest neighbours on its embeddings
    probe_top1: float | None = None  # percent, top-1 of a logistic regression on its embeddings


_ONLY_SOME = (
    "latency_doubt",
    "runs",
    "best",
    "knn_top1",
    "probe_top1",
)  # the file leaves these out where they would be null


@dataclass(frozen=True)
class DatasetFacts:
    """The data of a run."""

    name: str | None = None  # as configured
    classes: int | None = None  # how many; 0 where nothing is labelled and the teacher has no classes either
    train: int | None = None  # training images
    labelled: int | None = None  # training images that have a label
    val: int | None = None  # validation images; 0 without a validation part (dataset.val_fraction=0)
    test: int | None = None  # test images; 0 without a test part
    skipped: int | None = None  # images that were left out because they cannot be decoded
    ignored: int | None = None  # files that look like images and were not read, as a warning says


@dataclass(frozen=True)
class Fingerprints:
    """Hashes that are equal exactly where the content is equal."""

    data: str | None = None  # of the images and labels
    recipe: str | None = None  # of all that decides the trained weights: data, models, objective, budget, seed


@dataclass(frozen=True)
class ClassVerdict:
    """Student against control on the images of one class."""

    difference: float | None = None  # student less control in top-1, points
    gained: int | None = None  # images that only the student gets right
    lost: int | None = None  # images that only the control gets right
    images: int | None = None  # labelled images of this class
    p_value: float | None = None  # of the exact test of McNemar
    adjusted: float | None = None  # the same, adjusted for the number of classes (Benjamini and Hochberg 1995)


@dataclass(frozen=True)
class Verdict:
    """Student against control, image by image, on the labelled images of the evaluated part.

    The intervals are over images: that another seed would train another student is not in them.
    """

    conclusion: str | None = None  # "helps", "hurts" or "not settled"
    difference: float | None = None  # student less control in top-1, points
    low: float | None = None  # lower end of the 95 % interval of the difference (Bonett and Price 2012)
    high: float | None = None  # upper end
    p_value: float | None = None  # of the exact test of McNemar
    gained: int | None = None  # images that only the student gets right
    lost: int | None = None  # images that only the control gets right
    images: int | None = None  # labelled images compared
    images_to_settle: int | None = None  # about how many images would settle such a difference; null if it is zero
    gap_low: float | None = None  # the same for gap_closed (paired bootstrap); null where the gap itself is in doubt
    gap_high: float | None = None  # upper end
    by_class: dict[str, ClassVerdict] | None = None  # class name -> the same for its images alone


@dataclass(frozen=True)
class Result:
    """What ``result.json`` holds. Percent are between 0 and 100; times are in seconds unless the key says otherwise.

    A finished run writes every key, null or empty where there is nothing to say. One that failed or was interrupted
    writes its status, its error, its overrides, and what else is known of it.
    """

    status: str | None = None  # "ok", "failed" or "interrupted"
    error: str | None = None  # why it failed, in one line
    role: str | None = None  # what was trained: "student", "teacher", "assistant" or "control"
    name: str | None = None  # the name of the run
    command: str | None = None  # the command line that started it
    overrides: tuple[str, ...] = ()  # what that command changed in the config
    evaluated_on: str | None = None  # the part of the data that the accuracies are measured on: "test" or "val"
    student: Measured | None = None  # the model this run trained, whatever its role, at student_epoch
    student_epoch: int | None = None  # the epoch the student is of: the last, or with trainer.select=best the best one
    teacher: Measured | None = None  # the teacher; null if there is none, or if it trains with the student
    chain: tuple[Measured, ...] = ()  # the assistants between teacher and student, in order
    peers: tuple[Measured, ...] = ()  # the models that were trained together with the student
    baseline: Measured | None = None  # the control: the same student trained as long without a teacher
    gap_closed: float | None = None  # (student - control) / (teacher - control) in top-1; null if there is no gap
    verdict: Verdict | None = None  # whether distilling helped; null without a control or labels
    best: EpochNumbers | None = None  # the epoch that was best on the validation part; null without one
    last: EpochNumbers | None = None  # the last epoch
    epochs: int | None = None  # how many were asked for
    images_per_second: float | None = None  # while training, without evaluation and checkpoints
    seconds: float | None = None  # of the whole run in all its sessions, with all that was fitted or measured for it
    timings: dict[str, float] = field(default_factory=dict)  # seconds for "teacher", "assistants", "student", "control"
    temperature: float | None = None  # distill.temperature
    alpha: float | None = None  # distill.alpha: the share of the teacher's terms; null for a plain weighted sum
    seed: int | None = None  # of this run
    channels_last: bool | None = None  # the memory layout that was used
    cache: str | None = None  # the format in which the teacher's outputs were cached, or "off"
    objective: str | None = None  # the loss in words, such as "0.1·ce + 0.9·kl(T=4)"
    dataset: DatasetFacts | None = None  # the data
    images: str | None = None  # their size and crop where models are measured, and the mean and std that normalise them
    warnings: tuple[str, ...] = ()  # what was printed as warnings
    versions: dict[str, str] = field(default_factory=dict)  # of Python, this package and the libraries it uses
    fingerprints: Fingerprints | None = None  # of data and recipe

    @property
    def student_numbers(self) -> EpochNumbers:
        """Of the epoch that the student is of; results without it are of the last epoch."""
        best, last = self.best or EpochNumbers(), self.last or EpochNumbers()
        return best if self.student_epoch is not None and self.student_epoch == best.epoch else last

    @property
    def finished(self) -> bool:
        return self.status == "ok"


def write_result(folder: Path, result: Result) -> None:
    with recorded(folder, "result.json"):
        write_json(folder / "result.json", to_json(result))


def read_result(folder: Path) -> Result | None:
    """The result of a run folder, or None when it has none that can be read."""
    content = try_json(folder / "result.json")
    return None if content is None else from_json(content)


def to_json(part: Result | Measured) -> dict[str, Any]:
    """Plain data for ``json``, without NaN and infinities, which JSON does not have."""
    content: dict[str, Any] = _plain(part)
    if isinstance(part, Measured) or part.finished:
        return content
    always = {"status", "error", "overrides"}
    return {key: value for key, value in content.items() if key in always or value not in (None, [], {})}


def from_json(content: dict[str, Any]) -> Result:
    """The inverse of ``to_json``, for any object."""
    result: Result = _typed(Result, content)
    return result


def top1_of(model: Measured | None) -> float | None:
    """In percent; None where there is no model or its accuracy is not known."""
    return None if model is None else model.top1


def finite(value: object) -> float | None:
    """``value`` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None  # false for NaN, and for integers beyond any float


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        known = {entry.name: getattr(value, entry.name) for entry in fields(value)}
        optional = _ONLY_SOME if isinstance(value, Measured) else ()
        return {name: _plain(item) for name, item in known.items() if item is not None or name not in optional}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return finite(value) if isinstance(value, float) else value


_hints = functools.cache(get_type_hints)  # resolving annotations takes longer than reading a result


def _typed(kind: Any, value: object) -> Any:
    """``value`` as the annotation ``kind`` says, else None; what does not fit in a list or an object is left out."""
    if get_origin(kind) is UnionType:  # all of them are "X | None"
        kind = next(choice for choice in get_args(kind) if choice is not type(None))
    inner = get_args(kind)
    if isinstance(value, dict) and isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        found = {entry.name: _typed(hints[entry.name], value.get(entry.name)) for entry in fields(kind)}
        return kind(**{name: item for name, item in found.items() if item is not None})
    if isinstance(value, dict) and get_origin(kind) is dict:
        pairs = {key: _typed(inner[1], item) for key, item in value.items()}
        return {key: item for key, item in pairs.items() if item is not None}
    if isinstance(value, list) and get_origin(kind) is tuple:
        items = [_typed(inner[0], item) for item in value]
        return tuple(item for item in items if item is not None or get_origin(inner[0]) is UnionType)
    if kind is float:
        return finite(value)
    if kind is int:
        number = finite(value)
        return int(number) if number is not None and number == int(number) else None
    return value if kind in (str, bool) and isinstance(value, kind) else None

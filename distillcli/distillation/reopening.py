"""A finished model again, from any form of checkpoint, and the teacher that taught it."""

from __future__ import annotations

from pathlib import Path

from distillcli.config.schema import DatasetConfig, ModelConfig, TrainConfig
from distillcli.errors import UserError
from distillcli.models.backbone import LOCAL_PREFIX, Backbone, build, place
from distillcli.models.imagenet import open_pretrained, pretrained_classes
from distillcli.models.matching import for_model, knows_classes, load_into
from distillcli.models.weights import HUB_PREFIX, Weights, read_weights
from distillcli.runs.result import read_result
from distillcli.runtime import Runtime
from distillcli.sources.source import Source
from distillcli.teachers.frozen import FrozenTeacher, members_of, open_teacher
from distillcli.types import LOGITS_ONLY, Inputs, Taps


def open_checkpoint(what: str, name: str | None, images: Inputs) -> tuple[Backbone, Weights]:
    """The model that ``what`` holds, on the CPU, with its own weights and classifier, and what its files say about it.

    ``what``: run folder, checkpoint file, exported folder, or ``hf-hub:`` name. ``name``: of the model, for files that
    do not say; what else they do not say is as in ``images``. Raises UserError when it cannot be read, its model is not
    named, or it is another one.
    """
    weights = read_weights(what)
    if name is not None and weights.architecture not in (None, name.split(".")[0]):
        raise UserError(f"model={name}: {what} names its model, {weights.architecture}; leave model out")
    model = weights.model if name is None else ModelConfig(name, args=weights.args, image_size=weights.image_size)
    size = model.image_size or images.image_size
    channels = images.channels if weights.channels is None else weights.channels
    count = images.classes if weights.class_count is None else weights.class_count
    backbone = build(model, Inputs(count, size, channels), "")
    load_into(backbone, weights, "")
    return backbone, for_model(weights, backbone, "")


def must_know(weights: Weights, backbone: Backbone, source: Source, dataset: DatasetConfig) -> None:
    """Raise UserError when a model is not one for the images and classes of ``source``; without classes any will do."""
    given = f"checkpoint={weights.origin}"
    if weights.channels not in (None, dataset.channels):
        raise UserError(
            f"{given}: takes images of {weights.channels} channels, and dataset.channels={dataset.channels}; set "
            f"dataset.channels={weights.channels}"
        )
    if source.classes and weights.classes != () and not knows_classes(weights, backbone, source.classes, ""):
        raise UserError(
            f"{given}: its {weights.class_count} classes are not the {len(source.classes)} of {source.name}; evaluate "
            "it on its own data"
        )


def reopen_model(
    what: str,
    source: Source,
    dataset: DatasetConfig,
    channels_last: bool | None,
    runtime: Runtime,
    name: str | None = None,
) -> Backbone:
    """The model that ``what`` names, placed, for the images and classes of ``source``.

    ``what``: as of ``open_checkpoint``, with ``name``; or the name of a timm model whose published weights know the
    classes. Raises UserError when the model cannot be opened or is not one for the data.
    """
    images = Inputs(len(source.classes), dataset.image_size, dataset.channels)
    if Path(what).expanduser().exists() or what.startswith((HUB_PREFIX, LOCAL_PREFIX)):
        backbone, weights = open_checkpoint(what, name, images)
        must_know(weights, backbone, source, dataset)
    elif pretrained_classes(what, source.classes) is not None:
        backbone = open_pretrained(ModelConfig(name=what), source.classes, images, "")
    else:
        raise UserError(
            f"checkpoint={what}: timm's weights know the classes of ImageNet, {source.name} has "
            f"{len(source.classes)} others; evaluate a model that was trained on this data"
        )
    return place(backbone, runtime.device, channels_last)


def reopen_teacher(
    run: Path, config: TrainConfig, source: Source, runtime: Runtime, taps: Taps = LOGITS_ONLY
) -> FrozenTeacher | None:
    """The teacher of a run, as it taught; None when the run has none.

    Raises UserError when the run had a teacher whose weights are gone.
    """
    result = read_result(run)
    if result is None or result.teacher is None or result.teacher.runs is None:
        return None
    fits, wanted = result.teacher.runs, members_of(config)
    if len(fits) != len(wanted):
        raise UserError(f"{run}: result.json names {len(fits)} teachers and config.yaml {len(wanted)}; one is broken")
    members = zip(fits, wanted, strict=True)
    weights_from = [fit or member.config.teacher.checkpoint for fit, member in members]
    return open_teacher(config, weights_from, source.classes, taps, runtime)

"""A finished model again, from any form of checkpoint, and the teacher that taught it."""

from __future__ import annotations

from pathlib import Path

from distillcli.config.schema import DatasetConfig, ModelConfig, TrainConfig
from distillcli.errors import UserError
from distillcli.models.backbone import Backbone, build, place
from distillcli.models.imagenet import open_pretrained, pretrained_classes
from distillcli.models.weights import HUB_PREFIX, knows_classes, load_into, read_weights
from distillcli.runs.result import read_result
from distillcli.runtime import Runtime
from distillcli.sources.source import Source
from distillcli.teachers.frozen import FrozenTeacher, members_of, open_teacher
from distillcli.types import LOGITS_ONLY, Taps


def reopen_model(
    what: str, source: Source, dataset: DatasetConfig, channels_last: bool | None, runtime: Runtime
) -> Backbone:
    """The model that ``what`` names, with its own weights and classifier, for images as ``dataset`` has them.

    ``what``: run folder, checkpoint file, exported folder, ``hf-hub:`` name, or the name of a timm model. Raises
    UserError when the classifier is not one for the classes of ``source``; where nothing is labelled it may be any.
    """
    classes, size, channels = source.classes, dataset.image_size, dataset.channels
    if Path(what).exists() or what.startswith(HUB_PREFIX):
        weights = read_weights(what)
        classes = () if weights.classes == () else classes or weights.classes or ()
        backbone = build(weights.model, len(classes), size, "eval", channels)
        if not knows_classes(weights, backbone, classes):
            count = "" if weights.classes is None else f"{len(weights.classes)} "
            raise UserError(
                f"checkpoint={what}: its {count}classes are not the {len(classes)} of {source.name}; evaluate it on "
                "its own data"
            )
        load_into(backbone, weights, "eval")
    elif pretrained_classes(what, classes) is not None:
        backbone = open_pretrained(ModelConfig(name=what), classes, size, "eval", channels)
    else:
        raise UserError(
            f"checkpoint={what}: timm's weights answer with the classes of ImageNet, {source.name} has {len(classes)} "
            "others; evaluate a model that was trained on this data"
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
    members = zip(result.teacher.runs, members_of(config), strict=True)
    weights_from = [fit or member.teacher.checkpoint for fit, member in members]
    return open_teacher(config, weights_from, source.classes, taps, runtime)

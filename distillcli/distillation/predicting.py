"""The classes of image files, as evaluation would decide them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distillcli.config.schema import PredictConfig, TrainConfig
from distillcli.distillation.reopening import open_checkpoint
from distillcli.errors import UserError
from distillcli.formats import onnx_file, openvino_file
from distillcli.formats.formats import Runner
from distillcli.models.backbone import place
from distillcli.report.answers import Prediction
from distillcli.runs.reading import read_json, reading, try_json
from distillcli.runtime import Runtime
from distillcli.sources.open import open_source
from distillcli.sources.stored import pixels_evaluated
from distillcli.types import Inputs
from distillcli.views.files import Look, batches

Session = onnx_file.Session | openvino_file.Session
RUNTIMES: dict[str, type[Session]] = {".onnx": onnx_file.Session, ".xml": openvino_file.Session}


@dataclass(frozen=True)
class Predictor:
    """``probabilities``: of B x C x H x W images in [0, 1], B x K, for images shown as ``look`` says."""

    classes: tuple[str, ...]
    look: Look
    probabilities: Runner


def open_predictor(what: str, run: Path | None, trained: TrainConfig | None, runtime: Runtime) -> Predictor:
    """The model in ``what`` and how it looks at images. ``run``, ``trained``: the run it lies in, if any.

    Raises UserError when it cannot be opened, has no classes, or does not say how its images are made.
    """
    runtime_of_file = RUNTIMES.get(Path(what).suffix)
    if runtime_of_file is not None:
        return _from_file(what, runtime_of_file(Path(what)))
    look = _look_of_folder(Path(what)) if run is None or trained is None else _look_of_run(run, trained)
    backbone, weights = open_checkpoint(what, None, Inputs(0, look.size, look.channels))
    if not weights.classes:
        raise UserError(f"checkpoint={what}: the model has no named classes; export it again from its run")
    place(backbone, runtime.device, None if trained is None else trained.trainer.channels_last).eval()
    return Predictor(
        weights.classes, look, lambda images: backbone(images.to(runtime.device)).logits.float().softmax(dim=1).cpu()
    )


def predict(
    predictor: Predictor, config: PredictConfig, paths: Iterable[str], unreadable: Callable[[UserError], None]
) -> Iterator[list[Prediction]]:
    """The answers for ``paths``, batch by batch, in their order. ``unreadable``: told of each file that is left out."""
    count = min(config.topk, len(predictor.classes))
    for names, images in batches(paths, predictor.look, config.trainer.workers, unreadable):
        with torch.no_grad():
            values, places = predictor.probabilities(images).topk(count)
        yield [
            Prediction(name, tuple((predictor.classes[k], value) for k, value in zip(own, chances, strict=True)))
            for name, own, chances in zip(names, places.tolist(), values.tolist(), strict=True)
        ]


def _from_file(what: str, session: Session) -> Predictor:
    facts = session.facts
    if not facts.classes:
        raise UserError(f"checkpoint={what}: the model has no classifier; there is nothing to predict")

    def probabilities(images: Tensor) -> Tensor:
        answers = session(images)
        return answers.softmax(dim=1) if facts.temperature is None else answers

    return Predictor(
        facts.classes, Look(facts.view_size, facts.channels, facts.crop_fraction, facts.pixels), probabilities
    )


def _look_of_run(run: Path, trained: TrainConfig) -> Look:
    """As the run was measured; older runs do not say in which form their images were kept, but their data does."""
    dataset = trained.dataset
    pixels = (try_json(run / "data.json") or {}).get("pixels")
    if pixels not in ("whole", "squeezed", "cropped"):
        pixels = pixels_evaluated(open_source(dataset), dataset)
    return Look(dataset.image_size, dataset.channels, dataset.crop_fraction, pixels)


def _look_of_folder(folder: Path) -> Look:
    """An exported folder alone says size and crop; the images are cropped from all the pixels that a file has."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"checkpoint={folder}: lies in no run folder and is no exported student/, so it does not say how its "
            "images are made; name the run, or export the model with distill export"
        )
    card = read_json(path)
    with reading(path):
        settings = card["pretrained_cfg"]
        channels, size, _ = settings["input_size"]
        return Look(int(size), int(channels), float(settings["crop_pct"]), "cropped")

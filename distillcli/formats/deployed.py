"""What an exported file does and knows, whatever its format: one graph from pixels to answers, and facts beside it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from distillcli.errors import UserError
from distillcli.models.backbone import Backbone

INPUT = "images"


@dataclass(frozen=True)
class Wanted:
    """What the user asks of a file. ``crop_fraction``: share of the shorter side that the centre crop keeps.

    ``preprocess``: take B x H x W x C, uint8, and normalise inside; otherwise B x C x H x W, normalised.
    ``temperature``: answer with the softmax at it; None: logits. ``pixels``: in which form the images were kept that
    the model was measured on (see ``sources.stored.pixels_kept``); ``view_size``: pixels of their views, where these
    are not of the model's own size.
    """

    classes: tuple[str, ...]
    crop_fraction: float
    preprocess: bool = False
    temperature: float | None = None
    pixels: str = "cropped"
    view_size: int | None = None


@dataclass(frozen=True)
class Facts:
    """What the file says of itself, so that it is all that a deployment needs.

    ``size``: pixels of both sides of what it takes; ``view_size``: of the views that are resized to this.
    """

    model: str
    classes: tuple[str, ...]
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float
    preprocess: bool
    temperature: float | None
    pixels: str
    view_size: int

    @property
    def output(self) -> str:
        """The name of what it answers with."""
        if self.temperature is not None:
            return "probabilities"
        return "logits" if self.classes else "embedding"

    def texts(self) -> dict[str, str]:
        """As metadata: names with JSON."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in dataclasses.asdict(self).items()}

    def fitted(self, images: Tensor) -> Tensor:
        """B x C x H x W images in [0, 1] of any size, as the file sees them: of its size, and rounded to 8 bits."""
        if images.shape[2:] != (self.size, self.size):
            images = functional.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return (images * 255).round() / 255 if self.preprocess else images

    def inputs(self, images: Tensor) -> Tensor:
        """``images`` in the form that the file takes."""
        fitted = self.fitted(images)
        if self.preprocess:
            return (fitted * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return ((fitted - mean) / std).contiguous()

    def answers(self, outputs: Tensor) -> Tensor:
        """What the file answers where the model alone gives ``outputs``."""
        return outputs if self.temperature is None else (outputs / self.temperature).softmax(dim=1)


def facts_of(backbone: Backbone, wanted: Wanted) -> Facts:
    return Facts(
        model=backbone.spec.name,
        classes=wanted.classes if backbone.spec.classes else (),
        size=backbone.image_size,
        channels=backbone.spec.channels,
        mean=tuple(backbone.mean.flatten().tolist()),
        std=tuple(backbone.std.flatten().tolist()),
        crop_fraction=wanted.crop_fraction,
        preprocess=wanted.preprocess,
        temperature=wanted.temperature,
        pixels=wanted.pixels,
        view_size=wanted.view_size or backbone.image_size,
    )


def read_facts(path: object, texts: dict[str, str]) -> Facts:
    """The facts among the metadata of a file. Raises UserError for a file of another tool."""
    try:
        values = {field.name: json.loads(texts[field.name]) for field in dataclasses.fields(Facts)}
        for name in ("classes", "mean", "std"):
            values[name] = tuple(values[name])
        return Facts(**values)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: does not say what images it takes, so it was not written by distill export; export the model "
            "with distill export"
        ) from error


class Deployed(nn.Module):
    """The network of a backbone, on the CPU, between what the file takes and what it answers with."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        self.net = copy.deepcopy(backbone.net).cpu().to(memory_format=torch.contiguous_format)
        self.facts = facts
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(facts, name)).view(1, -1, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if self.facts.preprocess:
            images = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.facts.answers(self.net(images))


def traced(backbone: Backbone, facts: Facts, name: str) -> ExportedProgram:
    """The graph for batches of any size. Raises UserError naming model and format where torch cannot follow the model.

    Library: ``torch.export``.
    """
    shape = (2, facts.size, facts.size, facts.channels) if facts.preprocess else (2, facts.channels, *[facts.size] * 2)
    example = torch.zeros(shape, dtype=torch.uint8 if facts.preprocess else torch.float32)
    with quietly(), refused_by_name(facts, name):
        return torch.export.export(Deployed(backbone, facts), (example,), dynamic_shapes=({0: Dim("batch")},))


@contextlib.contextmanager
def refused_by_name(facts: Facts, name: str) -> Iterator[None]:
    """What an exporter cannot express becomes a UserError: it is a limit of the format, and another one may do."""
    try:
        yield
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(
            f"format={name}: {facts.model} cannot be exported so ({reason}); choose another format, e.g. format=timm"
        ) from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Exporters print and warn about matters of their own."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

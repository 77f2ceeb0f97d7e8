"""Backbone: a timm model that resizes and normalises its inputs, and outputs logits, embedding and stages.

Stages are addressed by number through timm's ``forward_intermediates``: no hooks, no layer names. The embedding comes
from ``forward_head(pre_logits=True)``; applying ``get_classifier()`` to it instead is wrong for one family in eight.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import timm
import torch
from timm.models import resolve_model_input_args
from timm.models.deit import VisionTransformerDistilled
from timm.models.levit import LevitDistilled
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import distillcli.models.zoo  # noqa: F401  # timm knows its models from here on
from distillcli.config.schema import ModelConfig
from distillcli.errors import UserError
from distillcli.models.card import check_folder
from distillcli.models.offline import quick_without_network
from distillcli.models.pointwise import use_linear
from distillcli.models.preactivation import ending, kept_inputs, watched_activations
from distillcli.reused_head import title
from distillcli.types import LOGITS_ONLY, Inputs, Output, Spec, Taps

LOCAL_PREFIX = "local-dir:"


class Backbone(nn.Module):
    """A timm model. ``forward``: B x C x H x W images in [0, 1] -> Output; of 0 classes: logits B x 0.

    ``image_size``: the pixels it was built for. ``resizes``: it takes images of any size and brings them to its own
    with antialiasing, so that models of different sizes see the same crop of the same view; otherwise it takes them as
    they come, also while views grow.
    """

    net: Any  # a timm model; nn.Module does not declare what timm adds
    mean: Tensor
    std: Tensor

    def __init__(self, net: Any, spec: Spec, image_size: int, resizes: bool) -> None:
        super().__init__()
        self.net = net
        self.spec = spec
        self.image_size = image_size
        self.resizes = resizes
        self.frozen: list[nn.Module] = []  # what freezing.freeze took out of the training
        # Modules, not paths: folding norms away moves some of them.
        self.endings = {stage: net.get_submodule(path) for stage, path in enumerate(spec.endings) if path}
        settings = net.pretrained_cfg
        for name in ("mean", "std"):  # not saved: the exported config carries them
            values = _per_channel(settings[name], spec.channels)
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        if isinstance(net, (VisionTransformerDistilled, LevitDistilled)):
            net.set_distilled_training(True)  # in training mode they then return the logits of both classifiers

    def train(self, mode: bool = True) -> Backbone:
        """Frozen layers stay in eval mode: their norms keep their statistics, and nothing in them is dropped."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    @property
    def classifier(self) -> tuple[str, ...]:
        """What the names of the classifier's weights begin with; some models have two classifiers."""
        names = self.net.pretrained_cfg["classifier"]
        return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))

    def forward(self, images: Tensor, taps: Taps = LOGITS_ONLY) -> Output:
        size = (self.image_size, self.image_size)
        if self.resizes and images.shape[2:] != size:
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        normalised = (images - self.mean) / self.std
        if taps in (LOGITS_ONLY, Taps(token=True)):
            logits, token = _both_heads(self.net(normalised), taps)
            return Output(self._logits(logits), None, {}, token)
        count = len(self.spec.stage_shapes)
        wanted = sorted({stage % count for stage in (*taps.stages, *taps.preactivations)})
        ended = {stage % count for stage in taps.preactivations} & self.endings.keys()
        # Nothing is watched without need: torch.compile could not look through it.
        watched = {stage: self.endings[stage] for stage in ended}
        with kept_inputs(watched) if watched else contextlib.nullcontext(dict[int, Tensor]()) as given:
            if wanted:
                features, maps = self.net.forward_intermediates(normalised, indices=wanted)
            else:  # timm rejects an empty list
                features, maps = self.net.forward_features(normalised), []
        by_number = dict(zip(wanted, maps, strict=True))
        before = {stage: given[stage] if stage in ended else by_number[stage] for stage in wanted}
        logits, token = _both_heads(self.net.forward_head(features), taps)
        return Output(
            logits=self._logits(logits),
            embedding=self.net.forward_head(features, pre_logits=True) if taps.embedding else None,
            stages={stage: by_number[stage % count] for stage in taps.stages},
            token_logits=token,
            class_maps=self._class_maps(features) if taps.class_maps else None,
            features=features if taps.features else None,
            preactivations={stage: before[stage % count] for stage in taps.preactivations},
        )

    @torch.no_grad()
    def check_class_maps(self) -> None:
        """Raise UserError unless the mean of the class maps is the logits: averages, then one linear layer."""
        generator = torch.Generator().manual_seed(0)
        shape = (2, self.spec.channels, self.image_size, self.image_size)
        images = torch.rand(shape, generator=generator).to(self.mean.device)
        normalised = (images - self.mean) / self.std
        features = self.eval().net.forward_features(normalised)
        logits = self.net.forward_head(features)
        if self.spec.feature_shape is not None:
            error = (self._class_maps(features).mean(dim=(2, 3)) - logits).abs().max()
            if error <= 1e-4 * logits.abs().max():
                return
        raise UserError(
            f"distill.terms.cat_kd: {self.spec.name} has no class maps, as it does not pool by averaging right before "
            "one linear layer; take a model that does, e.g. a ResNet"
        )

    def _class_maps(self, features_BCHW: Tensor) -> Tensor:
        count, channels, height, width = features_BCHW.shape
        positions = features_BCHW.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        logits: Tensor = self.net.forward_head(positions)
        return logits.reshape(count, height, width, -1).permute(0, 3, 1, 2)

    def _logits(self, answer_BK: Tensor) -> Tensor:
        """Without a classifier, timm returns the embedding."""
        return answer_BK if self.spec.classes else answer_BK[:, :0]


def _both_heads(answer: Tensor | tuple[Tensor, Tensor], taps: Taps) -> tuple[Tensor, Tensor | None]:
    """The logits and the distillation token's, if there are any and they are tapped; else the mean, as in evaluation.

    Without a teacher nothing would train the token's classifier, which evaluation counts as a half.
    """
    if isinstance(answer, Tensor):
        return answer, None
    return answer if taps.token else ((answer[0] + answer[1]) / 2, None)


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    """The mean or deviation of each channel; for images with other channels their average, as timm takes it."""
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels


# What timm knows of its own weights, whose licence is not that of others in the same architecture.
_ORIGIN = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes")


def build(model: ModelConfig, inputs: Inputs, key: str) -> Backbone:
    """The model of a config, its weights fresh or, if ``pretrained``, timm's.

    A model without an ``image_size`` of its own is built for that of the views. timm adapts the first layer of
    pretrained weights to other numbers of channels than those they were trained with. Own weights (``checkpoint``) are
    loaded by :mod:`distillcli.models.weights`. ``key``: where the config names the model, for messages (see
    ``key_of``). Raises UserError when timm cannot build the model so, or its weights cannot be fetched.
    """
    spec = describe(model, inputs, key)
    try:
        with quick_without_network() if model.pretrained else contextlib.nullcontext():
            net = timm.create_model(pretrained=model.pretrained, **_arguments(model, inputs))
        if not model.pretrained:
            net.pretrained_cfg = {key: value for key, value in net.pretrained_cfg.items() if key not in _ORIGIN}
    except (OSError, RuntimeError) as error:
        if not model.pretrained:
            raise
        raise UserError(
            f"{key_of(key, 'pretrained')}=true: no weights for {model.name} ({_first_line(error)}); run once with "
            f"network access so that they are kept in {huggingface_hub.constants.HF_HUB_CACHE}, or use "
            f"{key_of(key, 'checkpoint')}=PATH"
        ) from error
    return Backbone(net, spec, _image_size(model, inputs), resizes=model.image_size is not None)


def fresh(model: ModelConfig) -> ModelConfig:
    """The same model with fresh weights, all of them trained."""
    return ModelConfig(model.name, args=model.args, image_size=model.image_size)


def key_of(key: str, setting: str) -> str:
    """The dotted key of a model's setting. ``key``: the config group of the model, such as ``student`` or
    ``teacher.members[1]``; empty for a model that a checkpoint names by itself.
    """
    return f"{key}.{setting}" if key else setting


def place(backbone: Backbone, device: torch.device, channels_last: bool | None) -> Backbone:
    """Move the weights to the device, in the memory layout that decides which kernels run and how sums round.

    ``channels_last``: None (not measured) is the same as True.
    """
    backbone.to(device)
    channels_last = channels_last is not False
    backbone.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if channels_last and device.type == "cpu":
        use_linear(backbone)
    return backbone


# A run needs the same specs several times, and each takes up to a second.
_described: dict[tuple[str, str, Inputs], Spec] = {}


def describe(model: ModelConfig, inputs: Inputs, key: str) -> Spec:
    """Shapes, parameters and MACs, from a forward pass of one image on the meta device: no memory, no arithmetic.

    Raises UserError if timm cannot build the model with these arguments, or it cannot take images of this size.
    """
    seen = dataclasses.replace(inputs, image_size=_image_size(model, inputs))
    if model.name.startswith(LOCAL_PREFIX):  # its folder may be written again
        check_folder(Path(model.name.removeprefix(LOCAL_PREFIX)))
        return _described_anew(model, seen, key)
    known = (model.name, repr(model.args), seen)
    if known not in _described:
        _described[known] = _described_anew(model, seen, key)
    return _described[known]


def build_on_meta(model: ModelConfig, inputs: Inputs, key: str) -> Backbone:
    """The model without memory for its weights, which costs no more than their names and shapes."""
    spec = describe(model, inputs, key)
    return Backbone(_net_on_meta(model, inputs), spec, _image_size(model, inputs), resizes=model.image_size is not None)


def _net_on_meta(model: ModelConfig, inputs: Inputs) -> Any:
    with torch.device("meta"):
        return timm.create_model(**_arguments(model, inputs))


def _described_anew(model: ModelConfig, inputs: Inputs, key: str) -> Spec:
    try:
        net = _net_on_meta(model, inputs).eval()
        with torch.device("meta"), torch.no_grad():
            images = torch.zeros(1, inputs.channels, inputs.image_size, inputs.image_size)
            with FlopCounterMode(display=False) as counter:
                net(images)
            with watched_activations(net) as makers, torch.enable_grad():
                features, maps = net.forward_intermediates(images)
            embedding = net.forward_head(features, pre_logits=True)
            shape = features.shape
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        own = f", {key}.image_size and {key}.args" if key else ""
        raise UserError(
            f"{key_of(key, 'name') if key else 'checkpoint'}={title(model)}: cannot be built for {inputs.classes} "
            f"classes and images of {inputs.image_size} pixels with {inputs.channels} channels "
            f"({_first_line(error)}); check dataset.image_size{own}"
        ) from error
    return Spec(
        name=title(model),
        classes=inputs.classes,
        embedding_width=embedding.shape[1],
        stage_shapes=tuple((stage.shape[1], stage.shape[2], stage.shape[3]) for stage in maps),
        params=sum(parameter.numel() for parameter in net.parameters()),
        macs=counter.get_total_flops() // 2,
        # Transformers have tokens, or maps with the channels last, before their heads.
        feature_shape=(shape[1], shape[2], shape[3]) if len(shape) == 4 and shape[1] == net.num_features else None,
        endings=tuple(ending(stage, makers) for stage in maps),
        channels=inputs.channels,
        mean=tuple(_per_channel(net.pretrained_cfg["mean"], inputs.channels)),
        std=tuple(_per_channel(net.pretrained_cfg["std"], inputs.channels)),
    )


def _image_size(model: ModelConfig, inputs: Inputs) -> int:
    return model.image_size or inputs.image_size


def _arguments(model: ModelConfig, inputs: Inputs) -> dict[str, Any]:
    """Arguments of timm.create_model; models of a fixed input size are built for the size of their images."""
    arguments: dict[str, Any] = resolve_model_input_args(
        model.name,
        {"img_size": _image_size(model, inputs)},
        num_classes=inputs.classes,
        in_chans=inputs.channels,
        **model.args,
    )
    return arguments


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]

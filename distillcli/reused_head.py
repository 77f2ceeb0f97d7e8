"""A student that ends in its teacher's classifier, as one timm model (SimKD: Chen et al., CVPR 2022).

timm knows it by the name ``reused_head`` once this module is imported: it is built, exported and opened again like any
other of its models, and needs no teacher when it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import timm
import torch
from timm.layers import ConvNormAct
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_model_input_args
from torch import Tensor, nn
from torch.nn import functional

from distillcli.config.schema import ModelConfig

NAME = "reused_head"
# timm looks for this name when the model is registered: no weights are published.
# Built for the size of its images, since its body may be; another body does not mind.
default_cfgs = generate_default_cfgs({NAME: {"fixed_input_size": True}})
# Of a resolved timm model: what belongs to its data or its weights, and not to its architecture.
_NOT_ARCHITECTURE = ("model_name", "pretrained_cfg", "pretrained_model_args", "num_classes", "in_chans", "img_size")


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is joined: ``body`` and ``head`` are names of timm models, with their further arguments.

    The projector between them has three convolutions, 1 x 1, 3 x 3 and 1 x 1, the first two of 1 / ``reduction`` of the
    channels, each with batch norm and ReLU; the last ReLU only with ``relu``. ``largest``: height and width, as of the
    head's own features, to which larger maps of the body are averaged before it; None leaves them as they are.
    """

    body: str
    head: str
    body_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    head_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    reduction: int = 2
    relu: bool = True
    largest: list[int] | None = None


class ReusedHead(nn.Module):
    """The last stage of a body, projected to the channels of a head, and what the head does after its features.

    Takes the arguments that timm gives every model, and those of ``Parts``.
    """

    def __init__(self, num_classes: int, in_chans: int = 3, img_size: int | None = None, **parts: Any) -> None:
        super().__init__()
        joined = Parts(**parts)
        arguments = {"num_classes": 0, "in_chans": in_chans, **joined.body_args}
        self.body: Any = timm.create_model(**resolve_model_input_args(joined.body, {"img_size": img_size}, **arguments))
        channels = self.body.feature_info[-1]["num_chs"]
        self.stages = len(self.body.feature_info)
        self.body.prune_intermediate_layers(1, prune_norm=True, prune_head=True)
        self.teacher_head: Any = _after_features(
            timm.create_model(joined.head, num_classes=num_classes, **joined.head_args)
        )
        self.num_classes, self.in_chans = num_classes, in_chans
        self.largest = joined.largest
        self.num_features, self.head_hidden_size = self.teacher_head.num_features, self.teacher_head.head_hidden_size
        middle = max(1, self.num_features // joined.reduction)
        self.projector = nn.Sequential(
            ConvNormAct(channels, middle, 1),
            ConvNormAct(middle, middle, 3),
            ConvNormAct(middle, self.num_features, 1, apply_act=joined.relu),
        )

    def no_weight_decay(self) -> set[str]:
        try:
            exceptions: Collection[str] = self.body.no_weight_decay()
        except AttributeError:  # most convolutional networks except nothing
            return set()
        return {f"body.{name}" for name in exceptions}

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self, images: Tensor, indices: Sequence[int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """What ``forward_head`` takes, and the stages of the body, B x C x H x W, with the numbers they have there."""
        last = self.stages - 1
        wanted = list(range(self.stages)) if indices is None else [index % self.stages for index in indices]
        taken = sorted({*wanted, last})
        maps = self.body.forward_intermediates(images, indices=taken, intermediates_only=True)
        by_number = dict(zip(taken, maps, strict=True))
        return self.projector(self._pooled(by_number[last])), [by_number[stage] for stage in wanted]

    def _pooled(self, maps_BCHW: Tensor) -> Tensor:
        """Before the projector, as the authors do, so that it costs no more than the head's own features."""
        if self.largest is None:
            return maps_BCHW
        height, width = (min(sides) for sides in zip(maps_BCHW.shape[2:], self.largest, strict=True))
        return functional.adaptive_avg_pool2d(maps_BCHW, (height, width))

    def forward_features(self, images: Tensor) -> Tensor:
        return self.forward_intermediates(images, [-1])[0]

    def forward_head(self, features_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        answer: Tensor = self.teacher_head.forward_head(features_BCHW, pre_logits=pre_logits)
        return answer


def reused_head(pretrained: bool = False, **arguments: Any) -> ReusedHead:
    """The entry point that timm.create_model calls."""
    model: ReusedHead = build_model_with_cfg(ReusedHead, NAME, pretrained, **arguments)
    return model


register_model(reused_head)


def join(
    student: ModelConfig, teacher: ModelConfig, reduction: int, relu: bool, largest: list[int] | None
) -> ModelConfig:
    """The config of the model that goes as far as ``student`` and ends as ``teacher``; its weights are fresh.

    For the others see ``Parts``.
    """
    body, head = (resolve_model_input_args(model.name, **model.args) for model in (student, teacher))
    settings, classifier = body["pretrained_cfg"], head["pretrained_cfg"]["classifier"]
    classifiers = [classifier] if isinstance(classifier, str) else classifier  # some have two
    return dataclasses.replace(
        student,
        name=NAME,
        pretrained=False,
        checkpoint=None,
        args={
            "body": body["model_name"],
            "head": head["model_name"],
            "body_args": _architecture(body),
            "head_args": _architecture(head),
            "reduction": reduction,
            "relu": relu,
            **({} if largest is None else {"largest": largest}),
            "pretrained_cfg_overlay": {
                "mean": settings["mean"],
                "std": settings["std"],
                "classifier": [f"teacher_head.{name}" for name in classifiers],
            },
        },
    )


def title(model: ModelConfig) -> str:
    """What a model is called where people read it."""
    return f"{model.args['body']} with the head of {model.args['head']}" if model.name == NAME else model.name


def start_from(joined: ReusedHead, student: nn.Module, teacher: nn.Module) -> None:
    """Copy into ``joined`` the weights it shares with the models it was joined from."""
    for part, whole in ((joined.body, student), (joined.teacher_head, teacher)):
        state = whole.state_dict()
        part.load_state_dict({name: state[name] for name in part.state_dict()})


def _architecture(resolved: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in resolved.items() if key not in _NOT_ARCHITECTURE}


def _after_features(net: Any) -> Any:
    """``net`` without the layers that ``forward_head`` does not call, found by watching it."""
    called = set[nn.Module]()
    watched = [module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in net.modules()]
    with torch.no_grad():
        net.eval().forward_head(torch.zeros(1, net.num_features, 2, 2))
    for watch in watched:
        watch.remove()
    for name, child in net.named_children():
        if called.isdisjoint(child.modules()):
            net.set_submodule(name, nn.Identity())
    return net

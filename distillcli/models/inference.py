"""A frozen model made fast: norms folded into convolutions, weights kept in the precision they are used in."""

from __future__ import annotations

import copy

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.weak import WeakTensorKeyDictionary

from distillcli.models.backbone import Backbone
from distillcli.models.pointwise import PointwiseConv2d
from distillcli.runtime import PRECISIONS
from distillcli.types import Taps

# Exact types: a subclass may standardise its weight before use, or normalise in another way.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame, PointwiseConv2d)
NORMS = (nn.BatchNorm2d, BatchNormAct2d)
# Of the largest number of an output. Folding reorders products: trained networks stay below 1e-5.
TOLERANCE = 1e-3


def for_inference(backbone: Backbone, precision: str) -> Backbone:
    """A faster copy with the outputs of ``backbone`` in eval mode; the model itself where nothing can be gained."""
    folded = fold_norms(backbone)
    return folded if precision == "fp32" else cast_weights(folded, PRECISIONS[precision])


@torch.no_grad()
def fold_norms(backbone: Backbone) -> Backbone:
    """A copy without the batch norms that follow a convolution: what they do is part of its weights.

    The copy is compared with the original on random images, in all its outputs; if they differ, or if there is nothing
    to fold, the original is returned.
    """
    original = backbone.eval()
    shape = (2, backbone.spec.channels, backbone.image_size, backbone.image_size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    images = images.to(backbone.mean.device)
    folded = copy.deepcopy(original)
    pairs = _convolutions_before_norms(folded, images)
    for name, convolution in pairs.items():
        norm = folded.get_submodule(name)
        assert isinstance(norm, NORMS)
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        folded.set_submodule(name, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    return folded if pairs and _answer_alike(folded, original, images) else backbone


def cast_weights(backbone: Backbone, dtype: torch.dtype) -> Backbone:
    """A copy whose convolutions and linear layers hold their weights in ``dtype``.

    Under autocast to ``dtype`` its numbers are those of the original bit for bit: autocast makes the same cast, but of
    every frozen weight in every step.
    """
    cast = copy.deepcopy(backbone)
    for module in cast.modules():
        if type(module) in (*CONVOLUTIONS, nn.Linear):
            module.to(dtype)
    return cast


def _convolutions_before_norms(model: nn.Module, images: Tensor) -> dict[str, nn.Conv2d]:
    """Path of a norm -> the convolution whose output it takes, seen by watching the tensors of one forward pass.

    Unlike a traced graph this needs no model that can be traced, and no rule about how layers are called.
    """
    makers, pairs = WeakTensorKeyDictionary(), dict[str, nn.Conv2d]()
    paths = {module: path for path, module in model.named_modules()}

    def note_maker(convolution: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        makers[output] = convolution

    def note_pair(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0] in makers:
            pairs[paths[norm]] = makers[inputs[0]]

    hooks = [module.register_forward_hook(note_maker) for module in paths if type(module) in CONVOLUTIONS]
    for module in paths:
        if isinstance(module, NORMS) and type(module) in NORMS and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(note_pair))
    model(images)
    for hook in hooks:
        hook.remove()
    return pairs


def _answer_alike(one: Backbone, other: Backbone, images: Tensor) -> bool:
    taps = Taps(tuple(range(len(one.spec.stage_shapes))), embedding=True)
    outputs = [one(images, taps), other(images, taps)]
    answers = [[output.logits, output.embedding, *output.stages.values()] for output in outputs]
    return all(
        torch.allclose(here, there, rtol=0, atol=TOLERANCE * float(there.abs().max()))
        for here, there in zip(*answers, strict=True)
        if there.numel()  # a model without a head has no logits
    )

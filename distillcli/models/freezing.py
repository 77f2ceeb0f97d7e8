"""Layers that are not trained: their weights and the statistics of their norms stay what they were."""

from __future__ import annotations

from timm.models import group_parameters
from torch.nn import Parameter

from distillcli.errors import UserError
from distillcli.models.backbone import Backbone


def freeze(backbone: Backbone, which: str, key: str) -> None:
    """Freeze ``none`` of the layers, the ``backbone`` (all but the classifier), or the first N of timm's coarse groups.

    The groups are those of ``group_matcher(coarse=True)``: the stem, each stage or block, the head. Raises UserError
    when the model has no such groups, or no more than N; ``key``: where the config names the model.
    """
    if which == "none":
        return
    net = backbone.net
    if which == "backbone":
        frozen = {name for name, _ in net.named_parameters() if not name.startswith(backbone.classifier)}
    else:
        try:
            groups = group_parameters(net, net.group_matcher(coarse=True))
        except (AttributeError, AssertionError) as error:  # a few models have no groups, or no coarse ones
            raise UserError(
                f"{key}.freeze={which}: timm does not group the layers of {backbone.spec.name}; use backbone or none"
            ) from error
        if int(which) >= len(groups):
            raise UserError(
                f"{key}.freeze={which}: {backbone.spec.name} has {len(groups)} groups of layers, the last one its "
                f"classifier; freeze at most {len(groups) - 1}, or backbone"
            )
        frozen = {name for group in range(int(which)) for name in groups[group]}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)
    backbone.frozen = [module for module in net.modules() if _is_frozen([*module.parameters()])]
    backbone.train(backbone.training)  # takes effect from the first step on


def _is_frozen(parameters: list[Parameter]) -> bool:
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)

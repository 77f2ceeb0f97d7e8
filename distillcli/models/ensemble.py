"""Several classifiers whose outputs are averaged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distillcli.models.backbone import Backbone
from distillcli.types import LOGITS_ONLY, Output, Spec, Taps


class Ensemble(nn.Module):
    """The weighted mean of its members' probabilities, or of their logits, each at its own temperature.

    ``forward``: B x C x H x W images in [0, 1] -> Output with logits B x K; every member resizes and normalises for
    itself. The mean of probabilities p is answered as log p, whose softmax is p again.
    """

    weights: Tensor
    temperatures: Tensor

    def __init__(self, members: list[Backbone], weights: list[float], temperatures: list[float], average: str) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("weights", torch.tensor(weights) / sum(weights))
        self.register_buffer("temperatures", torch.tensor(temperatures))
        self.average = average
        self.spec = join_specs([member.spec for member in members])
        self.image_size = max(member.image_size for member in members)

    def forward(self, images: Tensor, taps: Taps = LOGITS_ONLY) -> Output:
        assert taps == LOGITS_ONLY, "an ensemble has no common embedding or stages"
        logits_MBK = torch.stack([member(images).logits.float() for member in self.members])
        logits_MBK = logits_MBK / self.temperatures[:, None, None]
        weights = self.weights[:, None, None]
        if self.average == "logits":
            return Output((weights * logits_MBK).sum(dim=0), None, {})
        return Output((logits_MBK.log_softmax(dim=2) + weights.log()).logsumexp(dim=0), None, {})


Classifier = Backbone | Ensemble


def join_specs(specs: list[Spec]) -> Spec:
    """What is known of an ensemble: the sum of its members' cost, and no embedding or stages of its own."""
    return Spec(
        name="ensemble of " + ", ".join(spec.name for spec in specs),
        classes=specs[0].classes,
        embedding_width=0,
        stage_shapes=(),
        params=sum(spec.params for spec in specs),
        macs=sum(spec.macs for spec in specs),
        channels=specs[0].channels,
    )

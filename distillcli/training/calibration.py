"""One temperature for the logits of a model, fitted on validation data.

Guo et al., "On Calibration of Modern Neural Networks" (2017). It changes how sure a model is, and no decision.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from distillcli.models.ensemble import Classifier
from distillcli.runtime import autocast, sum_over_ranks
from distillcli.views.loader import Data

# The logarithms to base 2 of the temperatures that are tried; the best is refined between its neighbours.
TRIED = torch.linspace(-4, 4, 65)


@torch.no_grad()
def fitted_temperature(backbone: Classifier, data: Data, precision: str) -> float | None:
    """What the logits have to be divided by for the likelihood of the validation labels to be greatest.

    Between 1/16 and 16, the limits standing for all beyond. None without a head, or without labelled validation images
    that are not those that are reported.
    """
    val = data.val
    if val is None or data.source.evaluated_on == "val" or not val.has_labels or backbone.spec.classes == 0:
        return None
    runtime = val.runtime
    losses = torch.zeros(len(TRIED), dtype=torch.float64, device=runtime.device)
    was_training = backbone.training
    backbone.eval()
    for batch in val.labelled().plain():
        with autocast(runtime.device, precision):
            logits = backbone(batch.images).logits.float()
        losses += _losses(logits, batch.targets)
    backbone.train(was_training)
    return best_temperature(sum_over_ranks(losses, runtime).cpu())


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The negative log-likelihood of B labels at each temperature tried."""
    return torch.stack(
        [functional.cross_entropy(logits / 2.0**power, labels, reduction="sum").double() for power in TRIED.tolist()]
    )


def best_temperature(losses: Tensor) -> float | None:
    """The temperature of the lowest of ``losses``, one for each tried; None if one is not finite."""
    if not losses.isfinite().all():
        return None
    at = int(losses.argmin())
    power = TRIED[at].item()
    if 0 < at < len(TRIED) - 1:  # the lowest point of the parabola through it and its neighbours
        below, here, above = losses[at - 1 : at + 2].tolist()
        bend = below - 2 * here + above
        power += (TRIED[1] - TRIED[0]).item() * (below - above) / (2 * bend) if bend > 0 else 0.0
    return float(2.0**power)

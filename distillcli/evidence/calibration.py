"""The temperature at which the softmax of a classifier means what it says."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

LOWEST, HIGHEST = 0.05, 20.0


def fitted_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature with the least negative log-likelihood, in [0.05, 20]: temperature scaling.

    ``logits``: N x K. ``labels``: N, all of them known. Source: Guo et al., On Calibration of Modern Neural Networks
    (ICML 2017).
    """
    own = logits[np.arange(len(labels)), labels]

    def loss(exponent: float) -> float:
        scale = math.exp(-exponent)
        return float(np.mean(logsumexp(scale * logits, axis=1) - scale * own))

    # In the inverse of the temperature the loss is convex, so in its logarithm there is one minimum.
    found = minimize_scalar(loss, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded")
    return math.exp(found.x)

"""Our terms beside torchdistill's: equal where it follows the paper, apart where it has a mistake that is often made.

It comes with ``pip install distillcli[peers]``; without it nothing here runs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distillcli.terms.ab import boundary_loss
from distillcli.terms.base import standardized
from distillcli.terms.feature import attention_transfer, flow, hierarchical_context, variational_information
from distillcli.terms.ft import factor_distance
from distillcli.terms.logit import cross_entropy, dist_parts, kl_divergence, pearson
from distillcli.terms.memory import OtherClasses, contrast
from distillcli.terms.relation import angle_loss, bilinear, distances, gaussian, probabilistic_transfer, similarities
from distillcli.terms.stages import unit

theirs = pytest.importorskip("torchdistill.losses.mid_level")

T = 4.0
PATHS = ("m", "output", "m", "output")
PAIR = {"pair": {side: {"path": "m", "io": "output"} for side in ("student", "teacher")}}
LABELS = torch.arange(6) % 5


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def said(output: Any) -> dict[str, dict[str, Any]]:
    """What a network said, as its losses read it."""
    return {"m": {"output": output}}


def loss(module: Any, student: Any, teacher: Tensor, *more: Tensor) -> Tensor:
    value: Tensor = module(said(student), said(teacher), *more)
    return value


LOGITS = seeded(6, 5), seeded(6, 5, seed=1)
EMBEDDINGS = seeded(6, 8), seeded(6, 11, seed=1)
MAPS = seeded(4, 3, 6, 5), seeded(4, 3, 6, 5, seed=1)


# --- equal --------------------------------------------------------------------------------------------------------


def test_kd_with_labels() -> None:
    value = loss(theirs.KDLoss(*PATHS, temperature=T, alpha=0.1), *LOGITS, LABELS)
    torch.testing.assert_close(0.1 * cross_entropy(LOGITS[0], LABELS) + 0.9 * kl_divergence(*LOGITS, T), value)


def test_kd_of_standardised_logits_with_labels() -> None:
    value = loss(theirs.LogitStdKDLoss(*PATHS, temperature=2.0, alpha=0.1, beta=9.0), *LOGITS, LABELS)
    ours = kl_divergence(*(standardized(logits) for logits in LOGITS), 2.0)
    torch.testing.assert_close(0.1 * cross_entropy(LOGITS[0], LABELS) + 9 * ours, value)


def test_dist_of_columns_of_ordinary_size() -> None:
    inter, intra = dist_parts(*LOGITS, T)
    value = loss(theirs.DISTLoss(*PATHS, beta=0.8, gamma=1.7, tau=T), *LOGITS)
    torch.testing.assert_close(T**2 * (0.8 * inter + 1.7 * intra), value, rtol=1e-6, atol=0)


def test_attention_transfer_in_both_forms() -> None:
    code = loss(theirs.ATLoss(PAIR, mode="code"), *MAPS)
    torch.testing.assert_close(attention_transfer(*MAPS, form="code"), code)
    paper = loss(theirs.ATLoss(PAIR, mode="paper"), *MAPS)
    torch.testing.assert_close(2 * attention_transfer(*MAPS, form="paper"), paper)  # the half of beta / 2 is the user's


def test_activation_boundaries_of_one_stage() -> None:
    value = loss(theirs.AltActTransferLoss(PAIR, margin=0.7, reduction="mean"), *MAPS)
    torch.testing.assert_close(boundary_loss(MAPS[0], MAPS[1] > 0, 0.7), value)


def test_factor_transfer() -> None:
    module = theirs.FTLoss(paraphraser_path="m", translator_path="m")
    torch.testing.assert_close(factor_distance(*MAPS), loss(module, *MAPS))


def test_variational_information() -> None:
    rho = seeded(3, seed=2)
    variance = (functional.softplus(rho) + 1e-5)[:, None, None]
    value = loss(theirs.VIDLoss(PAIR), (MAPS[0], variance), MAPS[1])
    torch.testing.assert_close(variational_information(*MAPS, rho), value)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 9])
def test_hierarchical_context(side: int) -> None:
    maps = seeded(2, 3, side, side), seeded(2, 3, side, side, seed=1)
    value = loss(theirs.HierarchicalContextLoss(*PATHS), (maps[0], None), maps[1])
    torch.testing.assert_close(hierarchical_context(*maps), value)


def test_relations() -> None:
    module = theirs.RKDLoss("m", "m", dist_factor=25.0, angle_factor=50.0, reduction="mean")
    apart = functional.smooth_l1_loss(*(distances(embedding) for embedding in EMBEDDINGS))
    torch.testing.assert_close(25 * apart + 50 * angle_loss(*EMBEDDINGS), loss(module, *EMBEDDINGS))


def test_probabilistic_transfer() -> None:
    value = loss(theirs.PKTLoss(*PATHS), *EMBEDDINGS)
    torch.testing.assert_close(probabilistic_transfer(*EMBEDDINGS), value, rtol=1e-5, atol=0)


def test_the_kernels_of_correlation_congruence() -> None:
    vectors = unit(EMBEDDINGS[0], dim=1)
    kernel = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    module = theirs.CCKDLoss("m", "m", kernel, reduction="batchmean")
    torch.testing.assert_close(gaussian(vectors, 0.4, 2), module.compute_cc_mat_by_gaussian_rbf(vectors))
    torch.testing.assert_close(bilinear(vectors), module.compute_cc_mat_by_bilinear_pool(vectors))


def test_the_flow_between_two_maps_of_one_size() -> None:
    torch.testing.assert_close(flow(*MAPS), theirs.FSPLoss.compute_fsp_matrix(*MAPS))


def test_contrast_with_a_memory() -> None:
    similar, log_scale = seeded(6, 9) / 0.07, torch.tensor(3.0, dtype=torch.float64)
    module = theirs.CRDLoss("m", "m", "m", 4, 50, num_negative_samples=8, num_samples=50)
    value = module.compute_contrast_loss((similar - log_scale).exp()[:, :, None])
    torch.testing.assert_close(contrast(similar[:, 0], similar[:, 1:], log_scale, 50), value[0], rtol=1e-6, atol=0)


# --- apart --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "sides"),
    [
        (theirs.KDLoss(*PATHS, temperature=T, alpha=0.0, beta=0.9), LOGITS),
        (
            theirs.LogitStdKDLoss(*PATHS, temperature=T, alpha=0.0, beta=0.9),
            [standardized(logits) for logits in LOGITS],
        ),
    ],
)
def test_kd_without_labels_keeps_its_weight_and_temperature(module: Any, sides: list[Tensor]) -> None:
    """Guards against a KD term that depends on the weight of cross-entropy: at 0 theirs loses T^2 and beta."""
    torch.testing.assert_close(kl_divergence(*sides, T), T**2 * loss(module, *LOGITS, LABELS))


def test_classes_that_are_absent_from_the_batch_do_not_correlate() -> None:
    """Guards against clamping each norm in place of adding epsilon to their product: dist of near-constant columns."""
    column, other = 1e-6 * seeded(6, 1), 1e-6 * (seeded(6, 1) + 0.02 * seeded(6, 1, seed=1))
    clamped = theirs.DISTLoss.pearson_correlation(column.T, other.T, 1e-8)
    assert clamped.item() > 0.99
    assert pearson(column, other, dim=0).item() < 0.01


def test_rows_of_similarities_have_length_one() -> None:
    """Guards against sp with rows normalised by the sum of their absolute values."""
    rows = theirs.SPKDLoss("m", "m", "batchmean").matmul_and_normalize(EMBEDDINGS[0])
    torch.testing.assert_close(rows.abs().sum(dim=1), torch.ones(6).double())
    torch.testing.assert_close(similarities(EMBEDDINGS[0]).norm(dim=1), torch.ones(6).double())
    torch.testing.assert_close(unit(rows, dim=1), similarities(EMBEDDINGS[0]))


def test_congruence_is_a_squared_distance() -> None:
    """Guards against cc with the Frobenius norm where the paper has its square."""
    vectors = [unit(embedding, dim=1) for embedding in EMBEDDINGS]
    value = loss(theirs.CCKDLoss("m", "m", {"type": "bilinear"}, reduction="batchmean"), *vectors)
    ours = functional.mse_loss(*(bilinear(vector) for vector in vectors))
    torch.testing.assert_close(ours, (36 * value) ** 2 / 36)
    assert not math.isclose(ours.item(), value.item(), rel_tol=0.1)


def test_flows_are_compared_by_squares() -> None:
    """Guards against fsp with a sum of column norms where the paper has the squared Frobenius norm."""
    places = {f"{who}_{which}": {"path": which, "io": "output"} for who in ("student", "teacher") for which in "ab"}
    renamed = {key.replace("_a", "_first").replace("_b", "_second"): place for key, place in places.items()}
    first, second = ({"a": {"output": maps}, "b": {"output": maps.flip(1)}} for maps in MAPS)
    value = theirs.FSPLoss({"pair": renamed})(first, second)
    difference = flow(MAPS[0], MAPS[0].flip(1)) - flow(MAPS[1], MAPS[1].flip(1))
    torch.testing.assert_close(value, difference.norm(dim=1).sum() / 4)
    assert not math.isclose(value.item(), difference.square().sum().item() / 4, rel_tol=0.1)


def test_negatives_can_be_drawn() -> None:
    """Guards against crd with a misspelt attribute in the one way that the tests of its authors do not take."""
    module = theirs.CRDLoss("m", "m", "m", 4, 50, num_negative_samples=8, num_samples=50)
    with pytest.raises(AttributeError, match="prob"):
        module.draw(3)
    assert OtherClasses(np.arange(50) % 5)(torch.arange(6), 8).shape == (6, 8)

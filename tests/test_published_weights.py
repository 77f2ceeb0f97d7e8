"""The weights of the presets are the published ones, or their file says how they differ.

The table is made from the papers and the authors' code, and not from the presets.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from distillcli.config.search import builtin_folder

# The weight beside cross-entropy on the labels and the options that belong to it; which source has them; and, where the
# sources differ, what the preset's file has to say about the other one.
#
# "CRD benchmark": Tian, Krishnan, Isola, "Contrastive representation distillation", ICLR 2020, for CIFAR-100, with the
# weights of the authors' code (RepDistiller, scripts/run_cifar_distill.sh).
PUBLISHED: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "hint": ({"weight": 100.0}, "CRD benchmark; FitNets trains on the hint alone first", ("CIFAR-100", "CRD")),
    "at": ({"weight": 1000.0, "power": 2.0, "form": "code"}, "Zagoruyko, Komodakis, ICLR 2017, their code", ()),
    "sp": ({"weight": 3000.0}, "CRD benchmark", ()),
    "cc": ({"gamma": 0.4, "order": 2}, "Peng et al., ICCV 2019, which has no weight", ("No weight is published",)),
    "cc_neighbour": ({"weight": 0.02}, "CRD benchmark", ()),
    "pkt": ({"weight": 30000.0}, "CRD benchmark", ()),
    "nst": ({"weight": 50.0}, "CRD benchmark", ()),
    "vid": ({"weight": 1.0}, "CRD benchmark", ()),
    "crd": ({"weight": 0.8, "negatives": 16384, "tau": 0.07, "momentum": 0.5}, "CRD, ICLR 2020", ()),
    "rkd": ({"distance": 25.0, "angle": 50.0}, "Park et al., CVPR 2019, their code: 25 and 50", ()),
    "ft": (
        {"weight": 500.0, "rate": 0.5, "form": "factor"},
        "Kim, Park, Kwak, NeurIPS 2018, their code for CIFAR-10; 200 belongs to the other form, in the CRD benchmark",
        ("form attention, weight 200", "CIFAR-10"),
    ),
    "ofd": ({"weight": 1e-3}, "Heo et al., ICCV 2019, their code: 1e-3 for CIFAR-100, 1e-4 for ImageNet", ("1e-4",)),
    "reviewkd": ({"weight": 1.0}, "Chen et al., CVPR 2021, their code for CIFAR-100", ()),
    "dkd": ({"alpha": 1.0, "beta": 8.0}, "Zhao et al., CVPR 2022, for CIFAR-100", ()),
    "dist": ({"weight": 2.0, "beta": 1.0, "gamma": 1.0}, "Huang et al., NeurIPS 2022, for CIFAR-100", ()),
}


@pytest.mark.fault("F8.1", "F8.2", "F8.3")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_weight_and_says_whose_it_is(name: str) -> None:
    options, _source, said = PUBLISHED[name]
    text = (builtin_folder() / "distill" / f"{name}.yaml").read_text("utf-8")
    comment = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    preset = yaml.safe_load(text)
    assert preset["terms"]["ce"] == {}, "the weight is the one beside the labels at full weight"
    assert preset["alpha"] is None
    assert options.items() <= preset["terms"][name].items()
    assert all(words in comment for words in said)

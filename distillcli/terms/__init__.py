"""The loss terms, by the name that is their YAML key and their metric."""

from distillcli.terms.base import Term
from distillcli.terms.boundary import ActivationBoundaries
from distillcli.terms.class_maps import ClassActivation
from distillcli.terms.factor import FactorTransfer
from distillcli.terms.feature import FEATURE_TERMS
from distillcli.terms.labelled import LABELLED_TERMS
from distillcli.terms.logit import LOGIT_TERMS
from distillcli.terms.memory import MEMORY_TERMS
from distillcli.terms.overhaul import Overhaul
from distillcli.terms.relation import RELATION_TERMS
from distillcli.terms.reused_head import ReusedHeadFeatures

TERMS: dict[str, type[Term]] = {
    **LOGIT_TERMS,
    **LABELLED_TERMS,
    **FEATURE_TERMS,
    "ab": ActivationBoundaries,
    "ft": FactorTransfer,
    "cat_kd": ClassActivation,
    "simkd": ReusedHeadFeatures,
    "ofd": Overhaul,
    **RELATION_TERMS,
    **MEMORY_TERMS,
}

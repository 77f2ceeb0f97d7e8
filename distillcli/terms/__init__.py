"""The loss terms, by the name that is their YAML key and their metric."""

from distillcli.terms.ab import ActivationBoundaries
from distillcli.terms.base import Term
from distillcli.terms.cat_kd import ClassActivation
from distillcli.terms.feature import FEATURE_TERMS
from distillcli.terms.ft import FactorTransfer
from distillcli.terms.labelled import LABELLED_TERMS
from distillcli.terms.logit import LOGIT_TERMS
from distillcli.terms.memory import MEMORY_TERMS
from distillcli.terms.ofd import Overhaul
from distillcli.terms.relation import RELATION_TERMS
from distillcli.terms.simkd import ReusedHeadFeatures

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

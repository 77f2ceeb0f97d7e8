"""Loss terms as a config sees them: their options, the facts known before one is built, and what an objective needs.

Nothing here computes a loss or imports torch, so a mistake in ``distill.terms`` is refused at once. The computations
are in ``distillcli/terms/``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distillcli.config.schema import DistillConfig
from distillcli.errors import UserError, did_you_mean

# --- options ------------------------------------------------------------------------------------------------------


def _must(holds: Callable[[Any], bool], words: str) -> dict[str, Callable[[Any], str | None]]:
    """Metadata of an option whose values are refused with ``words`` unless they satisfy ``holds``."""
    return {"refusal": lambda value: None if holds(value) else words}


def _one_of(*choices: str) -> dict[str, Callable[[Any], str | None]]:
    """Metadata of an option that takes one of a few words."""
    words = f"one of {', '.join(choices)}"
    return {"refusal": lambda value: None if value in choices else words + did_you_mean(value, choices)}


def _above_zero(advice: str = "") -> dict[str, Callable[[Any], str | None]]:
    return _must(lambda value: value > 0, f"must be above 0{advice}")


def epochs_of(span: float | str, epochs: int) -> float:
    """The length of a span in a run of ``epochs``: a number of epochs, or a share of the run such as ``10%``."""
    return epochs * float(span.removesuffix("%")) / 100 if isinstance(span, str) else span


def _is_span(value: float | str) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"\d+(\.\d+)?%", value) is not None and epochs_of(value, 1) <= 1
    return 0 <= value < math.inf


_SPAN = _must(_is_span, "a number of epochs, 0 or more, or a share of the run, e.g. 10%")


@dataclass(frozen=True)
class TermOptions:
    """Options of every term.

    ``ramp``: how long the weight grows linearly from 0 at the start. ``fade``: how long it falls back to 0 at the end.
    Either in epochs, or as a share of the run, e.g. ``10%``; 0 turns it off.
    """

    weight: float = 1.0
    # In a union OmegaConf takes no int for a float.
    ramp: int | float | str = field(default=0.0, metadata=_SPAN)
    fade: int | float | str = field(default=0.0, metadata=_SPAN)


_TEMPERATURE = _must(lambda value: value is None or value > 0, "must be above 0; 1 leaves the logits as they are")


@dataclass(frozen=True)
class SoftOptions(TermOptions):
    """Options of every term that softens logits.

    ``temperature``: None takes ``distill.temperature``. ``temperature_end``: reached linearly by the end of the run;
    None takes ``distill.temperature_end``, or for a term with a temperature of its own keeps that.
    """

    temperature: float | None = field(default=None, metadata=_TEMPERATURE)
    temperature_end: float | None = field(default=None, metadata=_TEMPERATURE)


@dataclass(frozen=True)
class StandardizeOptions(TermOptions):
    """Options of every term that compares logits. ``standardize``: both sides, before the temperature."""

    standardize: bool = False


@dataclass(frozen=True)
class LogitOptions(SoftOptions, StandardizeOptions):
    """Options of every term that compares logits at one temperature."""


@dataclass(frozen=True)
class MultiTemperatureOptions(StandardizeOptions):
    """Options of the parts of MLKD, each of which is a sum over temperatures."""

    temperatures: list[float] = field(
        default_factory=lambda: [2.0, 3.0, 4.0, 5.0, 6.0],
        metadata=_must(
            lambda value: value and all(math.isfinite(number) and number > 0 for number in value),
            "give one number or more, each above 0",
        ),
    )


@dataclass(frozen=True)
class StageOptions(TermOptions):
    """Options of every term that compares several stages.

    ``stages``: None takes the last four, which in a convolutional network is all but the stem, or fewer if a model has
    fewer. ``teacher_stages``: None takes the same numbers.
    """

    stages: list[int] | None = None
    teacher_stages: list[int] | None = None


@dataclass(frozen=True)
class CrossEntropyOptions(TermOptions):
    smoothing: float = field(default=0.0, metadata=_must(lambda value: value <= 1, "a share of the label, at most 1"))


@dataclass(frozen=True)
class SymmetricKLOptions(LogitOptions):
    rho: float = field(default=0.5, metadata=_must(lambda value: value <= 1, "a share of the loss, at most 1"))


@dataclass(frozen=True)
class DISTOptions(LogitOptions):
    beta: float = 1.0  # of the inter part: rows
    gamma: float = 1.0  # of the intra part: columns
    squared: bool = True


@dataclass(frozen=True)
class DKDOptions(LogitOptions):
    alpha: float = 1.0
    beta: float = 8.0


@dataclass(frozen=True)
class NKDOptions(LogitOptions):
    gamma: float = 1.5


@dataclass(frozen=True)
class TfKDOptions(SoftOptions):
    confidence: float = field(default=0.99, metadata=_must(lambda value: 0 < value < 1, "must lie between 0 and 1"))
    form: str = field(default="code", metadata=_one_of("code", "paper"))


@dataclass(frozen=True)
class HintOptions(TermOptions):
    stage: int = -2
    teacher_stage: int | None = None  # None: the same number


@dataclass(frozen=True)
class AttentionTransferOptions(StageOptions):
    power: float = field(default=2.0, metadata=_above_zero("; 2 is the published one"))
    form: str = field(default="code", metadata=_one_of("code", "paper"))


@dataclass(frozen=True)
class EmbeddingOptions(TermOptions):
    form: str = field(default="cosine", metadata=_one_of("cosine", "mse"))


@dataclass(frozen=True)
class ActivationBoundariesOptions(StageOptions):
    margin: float = field(default=1.0, metadata=_above_zero(", or a student of zeros has nothing to learn"))


@dataclass(frozen=True)
class FactorTransferOptions(TermOptions):
    stage: int = -1
    teacher_stage: int | None = None  # None: the same number
    rate: float = field(default=0.5, metadata=_above_zero("; 0.5 is the published one"))  # factor / teacher channels
    prepare_epochs: int = field(default=30, metadata=_must(lambda value: value >= 1, "1 or more; 30 are published"))
    form: str = field(default="factor", metadata=_one_of("factor", "attention"))


@dataclass(frozen=True)
class ClassActivationOptions(TermOptions):
    size: int = field(default=2, metadata=_must(lambda value: value >= 1, "1 or more positions each way; 2 is usual"))
    normalize: bool = False


@dataclass(frozen=True)
class ReusedHeadOptions(TermOptions):
    reduction: int = field(default=2, metadata=_must(lambda value: value >= 1, "1 or more; 2, 4 and 8 are published"))
    relu: bool = True


@dataclass(frozen=True)
class SimilarityPreservingOptions(TermOptions):
    stage: int | None = -1  # None: the embeddings of both
    teacher_stage: int | None = None  # None: the same number


@dataclass(frozen=True)
class CorrelationCongruenceOptions(TermOptions):
    kernel: str = field(default="gaussian", metadata=_one_of("gaussian", "bilinear"))
    gamma: float = 0.4
    order: int = field(default=2, metadata=_must(lambda value: value >= 1, "must be 1 or more; 2 is the published one"))


@dataclass(frozen=True)
class RKDOptions(TermOptions):
    distance: float = 25.0
    angle: float = 50.0


@dataclass(frozen=True)
class CRDOptions(TermOptions):
    negatives: int = field(default=16384, metadata=_above_zero())
    width: int = field(default=128, metadata=_above_zero())
    tau: float = field(default=0.07, metadata=_above_zero())
    momentum: float = field(
        default=0.5, metadata=_must(lambda value: value < 1, "must be below 1, or the memory never changes")
    )


@dataclass(frozen=True)
class QueueKLOptions(TermOptions):
    size: int | None = field(  # None: by the number of training images, 8192 from 20480 on
        default=None, metadata=_must(lambda value: value is None or value >= 1, "1 or more, or null")
    )
    tau: float = field(default=0.07, metadata=_above_zero("; 0.07 is usual"))


# --- what is known of every term ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownTerm:
    """What is known of a term before it is built.

    ``options``: the keys under ``distill.terms.NAME``. ``compares``: with the labels, weighted by 1 - alpha, or with
    the teacher, weighted by alpha. ``whole_batch``: its value depends on which samples share a batch, so micro-batches
    would change it. ``least_batch``: with fewer samples it has nothing to compare and no gradient. ``remembers``: it
    keeps what it has seen in buffers, of which every process would have its own.
    ``compares_logits``: with those of the teacher, which must then have a head. ``needs_labels``: it needs the class of
    every sample and cannot use images without a label. ``refuses_mixing``: it cannot use images that mixup or CutMix
    made of two. ``reuses_head``: the student it trains ends in the teacher's head.
    """

    options: type[TermOptions]
    compares: Literal["labels", "teacher"] = "teacher"
    whole_batch: bool = False
    least_batch: int = 1
    remembers: bool = False
    compares_logits: bool = False
    needs_labels: bool = False
    refuses_mixing: bool = False
    reuses_head: bool = False


KNOWN_TERMS: dict[str, KnownTerm] = {
    "ce": KnownTerm(CrossEntropyOptions, compares="labels"),
    "kl": KnownTerm(LogitOptions, compares_logits=True),
    "reverse_kl": KnownTerm(LogitOptions, compares_logits=True),
    "symmetric_kl": KnownTerm(SymmetricKLOptions, compares_logits=True),
    "js": KnownTerm(LogitOptions, compares_logits=True),
    "hard": KnownTerm(TermOptions, compares_logits=True),
    "logit_mse": KnownTerm(StandardizeOptions, compares_logits=True),
    "dist": KnownTerm(DISTOptions, compares_logits=True, whole_batch=True, least_batch=2),
    "multi_kl": KnownTerm(MultiTemperatureOptions, compares_logits=True),
    "class_correlation": KnownTerm(MultiTemperatureOptions, compares_logits=True, whole_batch=True),
    "batch_correlation": KnownTerm(MultiTemperatureOptions, compares_logits=True, whole_batch=True),
    "dkd": KnownTerm(DKDOptions, compares_logits=True, needs_labels=True),
    "nkd": KnownTerm(NKDOptions, compares_logits=True, needs_labels=True),
    "wsld": KnownTerm(LogitOptions, compares_logits=True, needs_labels=True),
    "tfkd": KnownTerm(TfKDOptions, compares="labels", needs_labels=True),
    "hint": KnownTerm(HintOptions),
    "at": KnownTerm(AttentionTransferOptions),
    "nst": KnownTerm(StageOptions),
    "fsp": KnownTerm(StageOptions),
    "vid": KnownTerm(StageOptions),
    "reviewkd": KnownTerm(StageOptions),
    "embedding": KnownTerm(EmbeddingOptions),
    "ab": KnownTerm(ActivationBoundariesOptions),
    "ft": KnownTerm(FactorTransferOptions),
    "cat_kd": KnownTerm(ClassActivationOptions, compares_logits=True),  # of every position
    "simkd": KnownTerm(ReusedHeadOptions, reuses_head=True),
    "ofd": KnownTerm(StageOptions),
    "sp": KnownTerm(SimilarityPreservingOptions, whole_batch=True, least_batch=2),
    "cc": KnownTerm(CorrelationCongruenceOptions, whole_batch=True, least_batch=2),
    "cc_neighbour": KnownTerm(TermOptions, whole_batch=True, least_batch=2),
    "rkd": KnownTerm(RKDOptions, whole_batch=True, least_batch=3),
    "pkt": KnownTerm(TermOptions, whole_batch=True, least_batch=2),
    "crd": KnownTerm(CRDOptions, remembers=True, needs_labels=True, refuses_mixing=True),
    "queue_kl": KnownTerm(QueueKLOptions, whole_batch=True, remembers=True),
}


# --- from a config to options -------------------------------------------------------------------------------------


def parse_options(name: str, given: dict[str, Any]) -> TermOptions:
    """The typed options of term ``name``. Raises UserError naming key, value and fix."""
    if name not in KNOWN_TERMS:
        hint = did_you_mean(name, KNOWN_TERMS) or "; see distill show terms"
        raise UserError(f"distill.terms.{name}: no such term{hint}")
    schema: type = KNOWN_TERMS[name].options
    fields = {option.name: option for option in dataclasses.fields(schema)}
    for key in given:
        if key not in fields:
            hint = did_you_mean(key, fields) or f"; it has {','.join(fields)}"
            raise UserError(f"unknown key distill.terms.{name}.{key}={given[key]}{hint}")
    try:
        options = OmegaConf.to_object(OmegaConf.merge(_blank(schema), given))
    except OmegaConfBaseException as error:
        key = next(key for key in given if not _has_its_type(schema, key, given[key]))
        raise UserError(f"distill.terms.{name}.{key}={given[key]}: expected {fields[key].type}") from error
    assert isinstance(options, TermOptions)
    for key, value in given.items():
        refusal = _refusal(fields[key], getattr(options, key))
        if refusal is not None:
            raise UserError(f"distill.terms.{name}.{key}={value}: {refusal}")
    return options


@functools.cache
def _blank(schema: type) -> Any:
    """The options of a term before any is given; merging into it changes a copy."""
    return OmegaConf.structured(schema)


def _has_its_type(schema: type, key: str, value: Any) -> bool:
    try:
        OmegaConf.merge(_blank(schema), {key: value})
    except OmegaConfBaseException:
        return False
    return True


def _refusal(option: dataclasses.Field[Any], value: Any) -> str | None:
    """What is wrong with a value of the right type, or None."""
    if isinstance(value, float) and not 0 <= value < math.inf:
        return "must be a finite number, 0 or more"
    refusal: str | None = option.metadata["refusal"](value) if option.metadata else None
    return refusal


def parsed_terms(config: DistillConfig) -> dict[str, TermOptions]:
    """Term name -> typed options. Raises UserError for an unknown term or option, a wrong type or a bad value."""
    return {name: parse_options(name, options) for name, options in config.terms.items()}


def total_factor(name: str, options: TermOptions, alpha: float | None) -> float:
    """What the value of term ``name`` is multiplied by in the objective: its weight and its share of alpha."""
    if alpha is None:
        return options.weight
    return options.weight * (alpha if KNOWN_TERMS[name].compares == "teacher" else 1 - alpha)


def active_terms(config: DistillConfig) -> dict[str, TermOptions]:
    """``parsed_terms`` without those whose total factor is 0: these are never built."""
    parsed = parsed_terms(config)
    return {name: options for name, options in parsed.items() if total_factor(name, options, config.alpha) > 0}


def check_terms(config: DistillConfig) -> None:
    """Raise UserError for an unknown term or option, a wrong type, a bad value, or weights that are all 0."""
    if not active_terms(config):
        raise UserError(
            f"distill.alpha={config.alpha}: every term has weight 0, so nothing is learned; change alpha or terms"
        )
    if config.temperature_end is not None and not any(map(_follows, active_terms(config).values())):
        raise UserError(
            f"distill.temperature_end={config.temperature_end}: no term of this objective follows distill.temperature; "
            "leave it out, or set the temperature_end of a term that has a temperature of its own, e.g. "
            "distill.terms.kl.temperature_end=1"
        )


def _follows(options: TermOptions) -> bool:
    """Whether the temperature of a term ends as the common one does."""
    return isinstance(options, SoftOptions) and options.temperature is None and options.temperature_end is None


# --- what an objective needs --------------------------------------------------------------------------------------


def _active(config: DistillConfig) -> list[KnownTerm]:
    return [KNOWN_TERMS[name] for name in active_terms(config)]


def needs_teacher(config: DistillConfig) -> bool:
    """Whether any active term compares with the teacher."""
    return any(term.compares == "teacher" for term in _active(config))


def learns_labels(config: DistillConfig) -> bool:
    """Whether any active term compares with the labels."""
    return any(term.compares == "labels" for term in _active(config))


def trains_head(config: DistillConfig) -> bool:
    """Whether any active term reads the student's logits or gives it a trained head.

    If none does, the student's classifier keeps its random initial weights.
    """
    return learns_labels(config) or any(term.compares_logits or term.reuses_head for term in _active(config))


def whole_batch_terms(config: DistillConfig) -> list[str]:
    """The active terms that cannot be split into micro-batches."""
    return [name for name in active_terms(config) if KNOWN_TERMS[name].whole_batch]


def hottest_temperature(config: DistillConfig) -> float:
    """The highest temperature at which the objective reads a teacher's logits; infinity where it reads them as such."""
    found = [0.0]
    for name, options in active_terms(config).items():
        if isinstance(options, StandardizeOptions) and (options.standardize or name in ("logit_mse", "dist")):
            found.append(math.inf)
        elif isinstance(options, MultiTemperatureOptions):
            found += options.temperatures
        elif isinstance(options, SoftOptions):
            common = config.temperature, config.temperature_end or config.temperature
            found += temperatures_of(options, common)
    return max(found)


def temperatures_of(options: TermOptions, common: tuple[float, float]) -> tuple[float, float]:
    """The temperature of a term at the start and at the end of the run. ``common``: that of the objective."""
    if not isinstance(options, SoftOptions):
        return common
    first, last = common if options.temperature is None else (options.temperature, options.temperature)
    return first, last if options.temperature_end is None else options.temperature_end


def remembering_terms(config: DistillConfig) -> list[str]:
    """The active terms that have to run in one process."""
    return [name for name in active_terms(config) if KNOWN_TERMS[name].remembers]


def reused_head_options(config: DistillConfig) -> ReusedHeadOptions | None:
    """How the student is joined to its teacher's head; None if it has a head of its own."""
    options = [options for options in active_terms(config).values() if isinstance(options, ReusedHeadOptions)]
    return options[0] if options else None


def check_labels(config: DistillConfig, labelled: int, total: int) -> None:
    """Raise UserError when an active term needs labels that the training images lack.

    ``labelled``: how many of the ``total`` training images have a label.
    """
    for name in active_terms(config) if labelled < total else ():
        term = KNOWN_TERMS[name]
        if term.needs_labels:
            raise UserError(
                f"distill.terms.{name}: it needs the class of every image and {total - labelled:,} training images "
                "have no label; use a term without labels, e.g. distill=kd, or dataset.labelled=1"
            )
        if term.compares == "labels" and not labelled:
            raise UserError(
                f"distill.terms.{name}: it compares with labels and no training image has one; set distill.alpha=1, or "
                f"distill.terms.{name}.weight=0"
            )


def labels_only(config: DistillConfig) -> DistillConfig:
    """The objective of the control: the label terms at full weight, no teacher.

    They are rescaled so that the heaviest weighs 1: a small weight beside a teacher's term says nothing about learning
    without a teacher, and different objectives can then share a control. An objective without label terms gets plain
    cross-entropy, as a control has nothing else to learn from.
    """
    parsed = parsed_terms(config)
    weights = {name: options.weight for name, options in parsed.items() if KNOWN_TERMS[name].compares == "labels"}
    heaviest = max(weights.values(), default=0.0)
    terms = {name: _reweighted(config.terms[name], weight / heaviest) for name, weight in weights.items() if weight > 0}
    return DistillConfig(name="none", temperature=1.0, alpha=None, terms=terms or {"ce": {}})


def _reweighted(options: dict[str, Any], weight: float) -> dict[str, Any]:
    """``options`` with another weight, left out where it is 1: recipes are compared as they are written."""
    others = {key: value for key, value in options.items() if key != "weight"}
    return others if weight == 1 else others | {"weight": weight}

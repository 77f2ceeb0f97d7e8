"""The objective: total = (1 - alpha) * sum of label terms + alpha * sum of teacher terms, each with its weight."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from distillcli.config.schema import DistillConfig
from distillcli.errors import UserError, did_you_mean
from distillcli.sources.source import Split
from distillcli.terms import TERMS
from distillcli.terms.base import PreparedTerm, Setting, SoftOptions, Term, TermOptions
from distillcli.terms.simkd import ReusedHeadFeatures
from distillcli.types import LOGITS_ONLY, Batch, Output, Taps


class Objective(nn.Module):
    """The weighted sum of named terms. ``forward`` -> (total, name -> unweighted value of each term, detached).

    A term whose total factor is 0 is not built: it costs nothing and is not reported.
    """

    def __init__(self, config: DistillConfig, setting: Setting) -> None:
        super().__init__()
        self.options = {name: parse_options(name, options) for name, options in config.terms.items()}
        self.factors = {
            name: options.weight * _share(TERMS[name], config.alpha) for name, options in self.options.items()
        }
        active = [name for name, factor in self.factors.items() if factor > 0]
        if not active:
            raise UserError(
                f"distill.alpha={config.alpha}: every term has weight 0, so nothing is learned; change alpha or terms"
            )
        self.terms = nn.ModuleDict()
        for name in active:
            if TERMS[name].compares == "teacher":
                assert setting.teacher is not None, f"{name} needs a teacher"
                if TERMS[name].compares_logits and not setting.teacher.classes:
                    raise UserError(
                        f"distill.terms.{name}: it compares logits and the teacher has no head; use terms of "
                        "embeddings or feature maps, e.g. distill=embedding, or teacher.head=true"
                    )
                only_logits = TERMS[name].compares_logits and TERMS[name].teacher_taps == LOGITS_ONLY
                if not setting.teacher.stage_shapes and not only_logits:
                    raise UserError(f"distill.terms.{name}: an ensemble answers with logits only; use a single teacher")
            self.terms[name] = TERMS[name](self.options[name], setting)
        self.temperatures = (config.temperature, config.temperature_end or config.temperature)
        self.epochs = setting.epochs

    @property
    def student_taps(self) -> Taps:
        return _join([term.student_taps for term in self._all()])

    @property
    def teacher_taps(self) -> Taps:
        return _join([term.teacher_taps for term in self._all()])

    @property
    def compares_teacher(self) -> bool:
        """Whether any of its terms compares the student with a teacher."""
        return any(term.compares == "teacher" for term in self._all())

    @property
    def whole_batch_terms(self) -> list[str]:
        return [name for name, term in zip(self.terms, self._all(), strict=True) if term.whole_batch]

    @property
    def remembering_terms(self) -> list[str]:
        return [name for name, term in zip(self.terms, self._all(), strict=True) if term.remembers]

    @property
    def prepared_terms(self) -> dict[str, PreparedTerm]:
        return {name: term for name, term in self.terms.items() if isinstance(term, PreparedTerm)}

    def forward(
        self, student: Output, teacher: Output | None, batch: Batch, epoch: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``epoch``: how many epochs have passed, fractions included; it drives the weights and the temperature."""
        with torch.autocast(student.logits.device.type, enabled=False):
            student, teacher = _float(student), None if teacher is None else _float(teacher)
            values = {
                name: term(student, teacher, batch, self._temperature(name, epoch))
                for name, term in zip(self.terms, self._all(), strict=True)
            }
            total = sum((self._factor(name, epoch) * value for name, value in values.items()), torch.zeros(()))
        assert isinstance(total, Tensor)
        return total, {name: value.detach() for name, value in values.items()}

    def words(self) -> str:
        """The objective in words, e.g. ``0.1·ce + 0.9·kl(T=4)``."""
        return " + ".join(f"{self.factors[name]:g}·{name}{self._details(name)}" for name in self.terms)

    def _details(self, name: str) -> str:
        options = self.options[name]
        changed = [
            f"{'T' if field.name == 'temperature' else field.name}={value}"
            for field in dataclasses.fields(options)
            if field.name != "weight" and (value := self._words(options, field)) is not None
        ]
        return f"({', '.join(changed)})" if changed else ""

    def _words(self, options: TermOptions, field: dataclasses.Field[Any]) -> str | None:
        """The value of an option; None for its default, unless it is the common temperature."""
        value = getattr(options, field.name)
        if isinstance(options, SoftOptions) and field.name == "temperature" and value is None:
            return "→".join(_text(temperature) for temperature in dict.fromkeys(self.temperatures))
        return None if value in (None, _default(field)) else _text(value)

    def _temperature(self, name: str, epoch: float) -> float:
        options = self.options[name]
        if isinstance(options, SoftOptions) and options.temperature is not None:
            return options.temperature
        first, last = self.temperatures
        return first + (last - first) * min(1.0, epoch / self.epochs)

    def _factor(self, name: str, epoch: float) -> float:
        options, factor = self.options[name], self.factors[name]
        if options.ramp > 0:
            factor *= min(1.0, epoch / options.ramp)
        if options.fade > 0:
            factor *= min(1.0, max(0.0, self.epochs - epoch) / options.fade)
        return factor

    def _all(self) -> list[Term]:
        return [term for term in self.terms.values() if isinstance(term, Term)]


def needs_teacher(config: DistillConfig) -> bool:
    """Whether a term that compares with the teacher has any weight."""
    return any(TERMS[name].compares == "teacher" for name in _weighty(config))


def learns_labels(config: DistillConfig) -> bool:
    """Whether a term that compares with labels has any weight."""
    return any(TERMS[name].compares == "labels" for name in _weighty(config))


def trains_head(config: DistillConfig) -> bool:
    """Whether a term of weight looks at the student's logits, or gives it a trained head.

    Without one its classifier would stay as it was drawn.
    """
    terms = [TERMS[name] for name in _weighty(config)]
    return learns_labels(config) or any(term.compares_logits or term.reuses_head for term in terms)


def reused_head_options(config: DistillConfig) -> ReusedHeadFeatures.Options | None:
    """How the student is joined to its teacher's head; None if it has one of its own."""
    given = [parse_options(name, config.terms[name]) for name in _weighty(config) if TERMS[name].reuses_head]
    options = [option for option in given if isinstance(option, ReusedHeadFeatures.Options)]
    return options[0] if options else None


def check_labels(config: DistillConfig, split: Split) -> None:
    """Raise UserError when a term of weight needs labels that the images of ``split``, the training part, lack."""
    missing = len(split.labels) - split.labelled
    for name in _weighty(config) if missing else []:
        term = TERMS[name]
        if term.needs_labels:
            raise UserError(
                f"distill.terms.{name}: it needs the class of every image and {missing:,} training images have no "
                "label; use a term without labels, e.g. distill=kd, or dataset.labelled=1"
            )
        if term.compares == "labels" and not split.labelled:
            raise UserError(
                f"distill.terms.{name}: it compares with labels and no training image has one; set distill.alpha=1, or "
                f"distill.terms.{name}.weight=0"
            )


def labels_only(config: DistillConfig) -> DistillConfig:
    """The objective of the control: the label terms at full weight, no teacher.

    The heaviest of them weighs 1: a small weight beside a teacher's says nothing about learning without one, and the
    control of one objective is then that of another. An objective without label terms gets plain cross-entropy: the
    control learns from labels or from nothing.
    """
    weights = {
        name: parse_options(name, options).weight
        for name, options in config.terms.items()
        if TERMS[name].compares == "labels"
    }
    heaviest = max(weights.values(), default=0.0)
    terms = {name: _weighing(config.terms[name], weight / heaviest) for name, weight in weights.items() if weight > 0}
    return DistillConfig(name="none", temperature=1.0, alpha=None, terms=terms or {"ce": {}})


def _weighing(options: dict[str, Any], weight: float) -> dict[str, Any]:
    """``options`` with another weight, spelled in one way only: recipes are compared by what is written in them."""
    others = {key: value for key, value in options.items() if key != "weight"}
    return others if weight == 1 else others | {"weight": weight}


def check_terms(config: DistillConfig) -> None:
    """Raise UserError for an unknown term or option, a wrong type, or a value out of range."""
    for name, options in config.terms.items():
        parse_options(name, options)


def parse_options(name: str, given: dict[str, Any]) -> TermOptions:
    """The typed options of term ``name``. Raises UserError naming key, value and fix."""
    if name not in TERMS:
        raise UserError(f"distill.terms.{name}: no such term{did_you_mean(name, TERMS) or '; see distill show terms'}")
    schema = TERMS[name].Options
    known = [field.name for field in dataclasses.fields(schema)]
    for key in given:
        if key not in known:
            raise UserError(
                f"unknown key distill.terms.{name}.{key}{did_you_mean(key, known) or f'; it has {chr(44).join(known)}'}"
            )
    for key, value in given.items():
        try:
            OmegaConf.merge(OmegaConf.structured(schema), {key: value})
        except OmegaConfBaseException as error:
            wanted = next(field.type for field in dataclasses.fields(schema) if field.name == key)
            raise UserError(f"distill.terms.{name}.{key}={value}: expected {wanted}") from error
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
    assert isinstance(merged, TermOptions)
    for field in dataclasses.fields(merged):
        value = getattr(merged, field.name)
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise UserError(f"distill.terms.{name}.{field.name}={value}: must be a finite number, 0 or more")
    if isinstance(merged, SoftOptions) and merged.temperature == 0:
        raise UserError(f"distill.terms.{name}.temperature=0: must be above 0; 1 leaves the logits as they are")
    return merged


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "/".join(_text(one) for one in value)
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _share(term: type[Term], alpha: float | None) -> float:
    if alpha is None:
        return 1.0
    return alpha if term.compares == "teacher" else 1 - alpha


def _weighty(config: DistillConfig) -> list[str]:
    """The terms whose total factor is above 0."""
    return [
        name
        for name, options in config.terms.items()
        if parse_options(name, options).weight * _share(TERMS[name], config.alpha) > 0
    ]


def _join(taps: list[Taps]) -> Taps:
    return Taps(
        tuple(sorted({stage for tap in taps for stage in tap.stages})),
        embedding=any(tap.embedding for tap in taps),
        token=any(tap.token for tap in taps),
        class_maps=any(tap.class_maps for tap in taps),
        features=any(tap.features for tap in taps),
        preactivations=tuple(sorted({stage for tap in taps for stage in tap.preactivations})),
    )


def _float(output: Output) -> Output:
    """Softmax, norms and squares overflow or vanish in half precision."""
    return Output(
        output.logits.float(),
        None if output.embedding is None else output.embedding.float(),
        {stage: maps.float() for stage, maps in output.stages.items()},
        None if output.token_logits is None else output.token_logits.float(),
        None if output.class_maps is None else output.class_maps.float(),
        None if output.features is None else output.features.float(),
        {stage: maps.float() for stage, maps in output.preactivations.items()},
    )

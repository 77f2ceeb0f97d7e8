"""The objective: total = (1 - alpha) * sum of label terms + alpha * sum of teacher terms, each with its weight."""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import torch
from torch import Tensor, nn

from distillcli.config.schema import DistillConfig
from distillcli.config.terms import (
    KNOWN_TERMS,
    active_terms,
    epochs_of,
    needs_teacher,
    remembering_terms,
    temperatures_of,
    total_factor,
    whole_batch_terms,
)
from distillcli.errors import UserError
from distillcli.terms import TERMS
from distillcli.terms.base import PreparedTerm, Setting, Term
from distillcli.types import LOGITS_ONLY, Batch, Output, Spec, Taps


class Objective(nn.Module):
    """The weighted sum of named terms. ``forward`` -> (total, name -> unweighted value of each term, detached).

    A term whose total factor is 0 is not built: it costs nothing and is not reported.
    """

    def __init__(self, config: DistillConfig, setting: Setting) -> None:
        super().__init__()
        self.options = active_terms(config)
        assert self.options, "check_terms refuses an objective in which no term has weight"
        self.factors = {name: total_factor(name, options, config.alpha) for name, options in self.options.items()}
        self.terms = nn.ModuleDict()
        for name, options in self.options.items():
            if KNOWN_TERMS[name].compares == "teacher":
                assert setting.teacher is not None, f"{name} needs a teacher"
                _check_teacher(name, setting.teacher)
            self.terms[name] = TERMS[name](options, setting)
        common = (config.temperature, config.temperature_end or config.temperature)
        self.temperatures = {name: temperatures_of(options, common) for name, options in self.options.items()}
        self.epochs = setting.epochs
        self.spans = {  # in epochs
            name: (epochs_of(options.ramp, self.epochs), epochs_of(options.fade, self.epochs))
            for name, options in self.options.items()
        }
        self.compares_teacher = needs_teacher(config)
        self.whole_batch_terms = whole_batch_terms(config)
        self.remembering_terms = remembering_terms(config)

    @property
    def student_taps(self) -> Taps:
        return functools.reduce(operator.or_, (term.student_taps for term in self._all()), LOGITS_ONLY)

    @property
    def teacher_taps(self) -> Taps:
        return functools.reduce(operator.or_, (term.teacher_taps for term in self._all()), LOGITS_ONLY)

    @property
    def prepared_terms(self) -> dict[str, PreparedTerm]:
        return {name: term for name, term in self.terms.items() if isinstance(term, PreparedTerm)}

    def forward(
        self, student: Output, teacher: Output | None, batch: Batch, epoch: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``epoch``: how many epochs have passed, fractions included; it drives the weights and the temperature."""
        with torch.autocast(student.logits.device.type, enabled=False):
            student, teacher = student.float(), None if teacher is None else teacher.float()
            values = {
                name: term(student, teacher, batch, self._temperature(name, epoch))
                for name, term in zip(self.terms, self._all(), strict=True)
            }
            total = sum((self._factor(name, epoch) * value for name, value in values.items()), torch.zeros(()))
        assert isinstance(total, Tensor)
        return total, {name: value.detach() for name, value in values.items()}

    @property
    def doubts(self) -> list[str]:
        """What speaks against these terms in this setting, one line each."""
        found = [doubt for term in self._all() for doubt in term.doubts]
        return found + [doubt for name in self.terms if (doubt := self._span_doubt(name)) is not None]

    def words(self) -> str:
        """The objective in words, e.g. ``0.1·ce + 0.9·kl(T=4)``."""
        return " + ".join(f"{self.factors[name]:g}·{name}{self._details(name)}" for name in self.terms)

    def _details(self, name: str) -> str:
        options = self.options[name]
        changed = [
            f"{'T' if field.name == 'temperature' else field.name}={value}"
            for field in dataclasses.fields(options)
            if field.name not in ("weight", "temperature_end") and (value := self._words(name, field)) is not None
        ]
        return f"({', '.join(changed)})" if changed else ""

    def _words(self, name: str, field: dataclasses.Field[Any]) -> str | None:
        """The value of an option of term ``name``; None for its default, unless it is a temperature."""
        if field.name == "temperature":
            return "→".join(_text(temperature) for temperature in dict.fromkeys(self.temperatures[name]))
        value = getattr(self.options[name], field.name)
        return None if value in (None, _default(field)) else _text(value)

    def _temperature(self, name: str, epoch: float) -> float:
        first, last = self.temperatures[name]
        return first + (last - first) * min(1.0, epoch / self.epochs)

    def _factor(self, name: str, epoch: float) -> float:
        factor, (ramp, fade) = self.factors[name], self.spans[name]
        if ramp > 0:
            factor *= min(1.0, epoch / ramp)
        if fade > 0:
            factor *= min(1.0, max(0.0, self.epochs - epoch) / fade)
        return factor

    def _span_doubt(self, name: str) -> str | None:
        """What to say if a ramp or fade keeps a term from ever reaching its weight."""
        ramp, fade = self.spans[name]
        turns = (min(ramp, self.epochs), max(0.0, self.epochs - fade), self.epochs / 2)
        most = max(self._factor(name, epoch) for epoch in turns) / self.factors[name]
        if most > 0.999:
            return None
        key, span = ("ramp", self.options[name].ramp) if ramp >= fade else ("fade", self.options[name].fade)
        return (
            f"distill.terms.{name}.{key}={span}: in {self.epochs} epochs the term reaches no more than {most:.0%} of "
            f"its weight; make it shorter, or a share of the run, e.g. distill.terms.{name}.{key}=10%"
        )

    def _all(self) -> list[Term]:
        return [term for term in self.terms.values() if isinstance(term, Term)]


def _check_teacher(name: str, teacher: Spec) -> None:
    """Raise UserError if term ``name`` reads what ``teacher`` does not have."""
    compares_logits = KNOWN_TERMS[name].compares_logits
    if compares_logits and not teacher.classes:
        raise UserError(
            f"distill.terms.{name}: it compares logits and the teacher has no head; use terms of embeddings or feature "
            "maps, e.g. distill=embedding, or teacher.head=true"
        )
    if not teacher.stage_shapes and not (compares_logits and TERMS[name].teacher_taps == LOGITS_ONLY):
        raise UserError(f"distill.terms.{name}: an ensemble answers with logits only; use a single teacher")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "/".join(_text(one) for one in value)
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()

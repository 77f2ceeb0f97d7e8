"""``distill show``: what can be chosen, and past runs."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distillcli.config import search
from distillcli.config.keys import dotted_keys, key_notes
from distillcli.config.schema import TrainConfig
from distillcli.config.terms import KNOWN_TERMS, KnownTerm
from distillcli.config.yaml_files import read_yaml
from distillcli.errors import UserError, did_you_mean
from distillcli.report.listing import Rows, print_listing
from distillcli.report.runs import HEADERS, row_of
from distillcli.runs.inventory import find_runs


def run(arguments: list[str]) -> None:
    topics = [*TOPICS, "views"]
    if not arguments:
        raise UserError(f"distill show needs one of {', '.join(topics)}")
    topic, *patterns = arguments
    if topic == "views":
        from distillcli.commands import show_views  # composes a config, which the lists do not need

        show_views.run(patterns)
        return
    if topic not in TOPICS:
        raise UserError(f"unknown topic {topic!r}{did_you_mean(topic, topics) or ';'} one of {', '.join(topics)}")
    if len(patterns) > 1:
        raise UserError(f"one PATTERN at most; quote it for the shell: distill show {topic} '*{patterns[0]}*'")
    search.use([])
    headers, rows = TOPICS[topic]()
    if patterns:
        known = [row[0] for row in rows]
        rows = [row for row in rows if fnmatch.fnmatch(row[0], _wild(patterns[0]))]
        if not rows:
            raise UserError(f"no {topic} match {patterns[0]!r}{did_you_mean(patterns[0], known)}")
    if not rows:
        print(_EMPTY.get(topic, f"no {topic} found"))
        return
    print_listing(headers, rows)
    if topic in _FOOTERS:
        print(f"\n{_FOOTERS[topic]}")


def _wild(pattern: str) -> str:
    """A plain word matches anywhere in the name."""
    return pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*"


def _comment(file: Path) -> str:
    """The comment that opens a YAML file: what it is, the command that runs it, the measured result."""
    lines = []
    for line in file.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if text and not text.startswith("@package"):
            lines.append(text)
    return "\n".join(lines)


def _options(group: str) -> Iterator[tuple[str, Path]]:
    yield from sorted(search.groups().get(group, {}).items())


def _experiments() -> tuple[tuple[str, ...], Rows]:
    return ("experiment", "command and result"), [(name, _comment(file)) for name, file in _options("experiment")]


def _datasets() -> tuple[tuple[str, ...], Rows]:
    return ("dataset", "description"), [(name, _comment(file)) for name, file in _options("dataset")]


def _models_of(group: str) -> tuple[tuple[str, ...], Rows]:
    rows: Rows = []
    for name, file in _options(group):
        content = read_yaml(file) or {}
        rows.append((name, str(content.get("name", "")), _comment(file)))
    return (group, "timm model", "notes"), rows


def _models() -> tuple[tuple[str, ...], Rows]:
    from distillcli.config.model_names import model_names, weight_tags

    tags = weight_tags()
    rows: Rows = [(name, " ".join(tag for tag in tags.get(name, ()) if tag)) for name in model_names()]
    return ("model", "published weights (as NAME.TAG)"), rows


def _terms() -> tuple[tuple[str, ...], Rows]:
    from distillcli.terms import TERMS

    rows: Rows = []
    for name, known in sorted(KNOWN_TERMS.items()):
        summary = (TERMS[name].__doc__ or "").strip().split("\n")[0]
        inputs = _term_inputs(known, TERMS[name])
        rows.append((name, "\n".join([summary, f"  needs {inputs}", *_term_options(known)])))
    return ("term", "what it is, what it needs, and its options with their defaults"), rows


def _term_inputs(known: KnownTerm, term: Any) -> str:
    """What a term, with its defaults, asks of models, labels and batches; it is built for two models of one kind."""
    import numpy as np

    from distillcli.terms.base import Setting
    from distillcli.types import Spec

    spec = Spec("model", 10, 64, ((16, 8, 8),) * 5, 0, 0, (16, 8, 8), ("",) * 5)
    built = term(known.options(), Setting(spec, spec, np.arange(20) % 10, 10))
    taps = built.student_taps
    kinds = {
        "logits": known.compares == "labels" or known.compares_logits,
        "embeddings": taps.embedding,
        "maps of stages": bool(taps.stages),
        "class maps": taps.class_maps,
        "the features before the head": taps.features,
    }
    whose = "of the student" if known.compares == "labels" else "of both models"
    inputs = [f"{' and '.join(kind for kind, wanted in kinds.items() if wanted)} {whose}"]
    if built.teacher_taps.preactivations:
        inputs.append("the teacher's before their activation")
    if known.compares == "labels" or known.needs_labels:
        inputs.append("labels")
    if known.whole_batch:
        inputs.append("whole batches")
    if known.remembers:
        inputs.append("one process")
    return ", ".join(inputs)


def _term_options(known: KnownTerm) -> Iterator[str]:
    for option in dataclasses.fields(known.options):
        if option.default is not dataclasses.MISSING:
            default = option.default
        elif option.default_factory is not dataclasses.MISSING:
            default = option.default_factory()
        else:
            default = "(required)"
        yield f"  {option.name}={_as_yaml(default)}"


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _runs() -> tuple[tuple[str, ...], Rows]:
    return HEADERS, [row_of(run) for run in find_runs(Path("runs"))]


def _keys() -> tuple[tuple[str, ...], Rows]:
    notes = key_notes(TrainConfig)
    words = dotted_keys(TrainConfig)
    rows: Rows = [(key, words[key], default, comment) for key, (default, comment) in notes.items()]
    return ("key", "type", "default", "what it is"), rows


TOPICS: dict[str, Callable[[], tuple[tuple[str, ...], Rows]]] = {
    "experiments": _experiments,
    "teachers": lambda: _models_of("teacher"),
    "students": lambda: _models_of("student"),
    "datasets": _datasets,
    "terms": _terms,
    "runs": _runs,
    "models": _models,
    "keys": _keys,
}
_EMPTY = {"runs": "no runs here yet; start one with distill train"}
_FOOTERS = {
    "experiments": "run one: distill train experiment=NAME",
    "teachers": "choose: teacher=NAME, or any timm model: teacher.name=MODEL (distill show models)",
    "students": "choose: student=NAME, or any timm model: student.name=MODEL (distill show models)",
    "datasets": "choose: dataset=NAME",
    "runs": "one of them: distill runs show RUN; filter, sort, delete: distill runs --help",
    "keys": "set one: KEY=VALUE; those of a group: distill show keys trainer",
    "terms": "add or change one: distill.terms.NAME.OPTION=VALUE; remove one: '~distill.terms.NAME'",
}

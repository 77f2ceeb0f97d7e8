"""The kinds of teachers a student can have, and what is known of each before anything is fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.config.terms import needs_teacher
from distillcli.distillation.recipes import assistant_recipes
from distillcli.models.backbone import describe
from distillcli.models.ensemble import join_specs
from distillcli.teachers.frozen import describe_teacher, members_of
from distillcli.types import Inputs, Spec

Described = Callable[[TrainConfig, Spec, Inputs], list[Spec]]


@dataclass(frozen=True)
class Kind:
    """A kind of teacher.

    ``applies``: whether a config asks for it. ``describe``: (config, student, what a classifier of the data is built
    for) -> who teaches, in order; the last of them teaches the student. ``models``: the models beside the student.
    ``is_fixed``: it is fitted or found before the student's first step; others are in training beside the student.
    """

    applies: Callable[[TrainConfig], bool]
    describe: Described
    models: Callable[[TrainConfig], list[ModelConfig]]
    is_fixed: bool = False


def _describe_peers(config: TrainConfig, _student: Spec, inputs: Inputs) -> list[Spec]:
    peers = [describe(peer, inputs, f"peers[{number}]") for number, peer in enumerate(config.peers)]
    return [replace(join_specs(peers), name="peers: " + ", ".join(peer.name for peer in peers))]


def _describe_mean(_config: TrainConfig, student: Spec, _inputs: Inputs) -> list[Spec]:
    return [replace(student, name="moving average of the student")]


def _describe_fixed(config: TrainConfig, _student: Spec, inputs: Inputs) -> list[Spec]:
    assistants = [describe(recipe.config.student, inputs, recipe.key) for recipe in assistant_recipes(config)]
    return [describe_teacher(config, inputs), *assistants]


def _fixed_models(config: TrainConfig) -> list[ModelConfig]:
    members = [member.config.teacher for member in members_of(config)]
    return [*members, *(recipe.config.student for recipe in assistant_recipes(config))]


# The first that applies is the kind of a run.
KINDS = {
    "none": Kind(lambda config: not needs_teacher(config.distill), lambda *_: [], lambda _: []),
    "peers": Kind(lambda config: bool(config.peers), _describe_peers, lambda config: list(config.peers)),
    "mean": Kind(lambda config: config.teacher.mean, _describe_mean, lambda _: []),
    "fixed": Kind(lambda _: True, _describe_fixed, _fixed_models, is_fixed=True),
}


def kind_of(config: TrainConfig) -> Kind:
    return next(kind for kind in KINDS.values() if kind.applies(config))

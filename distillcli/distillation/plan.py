"""What a config comes to, and everything that can be refused before a folder is claimed, an image decoded or a model
fitted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise

import timm
from torch import nn

from distillcli.config.checks import check_schedule
from distillcli.config.schema import ModelConfig, TrainConfig
from distillcli.config.terms import check_labels, learns_labels, needs_teacher, trains_head
from distillcli.distillation.batches import check_batch
from distillcli.distillation.kinds import kind_of
from distillcli.distillation.recipes import assistant_recipes, assistants_of, recipe_to_fit
from distillcli.distillation.students import student_model
from distillcli.errors import UserError
from distillcli.models.backbone import build, build_on_meta, describe, fresh
from distillcli.models.freezing import freeze
from distillcli.models.imagenet import open_pretrained
from distillcli.models.matching import for_model, knows_classes, matched
from distillcli.models.weights import Weights, read_weights
from distillcli.runtime import resolve_device, resolve_precision, seed_everything
from distillcli.sources.source import Source
from distillcli.teachers.cached import is_cacheable
from distillcli.teachers.frozen import Member, members_of, weights_for, with_classes
from distillcli.teachers.rows import check_mode
from distillcli.terms.base import Setting
from distillcli.terms.objective import Objective
from distillcli.training.optim import build_optimizer
from distillcli.types import Inputs, Spec


@dataclass(frozen=True)
class Plan:
    """A config on its data, checked.

    ``student_run``: the config with what is trained in the student's place: joined to the teacher's head where the
    objective reuses that. ``source``: with the classes of the teacher where nothing is labelled. ``student_source``:
    the same without classes where no term trains a head, whose outputs would be random. ``inputs``: what a classifier
    of the data is built for. ``teachers``: in order; the student learns from the last. Empty without a teacher.
    ``with_probe``: whether embeddings are measured.
    """

    config: TrainConfig
    student_run: TrainConfig
    source: Source
    student_source: Source
    inputs: Inputs
    student: Spec
    teachers: list[Spec]
    objective: Objective
    with_probe: bool

    def settled(self, config: TrainConfig) -> Plan:
        """The same plan where the device has decided ``trainer.channels_last``."""
        student_run = dataclasses.replace(self.student_run, trainer=config.trainer)
        return dataclasses.replace(self, config=config, student_run=student_run)


def make_plan(config: TrainConfig, source: Source) -> Plan:
    """Raises UserError for what cannot work, in the order of what it costs to find out; no weights are looked at."""
    # 1. Device and loop.
    device = resolve_device(config.trainer.device)
    resolve_precision(config.trainer.precision, device)
    resolve_precision(config.teacher.precision, device, teacher=True)
    _check_sizes(config)
    _check_chain(config)
    # 2. What the objective asks of the data.
    check_labels(config.distill, source.train.labelled, len(source.train.labels))
    source = with_classes(source, config)
    with_probe = _wants_probe(config, source)
    # 3. Models, described on the meta device.
    inputs = Inputs(len(source.classes), config.dataset.image_size, config.dataset.channels)
    student_source = source if trains_head(config.distill) else dataclasses.replace(source, classes=())
    student_inputs = dataclasses.replace(inputs, classes=len(student_source.classes))
    student_run = dataclasses.replace(config, student=student_model(config, inputs))
    student = describe(student_run.student, student_inputs, "student")
    teachers = kind_of(config).describe(config, student, inputs)
    _check_selection(config, source, student, teachers)
    # 4. The batch, which every model must be able to normalise.
    shown = len(source.train.labels) if needs_teacher(config.distill) else source.train.labelled
    check_batch(config, shown, inputs, student_run.student, "student")
    for number, peer in enumerate(config.peers):
        check_batch(config, shown, inputs, peer, f"peers[{number}]")
    # 5. The objective, which checks its terms against both; likewise that of every assistant.
    objective = _objective(config, source, [*teachers, student])
    _check_objective(config, student_run.student, objective, inputs)
    _check_optimizer(config, objective)
    return Plan(config, student_run, source, student_source, inputs, student, teachers, objective, with_probe)


def _objective(config: TrainConfig, source: Source, chain: list[Spec]) -> Objective:
    """The objective of the last in ``chain``, taught by the one before it, if any."""

    def taught(learner: Spec, above: Spec | None) -> Objective:
        return Objective(config.distill, Setting(learner, above, source.train.labels, config.trainer.epochs))

    for above, assistant in pairwise(chain[:-1]):
        taught(assistant, above)
    seed_everything(config.seed, "init", "objective")
    return taught(chain[-1], chain[-2] if len(chain) > 1 else None)


# --- refusals ------------------------------------------------------------------------------------------------------


def _check_sizes(config: TrainConfig) -> None:
    """Views that grow need models that take images of any size."""
    if config.trainer.progressive is None:
        return
    for model in (config.student, *kind_of(config).models(config)):
        known = timm.get_pretrained_cfg(model.name)
        if known is not None and known.fixed_input_size:
            raise UserError(f"trainer.progressive: {model.name} takes images of one size; use trainer.progressive=null")


def _check_chain(config: TrainConfig) -> None:
    """An assistant whose head nothing trains could not be evaluated."""
    if assistants_of(config) and not trains_head(config.distill):
        key = "teacher.assistants" if config.teacher.assistants else f"generations={config.generations}"
        raise UserError(
            f"{key}: no term of distill={config.distill.name} trains a head, so an assistant could not be evaluated; "
            "add a term of logits or labels, or leave the assistants out"
        )


def _wants_probe(config: TrainConfig, source: Source) -> bool:
    """Whether embeddings are measured, which takes labels."""
    possible = bool(source.train.labelled and source.evaluation.labelled)
    if config.probe and not possible:
        part = source.evaluated_on if source.train.labelled else "train"
        raise UserError(f"probe=true: it reads labels from embeddings and the {part} part has none; use probe=null")
    return possible and not learns_labels(config.distill) if config.probe is None else config.probe


def _check_selection(config: TrainConfig, source: Source, student: Spec, teachers: list[Spec]) -> None:
    """The best epoch is chosen on val: by its labels, or where it has none by how close the student is to a teacher."""
    if config.trainer.select != "best":
        return
    if source.val is None:
        why = "no images are held out to choose it on, as dataset.val_fraction=0.1 does"
    elif student.classes == 0:
        why = "the student has no classifier whose answers could be compared"
    elif not source.val.labelled and not (kind_of(config).is_fixed and teachers[-1].classes):
        why = "val has no labels, and no fixed teacher has answers to compare with"
    else:
        return
    raise UserError(f"trainer.select=best: {why}; use trainer.select=last")


def _check_objective(config: TrainConfig, student: ModelConfig, objective: Objective, inputs: Inputs) -> None:
    if config.teacher.mean and objective.prepared_terms:
        name = next(iter(objective.prepared_terms))
        raise UserError(
            f"distill.terms.{name}: it learns from the teacher before the first step, when the moving average of the "
            "student knows nothing; use a teacher that is fitted"
        )
    taps = objective.teacher_taps
    if taps.class_maps:
        for model in (*kind_of(config).models(config), student):
            build(fresh(model), inputs, "student").check_class_maps()
    if kind_of(config).is_fixed and is_cacheable(taps):
        check_mode(config.teacher.cache.mode, taps.embedding)


def _check_optimizer(config: TrainConfig, objective: Objective) -> None:
    """Any module with parameters will do to try the arguments."""
    build_optimizer(config.optimizer, [nn.Linear(1, 1)], objective)


def check_weights(plan: Plan) -> list[str]:
    """Where in files of other tools the weights were found, one line for each that is not plain.

    Raises UserError unless the weights of every model can be had, fit their model, and know the classes where they
    must; and unless every model that will be trained has the layers that are to be frozen.

    Files are read here and once more when they are used: seconds, where a teacher is fitted for hours before.
    """
    config, source, inputs = plan.config, plan.source, plan.inputs
    student_inputs = dataclasses.replace(inputs, classes=len(plan.student_source.classes))
    found = _check_model(config.student, student_inputs, plan.student_source, "student")
    for number, peer in enumerate(config.peers):
        found += _check_model(peer, inputs, source, f"peers[{number}]")
    if not kind_of(config).is_fixed:
        return found
    for member in members_of(config):
        recipe = recipe_to_fit(member, source, resolve_device(config.trainer.device))
        if recipe is None:
            found += _check_ready(member, source, inputs)
        else:
            check_schedule(recipe.config.schedule, recipe.config.trainer.epochs)
            check_batch(recipe.config, source.train.labelled, inputs, recipe.config.student, recipe.key)
            found += _check_model(recipe.config.student, inputs, source, recipe.key)
    for recipe in assistant_recipes(config):
        check_batch(recipe.config, len(source.train.labels), inputs, recipe.config.student, recipe.key)
        found += _check_model(recipe.config.student, inputs, source, recipe.key)
    return found


def _check_model(model: ModelConfig, inputs: Inputs, source: Source, key: str) -> list[str]:
    """A model that will be trained: its weights can be had and fit, and it has the layers that are to be frozen."""
    outline = build_on_meta(model, inputs, key)
    found = []
    if model.checkpoint is not None:
        weights = for_model(read_weights(model.checkpoint), outline, key)
        found = _place_words(weights, key)
        matched(outline, weights, key, new_head=not knows_classes(weights, outline, source.classes, key))
    freeze(outline, model.freeze, key)
    if model.pretrained:
        build(model, inputs, key)  # fetches them, if they are not here yet
    return found


def _place_words(weights: Weights, key: str) -> list[str]:
    return [f"{key}.checkpoint={weights.origin}: its weights are under {weights.place!r}"] if weights.place else []


def _check_ready(member: Member, source: Source, inputs: Inputs) -> list[str]:
    """A teacher that serves as it is: its weights can be had, fit the model and know the classes."""
    teacher = member.config.teacher
    wanted = member.own_names(source.classes)
    own_inputs = dataclasses.replace(inputs, classes=len(wanted) if teacher.head else 0)
    if teacher.checkpoint is not None:
        outline = build_on_meta(teacher, own_inputs, member.key)
        weights = weights_for(member, outline, teacher.checkpoint, wanted)
        matched(outline, weights, member.key, new_head=not teacher.head)
        return _place_words(weights, member.key)
    if teacher.head:
        open_pretrained(fresh(teacher), wanted, own_inputs, member.key)
    else:
        build(dataclasses.replace(fresh(teacher), pretrained=True), own_inputs, member.key)
    return []

"""A teacher that is given, not fitted here, is what it seems: better than chance, its outputs in the order of the data.

Names can be missing, and wrong names look like right ones; only answers to labelled images tell.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import bdtr, bdtrc

from distillcli.config.schema import TrainConfig
from distillcli.distillation.recipes import recipe_to_fit
from distillcli.errors import UserError
from distillcli.models.ensemble import Classifier
from distillcli.models.weights import read_weights
from distillcli.runtime import any_rank, autocast, resolve_precision, sum_over_ranks
from distillcli.sources.source import Source
from distillcli.teachers.frozen import Member, members_of, open_member
from distillcli.training.session import Session
from distillcli.views.loader import Data, Loader

CHECKED_IMAGES = 5000  # at most; enough to tell chance from knowledge for thousands of classes
# How often a teacher that knows nothing passes for one that knows something, and the other way round.
DOUBT = 0.01
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Judgement:
    """What the answers of a teacher to labelled images say of it. Shares are in percent.

    ``reordered``: right if its outputs are put into the order that fits best, or None unless that order is clearly
    the true one. ``chance``: right if the same answers were given to images at random.
    """

    images: int
    right: float
    chance: float
    knows_nothing: bool
    reordered: float | None


def prove_given(config: TrainConfig, data: Data, session: Session) -> list[str]:
    """Ask every member of the teacher that is given and has a classifier; returns what speaks against it.

    Raises UserError for a teacher whose answers are not those of the labels, unless ``teacher.trust`` is true. Without
    labelled images nothing can be said.
    """
    device = session.runtime.device
    loader = next((part for part in (data.evaluation, data.val) if part is not None and part.has_labels), None)
    given = [member for member in members_of(config) if recipe_to_fit(member, data.source, device) is None]
    found = []
    for member in given if config.teacher.head else []:
        found += _numbered_warnings(member, data.source)
        fault = None if loader is None else _fault(member, data.source, loader, session)
        if fault is not None and not config.teacher.trust:
            raise UserError(f"{fault}; or insist with teacher.trust=true")
        found += [] if fault is None else [fault]
    for warning in found:
        session.warn(warning)
    return found


def _fault(member: Member, source: Source, loader: Loader, session: Session) -> str | None:
    """Why the labels speak against a teacher, and what mends it; None where they do not."""
    teacher, runtime = member.config.teacher, session.runtime
    backbone = open_member(member, teacher.checkpoint, source.classes, runtime)
    asked = _labelled_sample(loader)
    answers = _answers(backbone, asked, resolve_precision(teacher.precision, runtime.device, teacher=True))
    if answers is None:
        return None  # measuring it says that its outputs are not finite
    verdict = judge(asked.labels_shown, answers, len(source.classes))
    given = _given(member)
    if verdict.reordered is not None:
        return (
            f"{given}: {verdict.right:.1f} % right on {verdict.images} labelled images as it stands, "
            f"{verdict.reordered:.1f} % with its outputs reordered: its classes are in another order than those of the "
            f"data; {_naming(member)}"
        )
    if verdict.knows_nothing:
        return (
            f"{given}: {verdict.right:.1f} % right on {verdict.images} labelled images, no better than chance "
            f"({verdict.chance:.1f} %), so nothing can be learned from it; check that these are the weights, and "
            f"{_naming(member)}"
        )
    return None


def _given(member: Member) -> str:
    teacher = member.config.teacher
    checkpoint = teacher.checkpoint
    return f"{member.key}.name={teacher.name}" if checkpoint is None else f"{member.key}.checkpoint={checkpoint}"


def _naming(member: Member) -> str:
    """How to tell which class each output of this teacher stands for."""
    teacher = member.config.teacher
    if teacher.classes is not None:
        return f"check the order of the names in {member.key}.classes={teacher.classes}"
    if teacher.class_map is not None:
        return f"check the names in {member.key}.class_map={teacher.class_map}"
    if _is_nameless(member):
        return f"name its classes in its own order with {member.key}.classes=FILE"
    return "check that the classes of the data are called what it was trained to call them"


def _is_nameless(member: Member) -> bool:
    teacher = member.config.teacher
    given = teacher.checkpoint is not None and teacher.classes is None
    return given and read_weights(str(teacher.checkpoint)).classes is None


def _numbered_warnings(member: Member, source: Source) -> list[str]:
    """Classes 1 to 10 are in one order for some tools and in another, as text (1, 10, 2), for others."""
    names = source.classes
    as_text = tuple(sorted(names))
    if as_text == tuple(sorted(names, key=natural_order)) or not _is_nameless(member):
        return []
    return [
        f"{_given(member)}: does not name its classes, and those of the data are numbered, which tools order in two "
        f"ways ({', '.join(names[:3])}, ... here; as text {', '.join(as_text[:3])}, ...); name them with "
        f"{member.key}.classes=FILE"
    ]


def natural_order(name: str) -> list[Any]:
    """Sorts numbers within names by their values: class2 before class10."""
    return [int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"([0-9]+)", name))]


def _labelled_sample(loader: Loader) -> Loader:
    """At most ``CHECKED_IMAGES`` labelled images, spread evenly over all."""
    labelled = loader.labelled()
    shown = labelled.shown
    rows = np.unique(np.linspace(0, len(shown) - 1, min(len(shown), CHECKED_IMAGES)).round().astype(np.int64))
    return dataclasses.replace(labelled, only=shown[rows])


@torch.no_grad()
def _answers(backbone: Classifier, loader: Loader, precision: str) -> Numbers | None:
    """The class that the model gives to each image shown, in their order; None if an output is not finite."""
    runtime = loader.runtime
    backbone.eval()
    answers = torch.zeros(len(loader), dtype=torch.int64, device=runtime.device)
    is_finite = True
    for batch in loader.plain():
        with autocast(runtime.device, precision):
            logits = backbone(batch.images).logits
        is_finite = is_finite and bool(logits.isfinite().all())
        answers[batch.index.to(runtime.device)] = logits.argmax(dim=1)
    if any_rank(not is_finite, runtime):
        return None
    found: Numbers = sum_over_ranks(answers, runtime).cpu().numpy()[loader.shown]
    return found


def judge(labels: Numbers, answers: Numbers, classes: int) -> Judgement:
    """Compare N ``answers`` with N ``labels``, both in [0, ``classes``).

    Chance is what the same answers score when the images are shuffled, so that neither frequent classes nor a teacher
    that always says the same pass for knowledge. A teacher knows nothing if its score is likely by chance, and unlikely
    for one half-way between chance and perfection: few images accuse nobody.
    """
    images, hits = len(labels), int((labels == answers).sum())
    counts = [np.bincount(found, minlength=classes) / images for found in (labels, answers)]
    chance = min(1.0, float(counts[0] @ counts[1]))
    by_chance = float(bdtrc(hits - 1, images, chance)) if hits else 1.0
    by_knowledge = float(bdtr(hits, images, (1 + chance) / 2))
    return Judgement(
        images=images,
        right=100 * hits / images,
        chance=100 * chance,
        knows_nothing=by_chance > DOUBT > by_knowledge,
        reordered=_reordered(labels, answers),
    )


def _reordered(labels: Numbers, answers: Numbers) -> float | None:
    """Percent right under the best order of the outputs, or None unless it is clearly the true one.

    Among thousands of orders some fit any noise. So the order that fits one half of the images is tried on the other:
    it must mend half of the mistakes there, and more than it makes, by far more than luck would.
    """
    values, places = np.unique(np.concatenate([labels, answers]), return_inverse=True)
    wanted, given = places[: len(labels)], places[len(labels) :]
    halves = _halves(wanted)
    moved = np.empty_like(given)
    for half in (0, 1):
        order = _best_order(wanted[halves != half], given[halves != half], len(values))
        moved[halves == half] = order[given[halves == half]]
    before, after = given == wanted, moved == wanted
    mended, broken = int((after & ~before).sum()), int((before & ~after).sum())
    mends_half = (~after).sum() <= (~before).sum() / 2
    if not mended or not mends_half or bdtrc(mended - 1, mended + broken, 0.5) > DOUBT / 10:
        return None
    best = _best_order(wanted, given, len(values))[given]
    return 100 * float(np.mean(best == wanted))


def _halves(labels: Numbers) -> Numbers:
    """0 or 1 for each image, in turn within each class."""
    by_class = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    halves = np.empty_like(labels)
    halves[by_class] = (np.arange(len(labels)) - np.repeat(starts, counts)) % 2
    return halves


def _best_order(labels: Numbers, answers: Numbers, classes: int) -> Numbers:
    """For every output, the class that it stands for if most images are to be right; its own where nothing tells."""
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (answers, labels), 1)
    order: Numbers = linear_sum_assignment(confusion + 1e-6 * np.eye(classes), maximize=True)[1]
    return order

"""The state of a fit, and how it is kept in the run folder so that the fit can go on from there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from timm.models import get_model_args
from timm.utils import ModelEmaV3
from torch import Tensor

from distillcli.errors import UserError
from distillcli.models.backbone import Backbone
from distillcli.models.card import arguments
from distillcli.runs.folder import append_metrics, fingerprint, read_metrics, rewind_metrics
from distillcli.runtime import Runtime, any_rank
from distillcli.training.checkpoint import (
    drop_previous,
    load_last,
    remove_leftovers,
    save_checkpoint,
    save_last,
    without_ballast,
)
from distillcli.training.fit import Fit
from distillcli.training.learners import Distillation, MutualLearning
from distillcli.training.session import Session
from distillcli.training.soundness import check_numbers, check_weights, trained_tensors
from distillcli.training.step import Update
from distillcli.training.stored_state import check_state
from distillcli.training.totals import Totals


@dataclass
class State:
    """All that changes while training, and all that a checkpoint holds.

    ``trained``: the row of an epoch that is trained and saved, and not validated yet. ``totals``: of the epoch that is
    being trained.
    """

    model: Distillation | MutualLearning
    update: Update
    ema: ModelEmaV3 | None
    totals: Totals
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)  # epoch and numbers of the validation data; empty without
    last: dict[str, float] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict)

    @property
    def deployed(self) -> Backbone:
        """The weights that are evaluated and exported: the moving average if there is one."""
        backbone = self.model.student if self.ema is None else self.ema.module
        assert isinstance(backbone, Backbone)
        return backbone

    @property
    def peers(self) -> list[Backbone]:
        if isinstance(self.model, Distillation):
            return []
        return [peer for peer in self.model.peers if isinstance(peer, Backbone)]

    @property
    def tensors(self) -> list[Tensor]:
        """All that training changes, but the optimizer's state."""
        nets = [self.model.student.net, *(peer.net for peer in self.peers)]
        if self.ema is not None:
            nets.append(self.ema.module.net)
        return trained_tensors(nets, self.model.objective)

    def weights(self) -> dict[str, Any]:
        return {
            "student": self.model.student.net.state_dict(),
            "ema": None if self.ema is None else self.ema.module.net.state_dict(),
        }

    def everything(self) -> dict[str, Any]:
        """All but ``totals``, which the ranks add up."""
        return self.weights() | {
            "objective": self.model.objective.state_dict(),
            "peers": [peer.net.state_dict() for peer in self.peers],
            "optimizer": self.update.optimizer.state_dict(),
            "scaler": self.update.scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "last": self.last,
            "trained": self.trained,
        }

    def restore(self, content: dict[str, Any], runtime: Runtime) -> None:
        self.model.student.net.load_state_dict(content["student"])
        self.model.objective.load_state_dict(content["objective"])
        for peer, weights in zip(self.peers, content["peers"], strict=True):
            peer.net.load_state_dict(weights)
        if self.ema is not None:
            self.ema.module.net.load_state_dict(content["ema"])
        if content["optimizer"] is not None:  # after the last epoch it may be gone
            self.update.optimizer.load_state_dict(content["optimizer"])
            self.update.scaler.load_state_dict(content["scaler"])
        self.step, self.best, self.last = content["step"], content["best"], content["last"]
        self.trained = content["trained"]
        self.totals.restore(content["totals"], runtime)


class Keeper:
    """Keeps what a run folder must hold while training: checkpoints, the best epoch, the rows of metrics."""

    def __init__(self, fit: Fit, state: State, session: Session) -> None:
        config, student = fit.config, state.model.student
        settings = student.net.pretrained_cfg
        self.fit = fit
        self.folder = fit.folder
        self.session = session
        self.runtime = session.runtime
        self.state = state
        self.role = fit.role
        self.identity: dict[str, Any] = {
            # As in an exported model: a name of the config may stand for a folder or for a model on the hub.
            "model": {"name": settings["architecture"], "args": arguments(get_model_args(student.net), settings)},
            "classes": list(fit.data.source.classes),
            "image_size": student.image_size,
            "channels": student.spec.channels,
            "recipe": fit.fingerprint,
            "ingredients": {name: _brief(value) for name, value in fit.ingredients.items()},
        }
        self.interval = 60 * config.trainer.checkpoint_minutes
        self.saved_at = time.monotonic()
        self.steps_per_epoch = fit.showing.steps_per_epoch
        self.epochs = config.trainer.epochs
        self.keeps_optimizer = config.trainer.keep_optimizer

    def resume(self) -> None:
        """Put the last checkpoint in the place of the state, if there is one. Raises UserError for another recipe."""
        if self.runtime.is_main:
            remove_leftovers(self.folder)
        content, warning = load_last(self.folder, self._check)
        if warning is not None:
            self.session.warn(warning)
        if content is None:
            self._begin_again()
            return
        if content["recipe"] != self.identity["recipe"]:
            raise UserError(
                f"{self.folder}: its checkpoint was written with other settings ({self._changes(content)}); restore "
                "them, or start a new run"
            )
        self.state.restore(content, self.runtime)
        if self.runtime.is_main:
            rewind_metrics(self.folder, int(self.state.last.get("epoch", 0)))
        self.session.say(f"{self.role}: resumed {self._place()}")

    def _changes(self, content: dict[str, Any]) -> str:
        """What differs from the fit that wrote ``content``: settings are compared before, so mostly a file."""
        if "ingredients" not in content:  # by an older version
            return "models, data, objective or budget"
        old, new, config = content["ingredients"], self.identity["ingredients"], self.fit.config
        files = {"teacher": ("teacher", config.teacher.checkpoint), "start": ("student", config.student.checkpoint)}
        words = []
        for name in sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
            model, file = files.get(name, ("", None))
            what = f"the weights of the {model}" if model else name.replace("_", " ")
            given = f" in {model}.checkpoint={file}" if file else ""
            words.append(f"{what}{given}: {old.get(name)} -> {new.get(name)}")
        return "; ".join(words)

    def _place(self) -> str:
        step, steps = self.state.step, self.steps_per_epoch
        if self.state.trained:
            return f"at the validation of epoch {step // steps}, after step {step}"
        if step == steps * self.epochs:
            return f"after its last epoch, {step // steps}"
        return f"at epoch {step // steps + 1}, step {step}"

    def _check(self, content: dict[str, Any]) -> None:
        """Raise what reading raises, unless this is a state of this fit, or whole and of another one."""
        if content["recipe"] == self.identity["recipe"]:
            state = self.state
            check_state(content, state.everything(), state.update.optimizer, self.steps_per_epoch, self.epochs)

    def _begin_again(self) -> None:
        """Epochs were recorded, and what they had learned is gone."""
        epochs = [row["epoch"] for row in read_metrics(self.folder)]
        if epochs:
            self.session.warn(
                f"{self.folder}: {max(epochs)} epochs are recorded, but no checkpoint is left; beginning at epoch 1"
            )
            if self.runtime.is_main:
                rewind_metrics(self.folder, 0)

    def is_due(self) -> bool:
        return any_rank(time.monotonic() - self.saved_at > self.interval, self.runtime)

    def save(self) -> None:
        """Raises NumericError, before anything is written, if a weight is not finite."""
        check_weights(self.state.tensors, self.fit, self.state.step, self.runtime)
        totals = self.state.totals.content(self.runtime)
        content = self.state.everything() | {"totals": totals} | self.identity
        if self._is_finished and not self.keeps_optimizer:
            content = without_ballast(content)
        if self.runtime.is_main:
            save_last(self.folder, content)
            self.session.saved(self.folder)
        self.saved_at = time.monotonic()

    def fit_done(self) -> None:
        """Leave a finished fit small: ``last.pt`` holds all that is still needed, so the checkpoint before it goes."""
        if self.runtime.is_main and not self.keeps_optimizer:
            drop_previous(self.folder)

    @property
    def _is_finished(self) -> bool:
        return self.state.step == self.steps_per_epoch * self.epochs and not self.state.trained

    def epoch_trained(self, train: dict[str, Any]) -> None:
        """Save an epoch before it is validated: whatever ends the process now, the validation alone is made up."""
        self.state.trained = train
        self.state.totals.clear()
        self.save()

    def epoch_done(self, epoch: int, train: dict[str, Any], numbers: dict[str, float] | None) -> None:
        """Record an epoch that was trained and validated. Raises NumericError if its numbers are not finite.

        ``numbers``: of the validation data; None where there are none, and no epoch is the best.
        """
        state, validated = self.state, numbers is not None
        check_numbers(numbers or {}, self.fit, epoch)
        state.trained = {}
        state.last = {"epoch": epoch, **(numbers or {})}
        is_best = validated and (not state.best or merit(state.last) > merit(state.best))
        state.best = state.last if is_best else state.best
        if self.runtime.is_main:
            if is_best:
                content = state.weights() | self.identity | {"epoch": epoch}
                save_checkpoint(self.folder / "checkpoints" / "best.pt", content)
            append_metrics(self.folder, train)
            if validated:
                row = {"kind": "eval", "epoch": epoch, "step": state.step, "split": "val"}
                append_metrics(self.folder, row | state.last)
        self.save()


def _brief(value: Any) -> str | int | None:
    """A hash of what is no plain word itself."""
    return value if value is None or isinstance(value, str | int) else fingerprint(value)


def merit(numbers: dict[str, float]) -> tuple[float, ...]:
    """Orders epochs: by accuracy, and on equal accuracy the more confident one is better.

    Without labels the epoch closest to the teacher is the best, and where it has no classes to compare, the last.
    """
    if "top1" in numbers:
        return numbers["top1"], -numbers["nll"]
    return (-numbers["kl_to_teacher"],) if "kl_to_teacher" in numbers else (numbers["epoch"],)

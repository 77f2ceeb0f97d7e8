"""The state of a fit, and how it is kept in the run folder so that the fit can go on from there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from timm.utils import ModelEmaV3

from distillcli.errors import UserError
from distillcli.models.backbone import Backbone
from distillcli.runs.folder import append_metrics, read_metrics, rewind_metrics
from distillcli.runtime import Runtime, any_rank
from distillcli.training.checkpoint import load_last, remove_leftovers, save_checkpoint, save_last
from distillcli.training.fit import Fit
from distillcli.training.learners import Distillation, MutualLearning
from distillcli.training.session import Session
from distillcli.training.step import Update
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
    best: dict[str, float] = field(default_factory=dict)  # epoch and numbers of the validation data
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

    def weights(self) -> dict[str, Any]:
        return {
            "student": self.model.student.net.state_dict(),
            "ema": None if self.ema is None else self.ema.module.net.state_dict(),
        }

    def everything(self, runtime: Runtime) -> dict[str, Any]:
        return self.weights() | {
            "objective": self.model.objective.state_dict(),
            "peers": [peer.net.state_dict() for peer in self.peers],
            "optimizer": self.update.optimizer.state_dict(),
            "scaler": self.update.scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "last": self.last,
            "trained": self.trained,
            "totals": self.totals.content(runtime),
        }

    def restore(self, content: dict[str, Any], runtime: Runtime) -> None:
        self.model.student.net.load_state_dict(content["student"])
        self.model.objective.load_state_dict(content["objective"])
        for peer, weights in zip(self.peers, content["peers"], strict=True):
            peer.net.load_state_dict(weights)
        if self.ema is not None:
            self.ema.module.net.load_state_dict(content["ema"])
        self.update.optimizer.load_state_dict(content["optimizer"])
        self.update.scaler.load_state_dict(content["scaler"])
        self.step, self.best, self.last = content["step"], content["best"], content["last"]
        self.trained = content["trained"]
        self.totals.restore(content["totals"], runtime)


class Keeper:
    """Keeps what a run folder must hold while training: checkpoints, the best epoch, the rows of metrics."""

    def __init__(self, fit: Fit, state: State, session: Session) -> None:
        config, student = fit.config, state.model.student
        self.folder = fit.folder
        self.session = session
        self.runtime = session.runtime
        self.state = state
        self.role = fit.role
        self.identity = {
            "model": {"name": config.student.name, "args": config.student.args},
            "classes": list(fit.data.source.classes),
            "image_size": student.image_size,
            "channels": student.spec.channels,
            "recipe": fit.fingerprint,
        }
        self.interval = 60 * config.trainer.checkpoint_minutes
        self.saved_at = time.monotonic()
        self.steps_per_epoch = fit.showing.steps_per_epoch
        self.last_step = config.trainer.epochs * self.steps_per_epoch

    def resume(self) -> None:
        """Put the last checkpoint in the place of the state, if there is one. Raises UserError for another recipe."""
        if self.runtime.is_main:
            remove_leftovers(self.folder)
        content, warning = load_last(self.folder)
        if warning is not None:
            self.session.warn(warning)
        if content is None:
            self._start_anew()
            return
        if content["recipe"] != self.identity["recipe"]:
            raise UserError(
                f"{self.folder}: its checkpoint was written with other settings (models, data, objective or budget); "
                "start a new run"
            )
        self.state.restore(content, self.runtime)
        if self.runtime.is_main:
            rewind_metrics(self.folder, int(self.state.last.get("epoch", 0)))
        self.session.say(f"{self.role}: resumed {self._place()}")

    def _start_anew(self) -> None:
        """Without a checkpoint training begins with epoch 1, whatever was recorded of it before."""
        if self.runtime.is_main and read_metrics(self.folder):
            self.session.warn(f"{self.folder}: its checkpoints are gone, so its training begins again with epoch 1")
            rewind_metrics(self.folder, 0)

    def _place(self) -> str:
        step, steps = self.state.step, self.steps_per_epoch
        if self.state.trained:
            return f"at the validation of epoch {step // steps}, after step {step}"
        if step == self.last_step:
            return f"after its last epoch, {step // steps}"
        return f"at epoch {step // steps + 1}, step {step}"

    def is_due(self) -> bool:
        return any_rank(time.monotonic() - self.saved_at > self.interval, self.runtime)

    def save(self) -> None:
        content = self.state.everything(self.runtime) | self.identity
        if self.runtime.is_main:
            save_last(self.folder, content)
            self.session.saved(self.folder)
        self.saved_at = time.monotonic()

    def epoch_trained(self, train: dict[str, Any]) -> None:
        """Save an epoch before it is validated: whatever ends the process now, the validation alone is made up."""
        self.state.trained = train
        self.state.totals.clear()
        self.save()

    def epoch_done(self, epoch: int, train: dict[str, Any], numbers: dict[str, float]) -> None:
        """Record an epoch that was trained and validated."""
        state = self.state
        state.trained = {}
        state.last = {"epoch": epoch, **numbers}
        is_best = not state.best or merit(state.last) > merit(state.best)
        state.best = state.last if is_best else state.best
        if self.runtime.is_main:
            if is_best:
                save_checkpoint(self.folder / "checkpoints" / "best.pt", state.weights() | self.identity)
            append_metrics(self.folder, train)
            append_metrics(self.folder, {"kind": "eval", "epoch": epoch, "step": state.step, "split": "val", **numbers})
        self.save()


def merit(numbers: dict[str, float]) -> tuple[float, ...]:
    """Orders epochs: by accuracy, and on equal accuracy the more confident one is better.

    Without labels the epoch closest to the teacher is the best, and where it has no classes to compare, the last.
    """
    if "top1" in numbers:
        return numbers["top1"], -numbers["nll"]
    return (-numbers["kl_to_teacher"],) if "kl_to_teacher" in numbers else (numbers["epoch"],)

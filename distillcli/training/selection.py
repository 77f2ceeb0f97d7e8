"""Which epoch becomes the student: the last one, or the one that was best on the validation data."""

from __future__ import annotations

import copy
from collections.abc import Callable

from distillcli.errors import UserError
from distillcli.models.backbone import Backbone
from distillcli.runs.reading import reading
from distillcli.training.checkpoint import read_checkpoint
from distillcli.training.fit import Fit, Fitted
from distillcli.training.state import State


def select(fit: Fit, state: State, images_per_second: float | None, warn: Callable[[str], None]) -> Fitted:
    """What came of a fit, its student being the model of the epoch that ``trainer.select`` asks for.

    Raises UserError if that is the best epoch and its checkpoint is damaged; warns if it would only have been measured.
    """
    last, final = state.deployed, int(state.last["epoch"])
    if state.best.get("epoch", final) == final:  # without validation data no epoch is the best
        return Fitted(last, final, None, state.best, state.last, images_per_second)
    epoch, wanted = int(state.best["epoch"]), fit.config.trainer.select == "best"
    try:
        best = _of_best_epoch(fit, last, epoch)
    except UserError as error:
        if wanted:
            raise UserError(
                f"{error}; trainer.select=best has no weights to take: remove {fit.folder / 'checkpoints'} to train "
                "this run from the beginning"
            ) from error
        warn(f"{error}; the best epoch is not measured on {fit.data.source.evaluated_on}")
        return Fitted(last, final, None, state.best, state.last, images_per_second)
    if wanted:
        return Fitted(best, epoch, last, state.best, state.last, images_per_second)
    return Fitted(last, final, best, state.best, state.last, images_per_second)


def _of_best_epoch(fit: Fit, like: Backbone, epoch: int) -> Backbone:
    """A copy of ``like`` with the weights of ``checkpoints/best.pt``. Raises UserError unless they are of ``epoch``."""
    path, best = fit.folder / "checkpoints" / "best.pt", copy.deepcopy(like)
    weights = read_checkpoint(path)
    with reading(path):
        if (weights["recipe"], weights.get("epoch", epoch)) != (fit.fingerprint, epoch):
            raise ValueError(f"it is not epoch {epoch} of this run")
        best.net.load_state_dict(weights["student"] if weights["ema"] is None else weights["ema"])
    return best

"""Whether the numbers of a fit are sound: what is not finite is noticed before anything is saved, and traced to the
step, the images and the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from distillcli.errors import NumericError
from distillcli.runs.folder import write_json
from distillcli.runtime import Runtime, any_rank, least_over_ranks
from distillcli.training.fit import Fit
from distillcli.training.step import Update
from distillcli.training.totals import Totals
from distillcli.types import Output

# Every overflow in fp16 halves the scale of the loss, which starts at 2^16: 32 of them more than were recovered from.
LEAST_SCALE = 2.0**-16
BATCH_FILE = "nan_batch.json"
# A gradient so many times as long as the weights is no measure of how far they should move.
DISPROPORTION = 100.0


def check_losses(totals: Totals, fit: Fit, update: Update, epoch: int, runtime: Runtime) -> None:
    """Raise NumericError if a loss or gradient of ``epoch`` was not finite; every rank asks, before anything is saved.

    The images of the first such step are named in ``nan_batch.json``: their views can be drawn again.
    """
    step = least_over_ranks(totals.first_bad.item(), runtime)
    if math.isfinite(step):
        rows = fit.showing.step_rows(round(step))
        if runtime.is_main:
            found = {"epoch": epoch, "step": round(step), "images": rows.index.tolist(), "views": rows.view.tolist()}
            write_json(fit.folder / BATCH_FILE, found)
        if any_rank(not _teacher_is_finite(fit, round(step)), runtime):
            raise NumericError(
                f"teacher, not {fit.role}: its outputs were not finite at step {step:.0f} (epoch {epoch}); the images "
                f"are in {fit.folder / BATCH_FILE}; {_kept(fit)}; use another teacher, or teacher.precision=fp32"
            )
        raise NumericError(
            f"{fit.role}: the loss or its gradient was not finite at step {step:.0f} (epoch {epoch}, {_setting(fit)}); "
            f"the images are in {fit.folder / BATCH_FILE}; {_kept(fit)}; {_advice(fit)}"
        )
    if update.scaler.is_enabled() and update.scaler.get_scale() < LEAST_SCALE:
        raise NumericError(
            f"{fit.role}: gradients overflow fp16 at every scale of the loss (epoch {epoch}, {_setting(fit)}; "
            f"{totals.skipped.item():.0f} of {totals.count} steps were not taken); {_kept(fit)}; {_advice(fit)}"
        )


def check_weights(tensors: Iterable[Tensor], fit: Fit, step: int, runtime: Runtime) -> None:
    """Raise NumericError if any of ``tensors``, about to be saved after ``step``, is not finite; every rank asks."""
    unsound = sum((~tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()), torch.zeros(()))
    if any_rank(bool(unsound), runtime):
        raise NumericError(
            f"{fit.role}: the weights are not finite after step {step} ({_setting(fit)}); {_kept(fit)}; {_advice(fit)}"
        )


def check_numbers(numbers: Mapping[str, float], fit: Fit, epoch: int) -> None:
    """Raise NumericError if the evaluation after ``epoch`` is not finite: outputs may overflow where weights do not."""
    bad = [name for name, number in numbers.items() if not math.isfinite(number)]
    if bad:
        raise NumericError(
            f"{fit.role}: its outputs are not finite after epoch {epoch} ({', '.join(bad)}; {_setting(fit)}); "
            f"{_kept(fit)}; {_advice(fit)}"
        )


def first_gradient_doubt(norm: float, fit: Fit, weights: Iterable[Tensor]) -> str | None:
    """What to say if ``norm``, of the first gradient, is out of all proportion to the ``weights``; else None."""
    length = nn.utils.get_total_norm([weight.detach() for weight in weights if weight.requires_grad]).item()
    if fit.config.trainer.clip_grad is not None or not DISPROPORTION * length < norm < math.inf:
        return None
    return (
        f"{fit.role}: the first gradient (norm {norm:.1e}) is out of all proportion to the weights (norm "
        f"{length:.1e}); lower the weight of a term of {fit.objective.words()}, give it a ramp, or set "
        "trainer.clip_grad=1"
    )


def trained_tensors(nets: Iterable[nn.Module], objective: nn.Module) -> list[Tensor]:
    """What training changes: weights and running statistics of models, and weights of terms.

    Without the buffers of terms: some are NaN until the first batch.
    """
    return [*(tensor for net in nets for tensor in net.state_dict().values()), *objective.parameters()]


def _teacher_is_finite(fit: Fit, step: int) -> bool:
    """Whether a fixed teacher's outputs for this rank's share of the batch of ``step``, counted from 1, are finite."""
    if fit.teacher is None:
        return True
    steps = fit.showing.steps_per_epoch
    parts = next(fit.showing.epoch((step - 1) // steps + 1, (step - 1) % steps))
    return all(tensor.isfinite().all() for part in parts for tensor in _tensors(fit.teacher(part)))


def _tensors(output: Output) -> list[Tensor]:
    parts = [output.logits, output.embedding, output.class_maps, output.features]
    parts += [*output.stages.values(), *output.preactivations.values()]
    return [part for part in parts if part is not None]


# --- words ---------------------------------------------------------------------------------------------------------


def _keys(fit: Fit) -> tuple[str, str]:
    """Where rate and precision of this fit are set: a teacher's fit has other keys than a student's."""
    return ("teacher.fit.lr", "teacher.precision") if fit.role == "teacher" else ("optimizer.lr", "trainer.precision")


def _setting(fit: Fit) -> str:
    return f"{_keys(fit)[0]}={fit.config.optimizer.lr}, {fit.config.trainer.precision}"


def _advice(fit: Fit) -> str:
    rate, precision = _keys(fit)
    return f"lower {rate}, set trainer.clip_grad=1 or {precision}=fp32"


def _kept(fit: Fit) -> str:
    last = fit.folder / "checkpoints" / "last.pt"
    return f"the last checkpoint, {last}, is from before" if last.exists() else "no checkpoint was written yet"

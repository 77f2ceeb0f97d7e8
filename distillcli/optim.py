"""timm's optimizers and learning-rate schedules, from the config."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from distillcli.config.checks import check_schedule
from distillcli.config.schema import OptimizerConfig, ScheduleConfig
from distillcli.errors import UserError


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Norm layers and biases get no weight decay, as timm does by default.

    torch's own SGD, Adam and AdamW update all weights in one kernel; ``optimizer.args.fused=false`` takes that back.
    """
    kind = get_optimizer_class(config.name.lower().removeprefix("lookahead_"), bind_defaults=False)
    fused = {"fused": True} if kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW) else {}
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **(fused | config.args),
        )
        return optimizer
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.name={config.name}: {error}; check optimizer.args") from error


def build_schedule(
    config: ScheduleConfig, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> Scheduler:
    """A schedule of the step number alone: ``step_update(step)`` sets the learning rates, and no state is saved.

    A smooth decay begins where the warm-up ends, at the full rate, and takes the rest of the epochs. Raises UserError
    when the schedule does not fit into ``epochs``.
    """
    check_schedule(config, epochs)
    smooth = config.name in ("cosine", "poly", "tanh")
    schedule: Scheduler
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=config.name,
        num_epochs=epochs - config.warmup_epochs if smooth else epochs,
        warmup_prefix=smooth,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
        decay_epochs=config.decay_epochs,
        decay_rate=config.decay_rate,
        # timm compares the milestones with the number of the next step; halves keep this one from dropping early.
        decay_milestones=[milestone + 0.5 / steps_per_epoch for milestone in config.milestones],
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return schedule

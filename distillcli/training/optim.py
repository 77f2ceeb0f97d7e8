"""timm's optimizers and learning-rate schedules, from the config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from distillcli.config.checks import check_schedule
from distillcli.config.schema import OptimizerConfig, ScheduleConfig
from distillcli.errors import UserError


def build_optimizer(config: OptimizerConfig, nets: Sequence[nn.Module], objective: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of timm models, all alike, and of what an objective trains beside them.

    Norm layers, biases and what the model itself lists, as position embeddings, get no weight decay, unless
    ``optimizer.args.filter_bias_and_bn=false`` says that everything decays. With ``layer_decay`` the rate falls from
    the classifier to the stem; the objective has the full one.

    torch's own SGD, Adam and AdamW update all weights in one kernel; ``optimizer.args.fused=false`` takes that back.
    """
    kind = get_optimizer_class(config.name.lower().removeprefix("lookahead_"), bind_defaults=False)
    fused = {"fused": True} if kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW) else {}
    try:
        optimizers: list[torch.optim.Optimizer] = [
            create_optimizer_v2(
                net,
                opt=config.name,
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                layer_decay=config.layer_decay,
                **(fused | config.args),
            )
            for net in nets
        ]
        optimizer, *others = optimizers
        groups = [group for other in others for group in other.param_groups]
        for group in [*groups, *_groups_of_terms(config, objective)]:
            optimizer.add_param_group(group)
        return optimizer
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.name={config.name}: {error}; check optimizer.args") from error


def _groups_of_terms(config: OptimizerConfig, objective: nn.Module) -> list[dict[str, Any]]:
    """What an objective trains, decayed like the models."""
    if config.args.get("filter_bias_and_bn", True):
        spared: list[dict[str, Any]] = param_groups_weight_decay(objective, config.weight_decay)
        return spared
    return [{"params": [*objective.parameters()], "weight_decay": config.weight_decay}]


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

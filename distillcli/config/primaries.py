"""The primary configs: what a Hydra command can be told, one line for each command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from distillcli.config.check_export import check_export
from distillcli.config.check_predict import check_predict
from distillcli.config.checks import check_eval, check_train
from distillcli.config.schema import EvalConfig, ExportConfig, PredictConfig, TrainConfig

Config = TypeVar("Config")


@dataclass(frozen=True)
class Primary(Generic[Config]):
    """``NAME.yaml`` in the config folder opens its defaults with ``NAME_schema``, which is ``schema``."""

    schema: type[Config]
    check: Callable[[Config], None]  # raises UserError for ranges and combinations that cannot work
    overlays: bool = False  # whether groups outside the schema, such as experiment=NAME, may be laid over it


PRIMARIES: dict[str, Primary[Any]] = {
    "train": Primary(TrainConfig, check_train, overlays=True),
    "eval": Primary(EvalConfig, check_eval),
    "export": Primary(ExportConfig, check_export),
    "predict": Primary(PredictConfig, check_predict),
}

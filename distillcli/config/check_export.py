"""Checks of ``distill export``. Every refusal is a UserError of one line: key, value, fix."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from distillcli.config.check_data import check_dataset
from distillcli.config.check_models import check_checkpoint, check_model_name
from distillcli.config.job import process_count
from distillcli.config.ranges import one_of
from distillcli.config.schema import ExportConfig
from distillcli.errors import UserError

EPOCHS = ("last", "best")


@dataclass(frozen=True)
class Needs:
    """``modules``: what a format is written and checked with. ``extra``: which installs them."""

    modules: tuple[str, ...] = ()
    extra: str = ""


EXPORT_FORMATS = {
    "timm": Needs(),
    "onnx": Needs(("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "torch": Needs(),
    "openvino": Needs(("onnx", "onnxscript", "openvino"), "openvino"),
}


def check_export(config: ExportConfig) -> None:
    """Raise UserError for the first thing in ``config`` that cannot work."""
    if config.checkpoint is None:
        raise UserError("distill export needs checkpoint=...: a run folder or a checkpoint file")
    one_of("format", config.format, tuple(EXPORT_FORMATS))
    needs = EXPORT_FORMATS[config.format]
    check_installed(f"format={config.format}", needs)
    check_checkpoint("checkpoint", config.checkpoint)
    if config.model is not None:
        check_model_name("model", config.model)
    if config.epoch is not None:
        one_of("epoch", config.epoch, EPOCHS)
        _check_epoch(Path(config.checkpoint), config.epoch)
    if config.format == "timm":
        for key in ("preprocess", "softmax"):
            if getattr(config, key):
                raise UserError(
                    f"{key}=true: format=timm holds weights and no graph to put this into; choose format=onnx"
                )
    if config.dataset is not None:
        check_dataset(config.dataset)
    if process_count() > 1:
        raise UserError("distill export runs in one process; start it without torchrun")


def check_installed(given: str, needs: Needs) -> None:
    """Raise UserError when a package is missing. ``given``: the setting that needs it."""
    missing = [name for name in needs.modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{given}: needs {', '.join(missing)}, not installed here: pip install 'distillcli[{needs.extra}]'"
        )


def _check_epoch(run: Path, epoch: str) -> None:
    if not (run / "config.yaml").is_file():
        raise UserError(f"epoch={epoch}: checkpoint={run} is no run folder; name the run, or leave epoch out")
    if not (run / "checkpoints" / f"{epoch}.pt").is_file():
        why = "nothing chose an epoch" if epoch == "best" else "it was removed"
        raise UserError(f"epoch={epoch}: {run} has no checkpoints/{epoch}.pt, as {why}; leave epoch out")

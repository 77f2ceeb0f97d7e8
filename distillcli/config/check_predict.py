"""Checks of ``distill predict``. Every refusal is a UserError of one line: key, value, fix."""

from __future__ import annotations

from pathlib import Path

from distillcli.config.check_export import Needs, check_installed
from distillcli.config.job import process_count
from distillcli.config.ranges import at_least, check_existing, one_of
from distillcli.config.schema import PredictConfig
from distillcli.errors import UserError

PREDICT_FORMATS = ("table", "jsonl", "csv")
# Files that a runtime opens by itself -> what it needs.
RUNNABLE = {".onnx": Needs(("onnxruntime",), "onnx"), ".xml": Needs(("openvino",), "openvino")}


def check_predict(config: PredictConfig) -> None:
    """Raise UserError for the first thing in ``config`` that cannot work."""
    if config.checkpoint is None:
        raise UserError("distill predict needs checkpoint=...: a run folder, its student/ or an exported file")
    if config.input is None:
        raise UserError("distill predict needs input=...: an image, a folder, a glob, or - for paths on stdin")
    one_of("format", config.format, PREDICT_FORMATS)
    at_least("topk", config.topk, 1)
    check_existing("checkpoint", config.checkpoint)
    needs = RUNNABLE.get(Path(config.checkpoint).suffix)
    if needs is not None:
        check_installed(f"checkpoint={config.checkpoint}", needs)
    if process_count() > 1:
        raise UserError("distill predict runs in one process; start it without torchrun")

"""Who speaks and who listens during one command."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from distillcli.config.schema import TrainConfig
from distillcli.report.console import LOG, Progress, say, warn
from distillcli.runtime import start
from distillcli.signals import listening
from distillcli.training.session import Session


@contextmanager
def open_session(config: TrainConfig, command: str, folder: Path | None) -> Iterator[Session]:
    """Device, ranks, signals and output of one command; what is printed goes to ``train.log`` as well.

    ``folder``: None where nothing is written, on all ranks but the main one.
    """
    with start(config.trainer) as joined, listening() as stop:
        runtime = dataclasses.replace(joined, stop=stop)
        if folder is None:
            yield Session(runtime, command, lambda *_: nullcontext(_Silence()), _say_nothing, _say_nothing, _forget)
            return
        handler = _RunLog(folder / "train.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger()
        logger.addHandler(handler)
        LOG.setLevel(logging.INFO)
        try:
            yield Session(runtime, command, Progress, say, warn, _forget)
        finally:
            logger.removeHandler(handler)
            with suppress(OSError):
                handler.close()


class _RunLog(logging.FileHandler):
    """A full disk costs lines of the log, and no more."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Silence:
    """Watches a fit on the ranks that do not speak."""

    def step(self, loss: float | None) -> None:
        pass

    def epoch(self, train: dict[str, Any], evaluation: dict[str, Any]) -> None:
        pass


def _say_nothing(_words: str) -> None:
    pass


def _forget(_folder: Path) -> None:
    pass

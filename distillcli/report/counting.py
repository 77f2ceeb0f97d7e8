"""How far a command has come whose answers go into a file or a pipe: a bar on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import cast

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distillcli.report.console import ERRORS, is_terminal, live_bars
from distillcli.report.stream import Stream


@contextlib.contextmanager
def counting(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while stdout goes into a file or a pipe; call what is yielded with how many more are done."""
    stream = cast(Stream, ERRORS.file)
    if is_terminal() or not stream.isatty() or ERRORS.is_dumb_terminal:
        yield lambda _more: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(compact=True),
        console=ERRORS,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task(what, total=total)
        live_bars.append(bar)
        try:
            yield lambda more: bar.advance(task, more)
        finally:
            live_bars.remove(bar)

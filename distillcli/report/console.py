"""Everything printed on the terminal: the opening panel, epoch lines, the closing table, warnings.

Printing never ends a run: a closed pipe, a full disk behind ``> log`` or a terminal without Unicode only loses output.
Class names, paths and config values are user text and are never read as markup or escape codes.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table as RichTable
from rich.text import Text

from distillcli.report.blocks import Block, Bullets, Code, Gallery, Interval, Picture, Section, Sentence, Table
from distillcli.report.format import (
    Grid,
    clean,
    count,
    fixed,
    seconds,
    significant,
    size_words,
    transposed,
    without_column,
)
from distillcli.report.grids import data_words, evaluation_grid
from distillcli.report.sections import report_sections
from distillcli.report.sentences import latency_sentence
from distillcli.report.stream import Stream
from distillcli.runs.result import DatasetFacts, Measured, Result, finite

TELL_SECONDS = 60  # between two lines where there is no terminal
SPEED_SECONDS = 300  # what the time that is left is reckoned from: a validation must not upset it


def _console(stream: Stream) -> Console:
    return Console(file=cast(IO[str], stream), highlight=False, markup=False, emoji=False)


def _lost_stdout(error: OSError) -> None:
    if not isinstance(error, BrokenPipeError):  # nobody reads on, as with `| head`
        warn(f"stdout cannot be written, so nothing more is printed: {error}")


CONSOLE = _console(Stream("stdout", _lost_stdout))
ERRORS = _console(Stream("stderr", lambda _: None))

LOG = logging.getLogger("distillcli")  # train.log gets every printed line, and the traceback of a failure
LOG.addHandler(logging.NullHandler())  # without a train.log, logging would print warnings by itself

live_bars: list[Bar] = []  # the progress bar on the terminal now, at most one


@contextlib.contextmanager
def _bar_paused() -> Iterator[None]:
    """Remove the bar from the terminal while the other stream is written."""
    for bar in live_bars:
        bar.stop()
    try:
        yield
    finally:
        for bar in live_bars:
            bar.start()


def say(words: str = "") -> None:
    """One line on stdout, never wrapped, so that it can be copied and searched."""
    LOG.info("%s", words)
    CONSOLE.print(Text(clean(words)), soft_wrap=True)


def say_loading() -> None:
    """Say what takes so long, before the first import of torch."""
    if "torch" not in sys.modules:
        say("loading torch and timm")


def is_terminal() -> bool:
    """Not Console.is_terminal: FORCE_COLOR makes that true for a file, which a moving bar would fill."""
    return cast(Stream, CONSOLE.file).isatty() and not CONSOLE.is_dumb_terminal


def warn(words: str) -> None:
    """One yellow line on stderr."""
    LOG.warning("%s", words)
    with _bar_paused():
        ERRORS.print(Text(f"warning: {clean(words)}", style="yellow"), soft_wrap=True)


def sentence(words: str, style: str = "") -> None:
    """A sentence on stdout, wrapped at the terminal's width; nothing when it is empty."""
    if words:
        CONSOLE.print(Text(clean(words), style=style))


@dataclass(frozen=True)
class Opening:
    """What is known of a run before its first step. ``teacher`` is None where no teacher is needed."""

    student: str  # timm name
    student_params: int | None
    student_macs: int | None  # per image
    teacher: str | None
    teacher_params: int | None
    teacher_macs: int | None
    dataset: DatasetFacts
    objective: str  # in words: "0.1·ce + 0.9·kl(T=4)"
    device: str  # "cpu, 8 threads" or the GPU's name
    precision: str
    run: str  # path of the run folder
    images: str = ""  # their size and crop, and the mean and std that normalise them


def _model_words(name: str, params: int | None, macs: int | None) -> str:
    sizes = [f"{count(value)} {unit}" for value, unit in ((params, "parameters"), (macs, "MACs")) if value is not None]
    return ", ".join([name, *sizes])


def opening(facts: Opening) -> None:
    """The panel at the start of a run."""
    rows = []
    if facts.teacher is not None:
        rows.append(("teacher", _model_words(facts.teacher, facts.teacher_params, facts.teacher_macs)))
    rows.append(("student", _model_words(facts.student, facts.student_params, facts.student_macs)))
    if facts.teacher is not None:
        rows.append(
            ("", size_words(facts.teacher_params, facts.student_params, facts.teacher_macs, facts.student_macs))
        )
    rows.append(("data", data_words(facts.dataset)))
    rows.append(("images", facts.images))
    rows.append(("objective", facts.objective))
    rows.append(("device", f"{facts.device}, {facts.precision}"))
    rows.append(("run folder", facts.run))
    table = RichTable.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in rows:
        if words:
            table.add_row(name, Text(clean(words), overflow="fold"))
    CONSOLE.print(Panel(table, title=Text("distill"), title_align="left", expand=False, padding=(0, 1)))


def epoch_line(
    label: str, epochs: int, train: Mapping[str, Any], evaluation: Mapping[str, Any], width: int | None = None
) -> str:
    """``student  epoch  3/10  loss 1.234  ce 0.900  kl 0.300  val top-1 81.5  lr 0.0029  912 img/s``

    ``width``: columns of a terminal; what does not fit is left out, the least important first.
    """
    counter = fixed(finite(train.get("epoch")), 0)
    cells = [label, f"epoch {counter:>{len(str(epochs))}}/{epochs}", f"loss {fixed(finite(train.get('loss')), 3)}"]
    terms = [f"{key[5:]} {fixed(finite(value), 3)}" for key, value in train.items() if key.startswith("loss/")]
    cells += terms
    if evaluation:
        top1, divergence = (finite(evaluation.get(key)) for key in ("top1", "kl_to_teacher"))
        shown = f"top-1 {fixed(top1)}" if divergence is None else f"KL to teacher {fixed(divergence, 3)}"
        cells.append(f"{evaluation.get('split', 'val')} {shown}")
    rate, speed = (
        f"lr {significant(finite(train.get('lr')), 2)}",
        f"{fixed(finite(train.get('images_per_second')), 0)} img/s",
    )
    cells += [rate, speed]
    spare = [*terms, rate, speed]
    while width is not None and spare and cell_len("  ".join(cells)) > width:
        cells.remove(spare.pop())
    return "  ".join(cells)


class Progress:
    """One plain line per finished epoch, always; between them a bar on terminals, and elsewhere a line every minute.

    Both tell the time that is left of all epochs. ``done``: optimizer steps a resumed run has already taken.
    """

    def __init__(self, label: str, epochs: int, steps_per_epoch: int, done: int = 0) -> None:
        self.label = clean(label)
        self.epochs = epochs
        self.steps = max(1, steps_per_epoch)
        self.done = done
        self.begun_at = done
        self.started = self.told = time.monotonic()
        self.bar: Bar | None = None
        self.task = TaskID(0)

    def _title(self) -> str:
        """``student  epoch 3/10  step 12/20``"""
        epoch, step = divmod(max(0, self.done - 1), self.steps)
        return f"{self.label}  epoch {epoch + 1}/{self.epochs}  step {step + (self.done > 0)}/{self.steps}"

    def __enter__(self) -> Progress:
        if is_terminal():
            self.bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[loss]}", markup=False),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=CONSOLE,
                transient=True,
                speed_estimate_period=SPEED_SECONDS,
                # rich would put its own proxies in place of sys.stdout and sys.stderr.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            total = self.steps * self.epochs
            self.task = self.bar.add_task(self._title(), total=total, completed=self.done, loss="")
            self.bar.start()
            live_bars.append(self.bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            live_bars.remove(self.bar)
            self.bar.stop()
            self.bar = None

    def step(self, loss: float | None) -> None:
        """Call after every optimizer step. None keeps the loss on display: reading it may force a synchronisation."""
        self.done += 1
        if self.bar is not None:
            self.bar.update(self.task, advance=1, description=self._title())
            if loss is not None:
                self.bar.update(self.task, loss=f"loss {loss:.3f}")
        elif time.monotonic() - self.told >= TELL_SECONDS:
            self.told = time.monotonic()
            spent = (self.told - self.started) / (self.done - self.begun_at)
            say(f"{self._title()}  {seconds(spent * (self.steps * self.epochs - self.done))} left")

    def epoch(self, train: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
        """Call after every epoch with its two rows of ``metrics.jsonl``; ``evaluation`` may be empty."""
        LOG.info("%s", epoch_line(self.label, self.epochs, train, evaluation))
        width = CONSOLE.width if is_terminal() else None
        CONSOLE.print(Text(clean(epoch_line(self.label, self.epochs, train, evaluation, width))), soft_wrap=True)
        self.told = time.monotonic()


def grid_width(grid: Grid) -> int:
    """Terminal columns that a grid needs without wrapping a cell."""
    widths = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in transposed(grid)]
    return sum(widths) + 2 * (len(widths) - 1)


def stacked(header: Sequence[str]) -> list[str]:
    """Dotted keys broken over several lines, because their values are much shorter."""
    return [name.replace(".", ".\n") for name in header]


def _cleaned_lines(words: str) -> str:
    return "\n".join(clean(line) for line in words.split("\n"))


def print_grid(grid: Grid, numbers_from: int = 1, upright: bool = True) -> None:
    """A plain table; columns from ``numbers_from`` on are right-aligned.

    ``upright=False`` turns rows into columns, and line breaks in the header into spaces.
    """
    grid = [[_cleaned_lines(cell) for cell in grid[0]], *([clean(cell) for cell in row] for row in grid[1:])]
    if not upright:
        grid = transposed([[cell.replace("\n", " ") for cell in grid[0]], *grid[1:]])
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for index, name in enumerate(grid[0]):
        justify = "left" if index < numbers_from else "right"
        table.add_column(Text(name, style="bold"), justify=justify, vertical="top", overflow="fold")  # type: ignore[arg-type]
    for row in grid[1:]:
        table.add_row(*[Text(cell, overflow="fold") for cell in row])
    CONSOLE.print(table)


def closing_table(result: Result, folder: Path) -> None:
    """The end of a run: its models side by side, what the teacher was worth, and how to load the student."""
    print_sections(report_sections(result, folder))


def print_sections(sections: Sequence[Section]) -> None:
    """Those that are meant for the terminal, too."""
    for section in sections:
        if section.brief:
            CONSOLE.print()
            for block in section.blocks:
                _print_block(block)


def _print_block(block: Block) -> None:
    match block:
        case Sentence(words, tone):
            sentence(words, {"plain": "", "strong": "bold", "alarming": "red"}[tone])
        case Interval(headline, words):
            sentence(f"{headline}: {words}", "bold")
        case Table(grid, numbers_from, spare):
            if grid_width(grid) > CONSOLE.width:
                grid = [stacked(grid[0]), *grid[1:]]
            for column in spare:
                grid = grid if grid_width(grid) <= CONSOLE.width else without_column(grid, column)
            print_grid(grid, numbers_from, upright=grid_width(grid) <= CONSOLE.width)
            CONSOLE.print()
        case Bullets(items):
            for item in items:
                sentence(f"- {item}")
        case Code(text):
            for line in text.split("\n"):
                say(f"  {line}")
        case Picture(shows, file=file):
            sentence(shows if file is None else f"{shows}: {file}")
        case Gallery(captions, images):
            print_grid([list(captions), *(list(words) for _, words in images)], numbers_from=len(captions))


def evaluation_table(rows: Sequence[tuple[str, Measured]]) -> None:
    """Every metric of one model, or of several side by side, each under its label."""
    if not rows:
        return
    grid = evaluation_grid(rows)
    print_grid(grid, upright=len(rows) > 1 and grid_width(grid) <= CONSOLE.width)
    sentence(latency_sentence(rows))

"""Lists of what there is, for a terminal or for a pipe."""

from __future__ import annotations

import sys

from distillcli.report.format import clean

Rows = list[tuple[str, ...]]


def print_listing(headers: tuple[str, ...], rows: Rows) -> None:
    """A rich table on a terminal; aligned text for files and pipes, never truncated."""
    rows = [tuple("\n".join(clean(line) for line in cell.split("\n")) for cell in row) for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for header in headers:
            table.add_column(header, overflow="fold")
        for row in rows:
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        Console().print(table)
        return
    lines = [cell.split("\n") for row in (headers, *rows) for cell in row]
    count = len(headers)
    widths = [max(len(line) for cell in lines[column::count] for line in cell) for column in range(count)]
    for start in range(0, len(lines), count):
        cells = lines[start : start + count]
        for height in range(max(map(len, cells))):
            parts = [
                (cell[height] if height < len(cell) else "").ljust(width)
                for cell, width in zip(cells, widths, strict=True)
            ]
            print("  ".join(parts).rstrip())

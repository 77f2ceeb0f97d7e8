"""How numbers and foreign text are written, on the terminal and in every file."""

from __future__ import annotations

import unicodedata

# The multiplication sign and the dash are meant.
# ruff: noqa: RUF001, RUF002

DASH = "–"  # for a missing number: a typographic dash, so that it is not taken for a minus sign

Grid = list[list[str]]  # the first row is the header, the first column names the row


def clean(text: object) -> str:
    """User text on one line, without anything a terminal would act on.

    Escape codes and other control characters go, and so do the characters that reorder text; a lone surrogate (an
    undecodable byte of a file name) cannot be written to any file and becomes U+FFFD.
    """
    kept: list[str] = []
    for char in str(text):
        category = unicodedata.category(char)
        if char in "\t\n\r\v\f" or category in {"Zl", "Zp"}:
            kept.append(" ")
        elif category == "Cs":
            kept.append("\ufffd")
        elif category not in {"Cc", "Cf"}:
            kept.append(char)
    return "".join(kept)


def fixed(value: float | None, digits: int = 1) -> str:
    """``93.46`` as ``93.5``."""
    return DASH if value is None else f"{value:.{digits}f}"


def significant(value: float | None, digits: int = 3) -> str:
    """``0.00291234`` as ``0.00291``."""
    return DASH if value is None else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """A share given in percent: ``93.5 %``."""
    return DASH if value is None else f"{value:.1f} %"


def count(value: float | None) -> str:
    """A number of parameters or MACs: ``850``, ``12.3 k``, ``1.5 M``, ``4.1 G``."""
    if value is None:
        return DASH
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # 999,960 is 1.0 M, not 1000.0 k
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def byte_count(value: float) -> str:
    """Bytes, in the unit that suits them: ``850 B``, ``12.3 kB``, ``4.1 GB``."""
    words = count(value)
    return f"{words}B" if words[-1].isalpha() else f"{words} B"


def seconds(value: float | None) -> str:
    """A duration: ``25 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if value is None:
        return DASH
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def times(ratio: float) -> str:
    """A factor of at least one: ``1.3×``, ``13.5×``, ``40×``."""
    return f"{ratio:.1f}".removesuffix(".0") + "×" if ratio < 100 else f"{ratio:.0f}×"


def compared(teacher: float | None, student: float | None, less: str, more: str, same: str) -> str:
    """The student's size against the teacher's: ``13.5× smaller``; empty when one of the two is not known."""
    if not teacher or not student:
        return ""
    ratio = teacher / student
    if 0.95 < ratio < 1.05:
        return same
    return f"{times(ratio)} {less}" if ratio > 1 else f"{times(1 / ratio)} {more}"


def size_words(
    teacher_params: float | None, student_params: float | None, teacher_macs: float | None, student_macs: float | None
) -> str:
    """``13.5× smaller, 40× fewer MACs``; empty when nothing is known."""
    sizes = compared(teacher_params, student_params, "smaller", "larger", "same size")
    macs = compared(teacher_macs, student_macs, "fewer MACs", "more MACs", "as many MACs")
    return ", ".join(words for words in (sizes, macs) if words)


def share(value: float) -> str:
    """A share of one, in percent; close to 0 and 1 with a decimal, so that 99.6 % is not called all of it."""
    return f"{100 * value:.0f} %" if 0.01 <= value < 0.99 else f"{100 * value:.1f} %"


def transposed(grid: Grid) -> Grid:
    return [list(column) for column in zip(*grid, strict=True)]


def without_column(grid: Grid, name: str) -> Grid:
    """The grid without the column of this header; unchanged if it has none."""
    if name not in grid[0]:
        return grid
    at = grid[0].index(name)
    return [row[:at] + row[at + 1 :] for row in grid]

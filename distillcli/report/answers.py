"""What a model answers for an image, as one line of a table, of JSON lines or of CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distillcli.report.format import percent


@dataclass(frozen=True)
class Prediction:
    """``best``: class names and probabilities, the most likely first."""

    path: str
    best: tuple[tuple[str, float], ...]


def csv_header(count: int) -> str:
    """The first line of a CSV with ``count`` classes for each image."""
    columns = [f"{name}_{place}" for place in range(1, count + 1) for name in ("class", "probability")]
    return _csv_line(["image", *columns])


def _table_line(answer: Prediction) -> str:
    return "  ".join([answer.path, *(f"{name} {percent(100 * chance)}" for name, chance in answer.best)])


def _json_line(answer: Prediction) -> str:
    best = [{"class": name, "probability": chance} for name, chance in answer.best]
    return json.dumps({"image": answer.path, "predictions": best}, ensure_ascii=False)


def _csv_answer(answer: Prediction) -> str:
    return _csv_line([answer.path, *(cell for name, chance in answer.best for cell in (name, repr(chance)))])


def _csv_line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


LINES: dict[str, Callable[[Prediction], str]] = {"table": _table_line, "jsonl": _json_line, "csv": _csv_answer}

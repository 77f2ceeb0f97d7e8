"""``report.md`` and ``report.html``, which say the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distillcli.report.blocks import Section
from distillcli.report.markdown import markdown
from distillcli.report.page import page
from distillcli.report.sections import report_sections
from distillcli.runs.folder import write_text
from distillcli.runs.result import Result, read_result


def write_report(folder: Path) -> Path:
    """Write both reports of a run folder and return the first; ``curves.png`` is named if it has been drawn before.

    A run without a readable ``result.json`` gives reports that say it is incomplete.
    """
    result = read_result(folder) or Result()
    return write_documents(folder, result.name or folder.name, report_sections(result, folder))


def write_documents(folder: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write sections as ``report.md`` and ``report.html``; returns the path of the first."""
    write_text(folder / "report.html", page(title, sections))
    path = folder / "report.md"
    write_text(path, markdown(title, sections))
    return path

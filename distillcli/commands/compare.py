"""``distill compare``: runs, sweeps and whole experiments in one table, seeds together, with what is beyond chance."""

from __future__ import annotations

import json
from pathlib import Path

from distillcli.commands.table import COMMANDS
from distillcli.errors import UserError
from distillcli.report.console import print_sections, say
from distillcli.report.documents import write_documents
from distillcli.runs.folder import claim, write_json, write_text
from distillcli.runs.inventory import runs_at

USAGE = f"distill compare {COMMANDS['compare'].usage}"
JSON_FLAG = "--json"


def run(arguments: list[str]) -> None:
    """Compare the named runs. Raises UserError where there are not two that finished."""
    from distillcli.report.compare_groups import grouped, jobs_of  # the tests in it take a second to import
    from distillcli.report.comparison import comparison_csv, comparison_json, comparison_sections

    outs = [word.removeprefix("out=") for word in arguments if word.startswith("out=")]
    names = [word for word in arguments if word != JSON_FLAG and not word.startswith("out=")]
    flags = [name for name in names if name.startswith("-")]
    if flags:
        raise UserError(f"unknown flag {flags[0]!r}; usage: {USAGE}")
    if not names or len(outs) > 1:
        raise UserError(f"usage: {USAGE}")
    runs = {run.folder.resolve(): run for name in names for run in runs_at(name)}
    jobs = jobs_of(list(runs.values()))
    groups = grouped(jobs)
    if sum(len(group.jobs) for group in groups) < 2:
        found = "one run that finished" if groups else "no run that finished"
        raise UserError(f"{' '.join(names)}: {found}, and two are needed; see distill runs ls")
    sections = comparison_sections(groups, jobs)
    if JSON_FLAG in arguments:
        say(json.dumps(comparison_json(groups), ensure_ascii=False))
    else:
        print_sections(sections)
    if outs:
        folder = claim(Path(outs[0]).expanduser())
        write_text(folder / "compare.csv", comparison_csv(groups))
        write_json(folder / "compare.json", {"groups": comparison_json(groups)})
        write_documents(folder, "Comparison", sections)
        if JSON_FLAG not in arguments:
            say(f"written: {folder / 'report.html'}, report.md, compare.csv and compare.json beside it")

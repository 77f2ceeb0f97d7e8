"""docs/result.md from the fields of ``result.json`` and the comments behind them: python scripts/document_result.py"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from distillcli.runs import result

DOCUMENT = Path(__file__).parent.parent / "docs" / "result.md"
PARTS = {
    result.Result: "The whole file",
    result.Measured: "One model: `student`, `teacher`, `baseline`, and each of `chain` and `peers`",
    result.ClassAccuracy: "One class of `per_class`",
    result.Calibrated: "`calibrated`",
    result.EpochNumbers: "One epoch: `best` and `last`",
    result.Verdict: "`verdict`",
    result.ClassVerdict: "One class of `by_class`",
    result.DatasetFacts: "`dataset`",
    result.Fingerprints: "`fingerprints`",
}
FIELD = re.compile(r"    (\w+): (.+?) = .+?  # (.+)")
KINDS = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}
OPENING = """# The keys of `result.json`

Made by `python scripts/document_result.py` from `distillcli/runs/result.py`.

```python
import json

import pandas

table = pandas.json_normalize(json.load(open("RUN/result.json")))  # one row, with columns such as student.top1
```
"""


def kind_words(annotation: str) -> str:
    """``float | None`` as ``number``; classes of this file are objects."""
    annotation = annotation.removesuffix(" | None")
    if annotation.startswith("tuple["):
        return f"list of {kind_words(annotation[6:-6])}s"
    if annotation.startswith("dict["):
        return f"object: {kind_words(annotation[10:-1])} by name"
    return KINDS.get(annotation, "object")


def document() -> str:
    blocks = [OPENING]
    for part, title in PARTS.items():
        rows = [FIELD.fullmatch(line) for line in inspect.getsource(part).splitlines()]
        cells = [(row[1], kind_words(row[2]), row[3].replace("|", "\\|")) for row in rows if row is not None]
        words = (inspect.getdoc(part) or "").replace("``", "`")
        lines = [f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in cells]
        blocks += [f"## {title}\n\n{words}\n", "| key | value | meaning |\n|---|---|---|\n" + "\n".join(lines) + "\n"]
    return "\n".join(blocks)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), "utf-8")

"""What the files of checks for gpu_check.py share: how one check is run, and how it reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
# Device ("cuda" or "cpu") and an empty folder -> figures. A failed check raises; "skipped" says why there are none.
Check = Callable[[str, Path], Figures]

NO_GPU: Figures = {"skipped": "needs a GPU"}


def tell(figures: Figures) -> None:
    print("\nFIGURES " + json.dumps(figures), flush=True)


def hold(figures: Figures, condition: bool, words: str) -> None:
    """Fail unless ``condition``, but tell what was found first."""
    if not condition:
        tell(figures)
        raise SystemExit(words)


def run_one(checks: dict[str, Check]) -> None:
    name, device, folder = sys.argv[1:]
    tell(checks[name](device, Path(folder)))

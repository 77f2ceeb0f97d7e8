"""``SHA256SUMS`` beside the files that a run is trusted for: damage that no parser would notice.

The format is that of ``sha256sum``, so ``sha256sum -c SHA256SUMS`` compares them without this package. Files that it
does not list, and folders without it, are taken as they are: other tools and older versions write none.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")
_CHUNK = 1 << 20


@contextmanager
def recorded(folder: Path, *names: str) -> Iterator[None]:
    """The block writes the files ``names`` in ``folder``; afterwards ``SHA256SUMS`` says what they hold.

    A kill at any moment leaves files without a checksum, never with a false one.
    """
    try:
        known = _read(folder)
    except OSError:  # it is written anew
        known = {}
    others = {name: digest for name, digest in known.items() if name not in names}
    _write(folder, others)
    yield
    _write(folder, others | {name: _sha256(folder / name) for name in names})


def compare(path: Path) -> None:
    """Raise ValueError when ``path`` is not what ``SHA256SUMS`` beside it says, OSError when it cannot be read."""
    known = _read(path.parent).get(path.name)
    if known is not None and known != _sha256(path):
        raise ValueError(
            f"it is not what was written, its SHA-256 is not the one in {SUMS}; copy it again, or delete {SUMS} if the "
            "change was meant"
        )


def _read(folder: Path) -> dict[str, str]:
    """File name -> digest. Lines that are damaged say nothing."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    return {found[2]: found[1] for line in text.splitlines() if (found := _LINE.fullmatch(line))}


def _write(folder: Path, digests: dict[str, str]) -> None:
    path = folder / SUMS
    if not digests:
        path.unlink(missing_ok=True)
        return
    fresh = path.with_name(f"{SUMS}.tmp.{os.getpid()}")
    fresh.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())), encoding="utf-8")
    fresh.replace(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

"""Make .venv with distillcli and its tools: python3 scripts/setup.py

Needs nothing but Python and pip. The environment is made without pip and filled by uv, which resolves torch and
torchvision to matching builds; running it again brings an existing environment up to date in a second or two.
"""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode:
        sys.exit(f"setup: failed with code {done.returncode}: {' '.join(command)}")


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036  # the reader may have an older one
        sys.exit(f"setup: Python 3.10 or later is needed, this is {sys.version.split()[0]}")
    if not PYTHON.exists():
        venv.create(ENVIRONMENT, with_pip=False, symlinks=True)
    uv = ENVIRONMENT / "bin" / "uv"
    if not uv.exists():
        run(sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "--quiet", "uv")
    constraints = ["--constraint", "scripts/constraints.txt"]
    run(str(uv), "pip", "install", "--quiet", "--compile-bytecode", "--python", str(PYTHON), *constraints, "--editable", ".[dev]")
    print(f"ready: {ENVIRONMENT / 'bin' / 'distill'}")


if __name__ == "__main__":
    main()

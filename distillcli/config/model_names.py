"""The names that timm knows, and those of our zoo, read from source files: importing timm would take seconds."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

_MODEL = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_TAGGED = re.compile(r"""^\s+['"](\w+)\.(\w*)['"]: *_?\w+\(""", re.MULTILINE)
_DEPRECATED = re.compile(r"register_model_deprecations\(__name__, \{(.*?)\}\)", re.DOTALL)
_OPTIMIZER = re.compile(r"^\s+name='(\w+)'", re.MULTILINE)
_OPTIMIZER_ENTRY = re.compile(r"^ +OptimInfo\(\n(.*?)^ +\),", re.MULTILINE | re.DOTALL)

# timm builds these names in a loop, so its source does not spell them out.
_LOOPED_OPTIMIZERS = {"nesterov", "nesterovw", "bnblion", "bnblion8bit", "bnbademamix", "bnbademamix8bit"}

_ZOO = Path(__file__).parent.parent / "models" / "zoo"

SCHEDULES = ("cosine", "step", "multistep", "poly", "tanh", "wsd", "constant")
HUB_PREFIXES = ("local-dir:", "hf-hub:", "hf_hub:", "timm/")


def _timm_folder() -> Path | None:
    spec = importlib.util.find_spec("timm")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


@functools.cache
def _model_sources() -> str:
    folder = _timm_folder()
    files = [*sorted(folder.glob("models/*.py")), *sorted(_ZOO.glob("*.py"))] if folder else []
    return "\n".join(path.read_text("utf-8") for path in files)


@functools.cache
def model_names() -> tuple[str, ...]:
    """Every architecture of the installed timm and of our zoo, sorted; empty if timm is not installed."""
    return tuple(sorted(set(_MODEL.findall(_model_sources()))))


@functools.cache
def weight_tags() -> dict[str, tuple[str, ...]]:
    """Architecture -> the tags of its published weights, e.g. resnet50 -> a1_in1k, ...; timm's default comes first.

    A few dozen tags that timm computes are missing: good enough for listing, not for refusing a name.
    """
    tags: dict[str, list[str]] = {}
    for name, tag in _TAGGED.findall(_model_sources()):
        tags.setdefault(name, []).append(tag)
    return {name: tuple(found) for name, found in tags.items()}


@functools.cache
def deprecated_names() -> frozenset[str]:
    """Old names that timm still accepts."""
    blocks = _DEPRECATED.findall(_model_sources())
    return frozenset(name for block in blocks for name in re.findall(r"""['"](\w+)['"]:""", block))


@functools.cache
def _optimizer_source() -> str:
    folder = _timm_folder()
    factory = folder / "optim" / "_optim_factory.py" if folder else None
    return factory.read_text("utf-8") if factory and factory.exists() else ""


@functools.cache
def optimizer_names() -> tuple[str, ...]:
    """Every optimizer of the installed timm, sorted; empty if they cannot be read."""
    found = _OPTIMIZER.findall(_optimizer_source())
    return tuple(sorted({*found, *_LOOPED_OPTIMIZERS})) if found else ()


@functools.cache
def optimizers_without_momentum() -> frozenset[str]:
    """Those that timm gives no ``momentum``; of names that timm builds in a loop nothing is known."""
    entries = _OPTIMIZER_ENTRY.findall(_optimizer_source())
    without = [entry for entry in entries if "has_momentum=True" not in entry]
    return frozenset(name for entry in without for name in _OPTIMIZER.findall(entry))

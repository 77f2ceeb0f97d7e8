"""The order of imports and the habits of the package, read from the source: nothing is imported here."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "distillcli"

# Low to high. A module imports from lines above its own and, on its own line, from modules named before it; the modules
# of one pattern may import each other as long as there is no circle.
LAYERS = (
    ("", "errors"),
    ("run_folder", "config", "config.schema", "config.*", "types"),
    ("runtime", "signals", "cache"),
    ("data", "data.source", "data.draws", "data.decode", "data.tree", "data.listing", "data.label_files"),
    ("data.layout", "data.folder", "data.archive", "data.webdataset", "data.builtin", "data.npz", "data.hf"),
    ("data.unlabeled", "data.verify", "data.torchvision_sets"),
    ("data.channels", "data.labels", "data.open"),
    ("data.epochs", "data.colours", "data.policies", "data.views", "data.mix", "data.upload"),
    ("data.store", "data.loader"),
    ("class_names", "pointwise", "preactivation", "reused_head", "models", "ensemble", "inference", "layout"),
    ("weights", "freezing", "terms.base", "terms.*", "terms"),
    ("objective", "optim", "checkpoint", "teachers", "cached_teacher", "evaluation", "probe"),
    ("learners", "state", "totals", "engine"),
    ("facts", "fits", "preflight"),
    ("chain", "teaching"),
    ("reopening", "report", "report.format", "report.*", "profiling"),
    ("distillation",),
    ("commands", "commands.*"),
    ("cli",),
    ("__main__",),
)

# Upward on purpose, inside functions: the table of a sweep when it ends, completion of the names of the commands.
UPWARD = {("config.launch", "report.sweep"), ("commands.completion", "cli")}

# Whatever answers before torch is loaded.
LIGHT = (
    *("", "__main__", "cli", "errors", "config", "config.*", "run_folder", "report", "report.*", "commands"),
    *("commands.*", "data", "data.source", "data.draws", "data.decode", "data.tree", "data.listing"),
    *("data.label_files", "data.layout", "data.folder", "data.archive", "data.webdataset", "data.builtin", "data.npz"),
    *("data.hf", "data.unlabeled", "data.verify", "data.channels", "data.labels", "data.open"),
)
HEAVY = {"torch", "torchvision", "timm", "torchmetrics", "safetensors", "huggingface_hub", "datasets"}


@dataclass(frozen=True)
class Import:
    module: str  # full dotted name
    lazy: bool  # inside a function


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


SOURCES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}


def imports(tree: ast.Module) -> Iterator[Import]:
    lazy = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node in lazy)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("distillcli.") in SOURCES and inner.startswith("distillcli.")
                yield Import(inner if is_module else node.module, node in lazy)


def own_imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    for found in imports(tree):
        if found.module.split(".")[0] == "distillcli":
            yield found.module.removeprefix("distillcli").removeprefix("."), found.lazy


def matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and name.count(".") == pattern.count(".")


def place(name: str) -> tuple[int, int] | None:
    """Line and position of a module: its exact name if it is listed, else the first pattern."""
    listed = [(line, column, pattern) for line, row in enumerate(LAYERS) for column, pattern in enumerate(row)]
    exact = [(line, column) for line, column, pattern in listed if pattern == name]
    fitting = [(line, column) for line, column, pattern in listed if "*" in pattern and matches(name, pattern)]
    return (exact + fitting + [None])[0]


def goes_up(name: str, target: str) -> bool:
    here, there = place(name), place(target)
    assert here is not None
    assert there is not None
    return there > here or (there == here and "*" not in LAYERS[here[0]][here[1]])


def test_every_file_has_a_layer() -> None:
    assert [name for name in SOURCES if place(name) is None] == []


def test_every_layer_has_a_file() -> None:
    patterns = [pattern for row in LAYERS for pattern in row]
    assert [pattern for pattern in patterns if not any(matches(name, pattern) for name in SOURCES)] == []


def test_imports_go_down() -> None:
    upward = {
        (name, target) for name, tree in TREES.items() for target, _ in own_imports(tree) if goes_up(name, target)
    }
    assert upward - UPWARD == set()
    assert upward >= UPWARD, "an exception is no longer needed"


def test_upward_imports_are_lazy() -> None:
    assert not [
        (name, target)
        for name, tree in TREES.items()
        for target, lazy in own_imports(tree)
        if not lazy and (name, target) in UPWARD
    ]


def test_there_is_no_circle() -> None:
    graph = {
        name: {target for target, _ in own_imports(tree) if target != name and (name, target) not in UPWARD}
        for name, tree in TREES.items()
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("bad", [("errors", "engine"), ("engine", "fits"), ("data.source", "data.loader")])
def test_the_order_can_fail(bad: tuple[str, str]) -> None:
    assert goes_up(*bad)
    assert not goes_up(*reversed(bad))


def test_light_modules_load_nothing_heavy() -> None:
    """Not at import, and not through what they import."""
    for name in SOURCES:
        if not any(matches(name, pattern) for pattern in LIGHT):
            continue
        reached, waiting = set(), [name]
        while waiting:
            module = waiting.pop()
            if module in reached:
                continue
            reached.add(module)
            waiting += [target for target, lazy in own_imports(TREES[module]) if not lazy]
            loaded = {found.module.split(".")[0] for found in imports(TREES[module]) if not found.lazy}
            assert not loaded & HEAVY, f"{name} loads {loaded & HEAVY} by {module}"


def test_types_is_heavy() -> None:
    assert "torch" in {found.module for found in imports(TREES["types"])}, "the test above reads nothing"


def names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rsplit(".", 1)[-1]


def test_no_code_from_configs() -> None:
    """Nothing that turns text into a callable, and no unsafe loading (reliability.md, section 4)."""
    forbidden = {"instantiate", "get_class", "get_method", "get_object", "eval", "exec", "__import__"}
    methods = {"eval"}  # nn.Module.eval() puts a model into evaluation mode
    for name, tree in TREES.items():
        used = set(names(tree)) & (forbidden - methods)
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not used | (called & forbidden), name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(
                    word.arg == "weights_only" and isinstance(word.value, ast.Constant) and word.value.value is True
                    for word in node.keywords
                ), f"{name}: torch.load without weights_only=True"


def test_no_guessing() -> None:
    """``hasattr`` and ``config.get`` hide a misspelt name; the schema knows every key."""
    for name, tree in TREES.items():
        assert "hasattr" not in set(names(tree)), name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "get":
                assert ast.unparse(node.value).split(".")[-1] not in ("cfg", "config"), f"{name}:{node.lineno}"


def test_nothing_is_left_to_do() -> None:
    for name, path in SOURCES.items():
        assert not [word for word in ("TODO", "FIXME", "XXX") if word in path.read_text("utf-8")], name


def test_the_library_does_not_print() -> None:
    for name, tree in TREES.items():
        if name in ("cli", "config.launch") or name.startswith(("commands", "report")):
            continue
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"]
        assert not calls, name

"""The order of imports and the habits of the package, read from the source: nothing is imported here."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "distillcli"

# Low to high: a room imports from floors below its own; rooms of one floor do not know each other. A module in the
# package itself is a room of its own; "" is the package's version.
FLOORS = (
    ("", "errors"),
    ("config", "types", "signals"),
    ("runs", "sources", "evidence", "runtime", "reused_head"),
    ("models", "views", "terms", "report"),
    ("teachers", "launch", "formats"),
    ("training",),
    ("distillation",),
    ("commands",),
    ("cli",),
    ("__main__",),
)

# What answers before torch is loaded; inside functions these rooms may import what loads it.
LIGHT = {
    *("", "errors", "config", "signals", "runs", "sources", "evidence", "report", "launch", "commands", "cli"),
    "__main__",
}
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


def own_imports(name: str) -> Iterator[tuple[str, bool]]:
    for found in imports(TREES[name]):
        if found.module.split(".")[0] == "distillcli":
            yield found.module.removeprefix("distillcli").removeprefix("."), found.lazy


def room_of(module: str) -> str:
    return module.split(".")[0]


def floor_of(room: str) -> int:
    return next(floor for floor, rooms in enumerate(FLOORS) if room in rooms)


def goes_up(room: str, target: str) -> bool:
    return room != target and floor_of(target) >= floor_of(room)


def test_every_file_has_a_room_and_every_room_a_file() -> None:
    assert {room_of(name) for name in SOURCES} == {room for rooms in FLOORS for room in rooms}


def test_imports_go_down() -> None:
    rooms = {(name, target): (room_of(name), room_of(target)) for name in SOURCES for target, _ in own_imports(name)}
    assert [edge for edge, (room, target) in rooms.items() if goes_up(room, target)] == []


def test_no_room_has_a_circle() -> None:
    graph = {name: {target for target, _ in own_imports(name) if target != name} for name in SOURCES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("bad", [("errors", "training"), ("models", "views"), ("sources", "views")])
def test_the_order_can_fail(bad: tuple[str, str]) -> None:
    assert goes_up(*bad)


def test_light_rooms_load_nothing_heavy() -> None:
    """Not at import, and not through what they import."""
    for name in SOURCES:
        if room_of(name) not in LIGHT:
            continue
        reached, waiting = set(), [name]
        while waiting:
            module = waiting.pop()
            if module in reached:
                continue
            reached.add(module)
            waiting += [target for target, lazy in own_imports(module) if not lazy]
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
        if name in ("cli", "launch.launch") or room_of(name) in ("commands", "report"):
            continue
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"]
        assert not calls, name

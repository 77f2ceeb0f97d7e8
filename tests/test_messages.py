"""Every key that a message names exists: all text of the package is read from the source and compared with the schemas.

Text with holes (f-strings) is filled in with every value that can reach a hole: constants, what callers pass for a
parameter, what a loop goes through, what a local variable was set to. What cannot be known stays a wildcard.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from distillcli.commands import runs
from distillcli.config.keys import schema_of
from distillcli.config.primaries import PRIMARIES
from distillcli.config.search import groups
from distillcli.config.terms import KNOWN_TERMS

PACKAGE = Path(__file__).resolve().parent.parent / "distillcli"
HOLE = "\0"  # a value that cannot be known from the source
MOST = 200  # ways to fill in one text; beyond them its holes stay unknown

# Words that might be taken for groups, and are none.
NO_GROUPS = {"eval", "assistant", "control"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


# --- what may be named ---------------------------------------------------------------------------------------------


def keys_of(schema: type) -> Iterator[str]:
    """Dotted keys, those of list elements included: ``teacher.members.weight``."""
    for name, annotation in typing.get_type_hints(schema).items():
        yield name
        inner = typing.get_args(annotation)[0] if typing.get_origin(annotation) is list else annotation
        nested = schema_of(inner)
        if nested is not None:
            yield from (f"{name}.{key}" for key in keys_of(nested))


@functools.cache
def known_keys() -> frozenset[str]:
    found = {key for primary in PRIMARIES.values() for key in keys_of(primary.schema)} | set(groups())
    found |= set(runs.OPTIONS)
    for name, term in KNOWN_TERMS.items():
        found |= {f"distill.terms.{name}"}
        found |= {f"distill.terms.{name}.{option.name}" for option in dataclasses.fields(term.options)}
    return frozenset(found)


def exists(key: str) -> bool:
    """Whether ``key`` may be a key of a config; ``[0]`` and ``NAME`` stand for any element, a hole for anything."""
    key = re.sub(r"\[[^\]]*\]", "", key)
    pattern = re.sub(rf"{HOLE}+|\b[A-Z]{{2,}}\b", HOLE, key)
    pattern = re.escape(pattern).replace(re.escape(HOLE), r"[\w.]+")
    return any(re.fullmatch(pattern, known) for known in known_keys())


@functools.cache
def dotted() -> re.Pattern[str]:
    """A key below one of the groups; not a part of a path or of a module's name."""
    tops = {key.split(".")[0] for key in known_keys() if "." in key} | NO_GROUPS
    return re.compile(
        rf"(?<![\w./{HOLE}-])(?:{'|'.join(sorted(tops))})(?:\[[^\]]*\])?(?:\.[\w{HOLE}]+(?:\[[^\]]*\])?)+"
    )


ASSIGNED = re.compile(rf"(?<![\w./{HOLE}\[-])([a-z_][\w.\[\]{HOLE}]*)=(?!=|True\b)")
# In "key=value" and the like, what stands for any key.
PLACEHOLDERS = {"key", "group"}


def named_keys(text: str) -> set[str]:
    """The keys in one line of text, as ``group.key`` or as ``key=``."""
    found = set(dotted().findall(text)) | set(ASSIGNED.findall(text))
    return {key for key in found if key not in PLACEHOLDERS and not key.startswith("hydra.")}


# --- what the package can say --------------------------------------------------------------------------------------


class Package:
    """The functions of all modules and the places where each is called, by name."""

    def __init__(self, trees: dict[str, ast.Module]) -> None:
        self.trees = trees
        self.functions: dict[str, list[Function]] = {}
        self.calls: dict[str, list[tuple[ast.Call, Function | None]]] = {}
        self.inside: dict[ast.AST, Function | None] = {}
        for tree in trees.values():
            self._enter(tree, None)

    def _enter(self, node: ast.AST, function: Function | None) -> None:
        self.inside[node] = function
        if isinstance(node, Function):
            self.functions.setdefault(node.name, []).append(node)
            function = node
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            self.calls.setdefault(name, []).append((node, function))
        for child in ast.iter_child_nodes(node):
            self._enter(child, function)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Where and what: every text but docstrings, once for each way to fill in its holes."""
        for module, tree in self.trees.items():
            documents = {
                node.body[0].value
                for node in ast.walk(tree)
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and isinstance(node.body[0], ast.Expr)
            }
            pieces = {piece for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values}
            for node in ast.walk(tree):
                is_text = isinstance(node, ast.JoinedStr) or (
                    isinstance(node, ast.Constant) and isinstance(node.value, str)
                )
                if is_text and node not in documents and node not in pieces:
                    assert isinstance(node, (ast.JoinedStr, ast.Constant))
                    for value in self.values(node, self.inside[node]):
                        yield f"{module}:{node.lineno}", value

    def values(self, node: ast.expr, function: Function | None, seen: frozenset[str] = frozenset()) -> set[str]:
        """What an expression within ``function`` can be as text."""
        if isinstance(node, ast.Constant):
            return {str(node.value)}
        if isinstance(node, ast.FormattedValue):
            return self.values(node.value, function, seen)
        if isinstance(node, ast.JoinedStr):
            pieces = [sorted(self.values(piece, function, seen)) for piece in node.values]
            ways = functools.reduce(lambda count, piece: count * len(piece), pieces, 1)
            if ways > MOST:
                pieces = [piece if len(piece) == 1 else [HOLE] for piece in pieces]
            return {"".join(way) for way in itertools.product(*pieces)}
        if isinstance(node, ast.IfExp):
            return self.values(node.body, function, seen) | self.values(node.orelse, function, seen)
        if isinstance(node, ast.Name) and function is not None:
            place = f"{function.name}:{node.id}"
            return {HOLE} if place in seen else self._variable(node.id, function, seen | {place})
        return {HOLE}

    def _variable(self, name: str, function: Function, seen: frozenset[str]) -> set[str]:
        found: set[str] = set()
        parameters = [argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")]
        if name in parameters:
            found |= self._passed(function, parameters, name, seen)
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                found |= self.values(node.value, function, seen)
            elif isinstance(node, (ast.For, ast.comprehension)):
                found |= self._iterated(node, name, function, seen)
        return found or {HOLE}

    def _iterated(
        self, loop: ast.For | ast.comprehension, name: str, function: Function, seen: frozenset[str]
    ) -> set[str]:
        """The values of a loop variable; of literal tuples and lists, and of tuples in them."""
        targets = loop.target.elts if isinstance(loop.target, ast.Tuple) else [loop.target]
        position = next((i for i, t in enumerate(targets) if isinstance(t, ast.Name) and t.id == name), None)
        if position is None:
            return set()
        if not isinstance(loop.iter, (ast.Tuple, ast.List)):
            return {HOLE}
        found: set[str] = set()
        for element in loop.iter.elts:
            if isinstance(loop.target, ast.Tuple):
                found |= (
                    self.values(element.elts[position], function, seen) if isinstance(element, ast.Tuple) else {HOLE}
                )
            else:
                found |= self.values(element, function, seen)
        return found

    def _passed(self, function: Function, parameters: list[str], name: str, seen: frozenset[str]) -> set[str]:
        """What all callers of a function pass for one parameter."""
        position = parameters.index(name)
        defaults = dict(zip(reversed(parameters), reversed(function.args.defaults), strict=False))
        found: set[str] = set()
        for call, caller in self.calls.get(function.name, []):
            passed = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
            if passed is None and position < len(call.args):
                passed = call.args[position]
            passed = passed or defaults.get(name)
            found |= {HOLE} if passed is None else self.values(passed, caller, seen)
        return found


@functools.cache
def package() -> Package:
    paths = sorted(PACKAGE.rglob("*.py"))
    return Package({str(path.relative_to(PACKAGE)): ast.parse(path.read_text("utf-8")) for path in paths})


def unknown_keys(of: Package) -> set[tuple[str, str]]:
    """Where a key is named that no config has. Text of several lines, as shell scripts, is no message."""
    return {
        (where, key) for where, text in of.texts() if "\n" not in text for key in named_keys(text) if not exists(key)
    }


# --- tests ---------------------------------------------------------------------------------------------------------


def test_messages_name_only_keys_that_exist() -> None:
    assert unknown_keys(package()) == set()


def test_the_keys_of_messages_are_found() -> None:
    found = {key for _, text in package().texts() for key in named_keys(text)}
    assert {"dataset.root", "distill.terms.sp.stage", "student.checkpoint", "teacher.name", "peers.args"} <= {
        re.sub(r"\[[^\]]*\]", "", key) for key in found
    }
    assert len(found) > 150


PASSED = """
def check(role, size):
    raise UserError(f"{role}.image_size={size}: too small; set {role}.checkpoint=PATH")

def caller(which):
    check(which, 4)

caller("student")
caller("WHO")
"""
LOOPED = """
def check(config):
    for key in ("epochs", "KEY"):
        raise UserError(f"trainer.{key}: must be at least 1")
"""


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("""raise UserError("eval.image_size=4: too small")""", {"eval.image_size"}),
        ("""raise UserError(f"set assistant.checkpoint={path}")""", {"assistant.checkpoint"}),
        ("""raise UserError("teacher.head=false: set head=true")""", {"head"}),
        ("""raise UserError(f"teacher.members[{n}].wait={v}: must be above 0")""", {"teacher.members[\0].wait"}),
        ("""raise UserError("distill.terms.kl.weigth: misspelt")""", {"distill.terms.kl.weigth"}),
        ("""raise UserError("distill.terms.kd.weight: no such term")""", {"distill.terms.kd.weight"}),
        (PASSED.replace("WHO", "assistant"), {"assistant.image_size", "assistant.checkpoint"}),
        (PASSED.replace("WHO", "teacher"), set()),
        (LOOPED.replace("KEY", "epoch"), {"trainer.epoch"}),
        (LOOPED.replace("KEY", "batch_size"), set()),
        ("""say(f"teacher.assistants[{n}].name={name} in runs/teacher.json; see dataset=NAME")""", set()),
    ],
)
def test_a_key_that_does_not_exist_is_found(text: str, unknown: set[str]) -> None:
    assert {key for _, key in unknown_keys(Package({"a.py": ast.parse(text)}))} == unknown

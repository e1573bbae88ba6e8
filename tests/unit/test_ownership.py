"""State has one owner: no module assigns a field of a class that another module defines.

The check reads the source. A target `x.field = ...` is a finding unless `x` is `self` or `cls`, or its class, where the
annotations tell it, is of the same module. Where they don't, every class that has such a field counts, so that the
check errs towards a finding: an annotation, or a method on the owner, settles it. Only what is annotated as argparse's
Namespace is nobody's: its fields are there to be assigned.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nfq_failover

PACKAGE = Path(nfq_failover.__file__).parent
Sources = dict[str, str]  # module name -> its text
Fields = dict[tuple[str, str], dict[str, str]]  # (module, class) -> field -> class name of its value, "" if unknown
Functions = dict[str, str]  # name of a function or method -> class name of what it returns; "" if there are several


def _class_name(annotation: ast.expr | None) -> str:
    """The class that an annotation names: `X`, `X | None`, `m.X`; of a container what it holds. Empty if none."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.Name):
        return annotation.id
    if isinstance(annotation, ast.Attribute):
        return annotation.attr
    if isinstance(annotation, ast.BinOp):
        return _class_name(annotation.left) or _class_name(annotation.right)
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice.elts[-1] if isinstance(annotation.slice, ast.Tuple) else annotation.slice
        if isinstance(inner, ast.Constant) and inner.value is Ellipsis and isinstance(annotation.slice, ast.Tuple):
            inner = annotation.slice.elts[0]
        return _class_name(inner)
    return ""


class _Scope:
    """What the names of one function are, as far as it is written down."""

    def __init__(self, owner: str, module: str, fields: Fields, functions: Functions) -> None:
        self.names: dict[str, str] = {"self": owner, "cls": owner}
        self.module = module
        self.fields = fields
        self.functions = functions
        self.classes = {name for _, name in fields}

    def arguments(self, function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        """Take the annotations of the parameters."""
        args = function.args
        for argument in (*args.posonlyargs, *args.args, *args.kwonlyargs):
            if argument.arg not in ("self", "cls"):
                self.names[argument.arg] = _class_name(argument.annotation)

    def type_of(self, value: ast.expr | None) -> str:
        """The class of an expression (of a container: of what it holds), empty if unknown."""
        if isinstance(value, ast.Name):
            return self.names.get(value.id, "")
        if isinstance(value, ast.Attribute):
            owner = self.type_of(value.value)
            found = {table.get(value.attr, "") for (_, name), table in self.fields.items() if name == owner}
            return found.pop() if len(found) == 1 else ""
        if isinstance(value, ast.Subscript):
            return self.type_of(value.value)
        if isinstance(value, ast.BoolOp):
            return next((name for name in map(self.type_of, value.values) if name), "")
        if isinstance(value, ast.IfExp):
            return self.type_of(value.body) or self.type_of(value.orelse)
        if isinstance(value, ast.Call):
            return self._called(value)
        return ""

    def _called(self, call: ast.Call) -> str:
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if isinstance(call.func, ast.Attribute):
            name = call.func.attr
            if name in ("get", "pop", "popleft", "values", "items", "setdefault", "copy"):
                return self.type_of(call.func.value)
        if name in ("list", "tuple", "sorted", "reversed", "iter", "next") and call.args:
            return self.type_of(call.args[0])
        return name if name in self.classes else self.functions.get(name, "")

    def bind(self, target: ast.expr, value: ast.expr) -> None:
        """Note what a name becomes."""
        if isinstance(target, ast.Name):
            self.names[target.id] = self.type_of(value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, other in zip(target.elts, value.elts, strict=True):
                self.bind(one, other)
        elif isinstance(target, ast.Tuple) and target.elts:
            self.bind(target.elts[-1], value)  # `for key, value in table.items()`


def _targets(node: ast.AST) -> Iterator[ast.Attribute]:
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
        yield node
    elif isinstance(node, ast.Tuple | ast.List | ast.Starred):
        for child in ast.iter_child_nodes(node):
            yield from _targets(child)


def _tables(sources: Sources) -> tuple[Fields, Functions]:
    """The fields of every class, and what functions return."""
    fields: Fields = {}
    returns: Functions = {}
    for module, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                table = fields.setdefault((module, node.name), {})
                for item in node.body:
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        table[item.target.id] = _class_name(item.annotation)
            if isinstance(node, ast.FunctionDef):
                result = _class_name(node.returns)
                returns[node.name] = result if returns.get(node.name, result) == result else ""
    for module, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ClassDef):
                continue
            table = fields[module, node.name]
            for method in (one for one in node.body if isinstance(one, ast.FunctionDef)):
                scope = _Scope(node.name, module, fields, returns)
                scope.arguments(method)
                if any(isinstance(d, ast.Name) and d.id == "property" for d in method.decorator_list):
                    table.setdefault(method.name, _class_name(method.returns))
                for statement in ast.walk(method):
                    pairs: list[tuple[ast.expr, str]] = []
                    if isinstance(statement, ast.AnnAssign):
                        pairs = [(statement.target, _class_name(statement.annotation))]
                    elif isinstance(statement, ast.Assign):
                        pairs = [(target, scope.type_of(statement.value)) for target in statement.targets]
                    for target, name in pairs:
                        for one in _targets(target):
                            if isinstance(one.value, ast.Name) and one.value.id == "self":
                                table[one.attr] = table.get(one.attr) or name
    return fields, returns


def _findings_in(
    node: ast.AST, scope: _Scope, owner: str, fields: Fields, returns: Functions
) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        inner = _Scope(owner, scope.module, fields, returns)
        inner.names.update(scope.names)
        inner.arguments(node)
        scope = inner
    elif isinstance(node, ast.ClassDef):
        owner = node.name
        scope = _Scope(owner, scope.module, fields, returns)
    elif isinstance(node, ast.For | ast.comprehension):
        scope.bind(node.target, node.iter)
    elif isinstance(node, ast.NamedExpr):
        scope.bind(node.target, node.value)
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
        for target in targets:
            scope.bind(target, node.value)
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
        if isinstance(node.target, ast.Name):
            scope.names[node.target.id] = _class_name(node.annotation)
    elif isinstance(node, ast.AugAssign | ast.For):
        targets = [node.target]
    elif isinstance(node, ast.Delete):
        targets = node.targets
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
        yield node.lineno, f"{node.func.id}()"
    for target in targets:
        for one in _targets(target):
            if isinstance(one.value, ast.Name) and one.value.id in ("self", "cls"):
                continue
            owners = {module for (module, _), table in fields.items() if one.attr in table}
            name = scope.type_of(one.value)
            if name == "Namespace" and name not in scope.classes:
                continue
            if name:
                owners = {module for (module, known) in fields if known == name} or owners
            if owners != {scope.module}:
                yield one.lineno, f"{ast.unparse(one.value)}.{one.attr}"
    for child in ast.iter_child_nodes(node):
        yield from _findings_in(child, scope, owner, fields, returns)


def findings(sources: Sources, checked: str) -> list[str]:
    """`module:line target` of each assignment to another module's field; `checked` begins the modules' names."""
    fields, returns = _tables(sources)
    found = []
    for module, text in sources.items():
        if module.startswith(checked):
            scope = _Scope("", module, fields, returns)
            tree = ast.parse(text)
            found += [f"{module}:{line} {what}" for line, what in _findings_in(tree, scope, "", fields, returns)]
    return found


def package() -> Sources:
    """The package's own modules, by dotted name."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text() for path in paths}


def test_no_module_assigns_a_field_of_another_modules_class() -> None:
    sources = package()
    assert {name.split(".")[0] for name in sources} >= {"core", "wire", "config", "shell", "operator", "lab"}
    found = findings(sources, "")
    assert not found, "\n".join(found)


OWNER = """
class Box:
    def __init__(self) -> None:
        self.lid = 0

    def open(self) -> None:
        self.lid = 1
"""


@pytest.mark.parametrize(
    "planted",
    [
        "def f(box: Box) -> None:\n    box.lid = 1",
        "def f(box: Box | None) -> None:\n    box.lid += 1",
        "def f(boxes: dict[int, Box]) -> None:\n    for box in boxes.values():\n        box.lid = 1",
        "def f(boxes: dict[int, Box]) -> None:\n    boxes[1].lid = 1",
        "def f(box):\n    box.lid, other = 1, 2",
        "def f() -> None:\n    box = Box()\n    del box.lid",
        "class Shelf:\n    def __init__(self, box: Box) -> None:\n        self.box = box\n        self.box.lid = 1",
        "class Shelf:\n    lid = 0\n    def f(self, box: Box) -> None:\n        box.lid = 1",
        "class Shelf:\n    def __init__(self):\n        self.lid = 0\n    def f(self, box):\n        box.lid = 1",
        "def f(box: Box) -> None:\n    setattr(box, 'lid', 1)",
        "f = lambda box: setattr(box, 'lid', 1)",
        "def f(box: Box) -> None:\n    def g() -> None:\n        box.lid = 1",
    ],
)
def test_the_check_finds_a_planted_case(planted: str) -> None:
    assert len(findings({"core.box": OWNER, "core.shelf": planted}, "core")) == 1


@pytest.mark.parametrize(
    "honest",
    [
        "class Shelf:\n    def __init__(self) -> None:\n        self.lid = 0",
        "def f(box: Box) -> None:\n    box.open()",
        "class Lid:\n    def __init__(self):\n        self.size = 0\ndef f(lid: Lid):\n    lid.size = 1",
        "class Lid:\n    def __init__(self):\n        self.lid = 0\ndef f(one: Lid):\n    one.lid = 1",
        "def f(arguments: argparse.Namespace) -> None:\n    arguments.lid = 1",
    ],
)
def test_the_check_lets_an_owner_be(honest: str) -> None:
    assert not findings({"core.box": OWNER, "core.shelf": honest}, "core")

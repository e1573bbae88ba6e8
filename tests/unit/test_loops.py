"""Every loop of the daemon says why it comes to an end, and nothing calls itself.

One loop that doesn't end stops all connections of a host: no other input is taken meanwhile. What is said here is held
by tests/property/test_core_ends.py.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nfq_failover

PACKAGE = Path(nfq_failover.__file__).parent
SOURCES = sorted(path for room in ("core", "wire", "shell") for path in (PACKAGE / room).rglob("*.py"))


def unexplained(text: str) -> list[int]:
    """The lines with a `while` that has no `Ends:` in its line, nor in the comment right above it."""
    lines = text.splitlines()
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.While):
            at = node.lineno - 1
            about = lines[at].partition("#")[2]
            while at and lines[at - 1].lstrip().startswith("#"):
                at -= 1
                about += lines[at]
            if "Ends: " not in about:
                found.append(node.lineno)
    return found


def recursive(text: str) -> list[str]:
    """The functions that call themselves by name, or by `self.name`."""
    found = []
    tree = ast.parse(text)
    methods = {part for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for part in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
            plain = node not in methods and any(isinstance(c, ast.Name) and c.id == node.name for c in calls)
            own = [call.value for call in calls if isinstance(call, ast.Attribute) and call.attr == node.name]
            if plain or any(isinstance(value, ast.Name) and value.id in ("self", "cls") for value in own):
                found.append(node.name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_loops_say_why_they_end(path: Path) -> None:
    text = path.read_text()
    assert not unexplained(text)
    assert not recursive(text)


def test_the_check_sees_what_it_is_for() -> None:
    assert unexplained("# Starts: here.\nwhile a:\n    pass\n") == [2]
    assert not unexplained("# Long text.\n# Ends: soon.\nwhile a:\n    pass\nwhile b:  # Ends: too.\n    pass\n")
    assert unexplained("# Ends: soon.\nx = 1\nwhile a:\n    pass\n") == [3]
    assert recursive("def f(n):\n    return f(n - 1)\nclass A:\n    def g(self):\n        self.g()\n") == ["f", "g"]
    assert not recursive("class A:\n    def g(self):\n        self.other.g()\n")

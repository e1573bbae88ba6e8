"""Commands are lists of words: nothing that comes from a configuration, a file or the network is read by a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nfq_failover"
FILES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN_CALLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "eval", "exec"}
FORBIDDEN_NAMES = {"asyncio.create_subprocess_shell", "pty.spawn"}
SHELLS = {"sh", "bash", "dash", "/bin/sh", "/bin/bash"}
IN_THE_LAB = PACKAGE / "lab"  # its commands are its own constants, and it needs root in namespaces of its own


def findings(source: str, lab: bool = False) -> Iterator[str]:
    """What in a module hands text to a shell, or to the interpreter."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS | FORBIDDEN_NAMES or name.startswith("os.spawn"):
                yield name
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg == "shell" and not off:
                    yield "shell="
        elif isinstance(node, ast.List | ast.Tuple) and not lab:
            words = [each.value for each in node.elts if isinstance(each, ast.Constant)]
            if "-c" in words and SHELLS & set(words):
                yield "sh -c"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_uses_a_shell(path: Path) -> None:
    assert list(findings(path.read_text(), IN_THE_LAB in path.parents)) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("subprocess.run(text, shell=True)", "shell="),
        ("subprocess.run(text, shell=maybe)", "shell="),
        ("import os\nos.system(text)", "os.system"),
        ("os.popen(text)", "os.popen"),
        ("subprocess.run(['sh', '-c', text])", "sh -c"),
        ("eval(text)", "eval"),
    ],
)
def test_what_is_forbidden_is_found(source: str, found: str) -> None:
    assert list(findings(source)) == [found]
    assert list(findings("subprocess.run(['ip', 'link'], shell=False)")) == []

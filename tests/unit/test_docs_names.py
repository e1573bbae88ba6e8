"""Classes, functions and fields that the pages name are there, in the file that is named beside them.

`core/pair/link.py: Link.receive` in backquotes is a name in a file; there may be several, with commas between them.
A name of a class alone, or of its member (`AckGate.release`), may be in any file of the package or of the tests.
"""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "vagrant/README.md")),
]
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
IN_FILE = re.compile(r"`([\w./]+\.py):\s+([\w.,\s]+)`")
WALL = re.compile(r"^    (\w+) +(\S.* / .*)$", re.MULTILINE)
MEMBER = re.compile(r"`(\w+)\.(?!py`|json`|sock`)(\w+)`")
CLASS = re.compile(r"`([A-Z][a-z]+(?:[A-Z][a-z]*)+)`")
NOT_OURS = {"NetfilterQueue", "VirtualBox"}
TSHARK = "tcp"  # tcp.seq_raw is a field of tshark's


def targets(node: ast.AST) -> list[ast.expr]:
    """Returns what a statement assigns to."""
    found = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [part for one in found for part in (one.elts if isinstance(one, ast.Tuple) else [one])]


def members(node: ast.stmt) -> list[str]:
    """Returns what a statement in a class's body makes: a method with the fields that it sets, or class variables."""
    if not isinstance(node, ast.FunctionDef):
        return [one.id for one in targets(node) if isinstance(one, ast.Name)]
    return [node.name] + [
        one.attr
        for inner in ast.walk(node)
        for one in targets(inner)
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "self"
    ]


@cache
def names_in(path: Path) -> frozenset[str]:
    """Returns what a module defines: `f`, `CONSTANT`, `Class`, and of each class `Class.method` and `Class.field`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        found.update(one.id for one in targets(node) if isinstance(one, ast.Name))
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found.update(f"{node.name}.{member}" for part in node.body for member in members(part))
    return frozenset(found)


@cache
def all_names() -> tuple[frozenset[str], frozenset[str]]:
    """Returns all names of package and tests, and the names of all modules."""
    paths = [*(ROOT / "nfq_failover").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    names = {name for path in paths for name in names_in(path)}
    return frozenset(names | {f"{path.stem}.{name}" for path in paths for name in names_in(path)}), frozenset(
        path.stem for path in paths
    )


def file_named(name: str) -> Path:
    """Returns the file, from the package or the root on; StopIteration if there is none."""
    return next(path for path in (ROOT / "nfq_failover" / name, ROOT / name) if path.exists())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_are_in_the_files_named(page: Path) -> None:
    missing = [
        f"{path}: {name}"
        for path, names in IN_FILE.findall(page.read_text())
        for name in re.split(r",\s+", names)
        if name not in names_in(file_named(path))
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_classes_and_their_members_are_somewhere(page: Path) -> None:
    text = CODE.sub("", page.read_text())
    names, modules = all_names()
    classes = set(CLASS.findall(text)) - NOT_OURS
    dotted = [(owner, member) for owner, member in MEMBER.findall(text) if owner != TSHARK]
    classes |= {owner for owner, _ in dotted if CLASS.fullmatch(f"`{owner}`")}
    assert (classes | {f"{owner}.{member}" for owner, member in dotted if owner in names | modules}) - names == set()


def test_a_name_that_is_not_there_is_found() -> None:
    names = names_in(ROOT / "nfq_failover" / "core" / "pair" / "link.py")
    assert {"Link", "Link.receive", "Link.lane"} <= names
    assert not {"Link.nothing", "receive", "lane"} & names


def test_the_walls_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    walls = {}
    for contract in contracts:
        if contract["type"] == "layers":
            room = contract.get("containers", ["package"])[0].rsplit(".", 1)[-1]
            walls[room] = " / ".join(contract["layers"]).replace("nfq_failover.", "")
    assert dict(WALL.findall((ROOT / "docs" / "develop" / "layout.md").read_text())) == walls

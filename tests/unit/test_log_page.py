"""docs/operate/log.md has every event that the daemon may log, with its level."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/operate/log.md"
ROW = re.compile(r"^\| ([a-z, ]+) \| `([^`]+)` \| .+ \|$", re.MULTILINE)
LEVELS = ("debug", "info", "warning", "error")
VARIES = ""


def _text(node: ast.expr) -> str:
    """A literal; what is filled in later is written as on the page."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return VARIES


def _calls(path: Path) -> Iterator[tuple[str, str, str]]:
    """(level, event, where) of each call that logs."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        where, name = f"{path.relative_to(ROOT)}:{node.lineno}", node.func.attr
        if name in LEVELS and ast.unparse(node.func.value) == "log":
            yield name, _text(node.args[0]), where
        elif name in ("log", "_log") and len(node.args) == 2 and _text(node.args[1]):
            yield _text(node.args[0]), _text(node.args[1]), where


def said() -> list[tuple[str, str, str]]:
    rooms = [ROOT / "nfq_failover" / room for room in ("core", "shell", "config", "operator")]
    paths = [ROOT / "nfq_failover/cli.py", *(path for room in rooms for path in sorted(room.rglob("*.py")))]
    return [call for path in paths for call in _calls(path)]


def rows() -> dict[str, tuple[str, ...]]:
    return {event: tuple(levels.split(", ")) for levels, event in ROW.findall(PAGE.read_text())}


def test_every_event_is_on_the_page_with_its_level() -> None:
    page, wrong = rows(), []
    for level, event, where in said():
        levels = page.get(event, ())
        if not event or (level not in levels if level else len(levels) < 2):
            wrong.append(f"{where}: '{event}' at {level or 'several levels'}: put it into docs/operate/log.md")
    assert not wrong, "\n".join(wrong)


def test_every_row_is_an_event() -> None:
    events = {event for _, event, _ in said()}
    assert len(events) > 40
    assert not set(rows()) - events


def test_levels_of_the_page_are_those_that_the_code_has() -> None:
    told: dict[str, set[str]] = {}
    for level, event, _ in said():
        told.setdefault(event, set()).add(level)
    for event, levels in rows().items():
        assert VARIES in told[event] or told[event] == set(levels), event
        assert set(levels) <= set(LEVELS)

"""A setting that a running daemon can be given is read when it is needed: no part of the core keeps what it was."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from nfq_failover.config.schema import SECTIONS, Change

CORE = Path(__file__).parents[3] / "nfq_failover" / "core"
LIVE = {one.core for part in SECTIONS for one in part.settings if one.core and one.change is not Change.RESTART}
LIVE |= {"health_checked", "checks_target"}  # which follow from whether there are checks and targets
# What is per connection is taken when it begins, as docs/operate/configuration.md says.
PER_CONNECTION = {("shadow/connection.py", "max_unacked_bytes"), ("shadow/connection.py", "max_log_bytes")}
# A copy that `Sharing.applied` brings up to date with the rules, whose ports these are.
PER_CONNECTION |= {("pair/sharing.py", "ports")}


def kept() -> Iterator[tuple[str, str, int]]:
    """(module, setting, line) of each value that is put into a field when an object is made."""
    for path in sorted(CORE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or node.name != "__init__":
                continue
            for line in node.body:
                if isinstance(line, ast.Assign | ast.AnnAssign | ast.Expr) and line.value is not None:
                    for part in ast.walk(line.value):
                        if isinstance(part, ast.Attribute) and "settings" in ast.unparse(part.value):
                            yield str(path.relative_to(CORE)), part.attr, part.lineno


def test_no_part_keeps_a_live_setting() -> None:
    found = list(kept())
    assert len(found) > 10  # what takes a restart may be kept
    wrong = [each for each in found if each[1] in LIVE and each[:2] not in PER_CONNECTION]
    assert not wrong, wrong


def test_what_is_excused_is_there() -> None:
    assert {each[:2] for each in kept()} >= PER_CONNECTION

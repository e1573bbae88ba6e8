"""The diagrams of states in docs/design are the code's own tables."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DRAWN = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "design" / "states.py"))


@pytest.mark.parametrize("path", DRAWN["PAGES"], ids=lambda path: path.name)
def test_the_diagrams_are_up_to_date(path: Path) -> None:
    text = path.read_text()
    assert DRAWN["page"](text, DRAWN["PAGES"][path]) == text, "run: .venv/bin/python docs/design/states.py --write"

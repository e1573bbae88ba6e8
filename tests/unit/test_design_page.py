"""The state diagram in docs/design.md is the code's own table."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_diagram_is_up_to_date() -> None:
    text = (DOCS / "design.md").read_text()
    page = runpy.run_path(str(DOCS / "states.py"))["page"]
    assert page(text) == text, "run: .venv/bin/python docs/states.py --write"

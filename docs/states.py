"""Draws the state diagram in design.md from the code's own table.

python docs/states.py            print it
python docs/states.py --write    put it into design.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from nfq_failover.core.pair.roles import TRANSITIONS, Input, State

BEGIN, END = "<!-- states:begin -->", "<!-- states:end -->"
PAGE = Path(__file__).parent / "design.md"


def diagram() -> str:
    """Mermaid text: one arrow per pair of states, labelled with all inputs that lead along it."""
    arrows: dict[tuple[State, State], list[Input]] = {}
    for (before, given), after in TRANSITIONS.items():
        if given is not Input.STOP:
            arrows.setdefault((before, after), []).append(given)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> WAITING"]
    for (before, after), given in arrows.items():
        label = ", ".join(one.name.lower().replace("_", " ") for one in given)
        lines.append(f"    {before.name} --> {after.name}: {label}")
    lines += ["```", "", "`STOP` leads from every state to LEAVING. What the inputs mean:", ""]
    lines += [f"- **{one.name.lower().replace('_', ' ')}**: {one.value}" for one in Input]
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with the diagram in its place."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{diagram()}\n{END}{tail}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(PAGE.read_text()))
    else:
        print(diagram())

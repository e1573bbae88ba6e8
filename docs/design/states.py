"""Draws the diagrams of states in the pages of this folder from the code's own tables.

python docs/design/states.py            prints them
python docs/design/states.py --write    puts each into its page, between `<!-- NAME:begin -->` and `<!-- NAME:end -->`
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from nfq_failover.core.gate.connection import GATE_MOVES, GATE_STARTS
from nfq_failover.core.pair.roles import TRANSITIONS, Input, State
from nfq_failover.core.shadow.connection import SHADOW_MOVES, SHADOW_STARTS, SHADOW_STOPS


def hosts() -> str:
    """Returns Mermaid text: one arrow per pair of a host's states, labelled with all inputs that lead along it."""
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


def gate() -> str:
    """Returns Mermaid text: one arrow for each move of a connection on the host that protects it."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {state.name}: {why}" for state, why in GATE_STARTS.items()]
    lines += [f"    {before.name} --> {after.name}: {why}" for (before, after), why in GATE_MOVES.items()]
    lines += ["    CLOSED --> [*]", "    HANDED --> [*]: the backup goes on with it, or it is lost", "```"]
    return "\n".join(lines)


def shadow() -> str:
    """Returns Mermaid text: one arrow for each move of a connection on the host that shadows it, or took it over."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {state.name}: {why}" for state, why in SHADOW_STARTS.items()]
    lines += [f"    {before.name} --> {after.name}: {why}" for (before, after), why in SHADOW_MOVES.items()]
    lines += [f"    {state.name} --> [*]: {why}" for state, why in SHADOW_STOPS.items()]
    return "\n".join([*lines, "```"])


PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    Path(__file__).parent / "pair.md": {"states": hosts},
    Path(__file__).parent / "connection.md": {"gate": gate, "shadow": shadow},
}


def page(text: str, diagrams: dict[str, Callable[[], str]]) -> str:
    """Returns the page's text with each diagram in its place; ValueError if a page lacks a place."""
    for name, draw in diagrams.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, rest = text.split(begin)
        _, tail = rest.split(end)
        text = f"{head}{begin}\n{draw()}\n{end}{tail}"
    return text


if __name__ == "__main__":
    for path, diagrams in PAGES.items():
        if "--write" in sys.argv[1:]:
            path.write_text(page(path.read_text(), diagrams))
        else:
            print("\n\n".join(draw() for draw in diagrams.values()))

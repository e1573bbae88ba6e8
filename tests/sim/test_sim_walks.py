"""The walks of docs/develop/layout.md are what happens: a simulated run is traced, and each step is looked up."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import nfq_failover
from nfq_failover.core import events
from nfq_failover.core.events import Effect, Event
from nfq_failover.core.node import Node

from .scenario import from_json, named
from .world import SimWorld

PAGE = Path(__file__).parents[2] / "docs" / "develop" / "layout.md"
PACKAGE = str(Path(nfq_failover.__file__).parent) + "/"
SCENARIO = "small-takeover"
WALK = re.compile(r"^### (.*?)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
STEP = re.compile(r"^\d+\. On the \*(\w+)\*, `(\w+)`: (.*?)(?=^\d+\. |\n\n|\Z)", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`([\w/]+\.py):\s+([\w.,\s]+)`|`(\w+)`")


@dataclass(frozen=True)
class Step:
    """What the page says: the host's role, the event or call, the functions and the effects, in order."""

    role: str
    given: str
    functions: tuple[str, ...]
    effects: tuple[str, ...]


@dataclass
class Call:
    """What happened: one call of a node."""

    role: str
    given: str
    functions: list[str]
    effects: list[str]


def steps() -> dict[str, list[Step]]:
    """Returns the steps of each walk; functions of the shell, which the simulator has no part of, are left out."""
    found: dict[str, list[Step]] = {}
    for title, text in WALK.findall(PAGE.read_text()):
        found[title] = []
        for role, given, rest in STEP.findall(text):
            functions, effects = [], []
            for path, names, word in NAMED.findall(rest):
                if path.startswith(("core/", "wire/")):
                    functions += [f"{path}: {name}" for name in re.split(r",\s+", names)]
                elif word and issubclass(getattr(events, word, object), Effect.__args__):
                    effects.append(word)
            found[title].append(Step(role, given, tuple(functions), tuple(effects)))
    return found


@contextmanager
def traced(calls: list[Call]) -> Iterator[None]:
    """Has each call of any node written down."""
    handle, poll_effect = Node.handle, Node.poll_effect

    def record(node: Node, given: str, function: Any, *arguments: object) -> Any:
        call = Call(node.members.role.name.lower(), given, [], [])

        def note(frame: FrameType, what: str, _: object) -> None:
            code = frame.f_code
            if what == "call" and code.co_filename.startswith(PACKAGE):
                call.functions.append(f"{code.co_filename.removeprefix(PACKAGE)}: {code.co_qualname}")

        sys.setprofile(note)
        try:
            result = function(node, *arguments)
        finally:
            sys.setprofile(None)
        call.effects = [type(effect).__name__ for effect in ([result] if result else node.out.effects)]
        calls.append(call)
        return result

    def traced_handle(node: Node, event: Event, now: float) -> None:
        record(node, type(event).__name__, handle, event, now)

    def traced_poll(node: Node) -> Effect | None:
        effect: Effect | None = record(node, "poll_effect", poll_effect)
        return effect

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "handle", traced_handle)
        patch.setattr(Node, "poll_effect", traced_poll)
        yield


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    found: list[Call] = []
    with traced(found):
        SimWorld(from_json(named()[SCENARIO].read_text())).run()
    return found


def contains(whole: list[str], part: tuple[str, ...]) -> bool:
    """Tells whether `part` is in `whole`, in this order, whatever lies between."""
    rest = iter(whole)
    return all(one in rest for one in part)


def happens(step: Step, call: Call) -> bool:
    """Tells whether a call is what the step says."""
    return (
        (step.role, step.given) == (call.role, call.given)
        and contains(call.functions, step.functions)
        and contains(call.effects, step.effects)
    )


@pytest.mark.parametrize("title", ["A packet", "A Confirm", "A takeover"])
def test_a_walk_is_what_happens(calls: list[Call], title: str) -> None:
    walk = steps()[title]
    assert len(walk) >= 2
    at = 0
    for step in walk:
        assert step.functions
        at = next((i for i in range(at, len(calls)) if happens(step, calls[i])), -1) + 1
        assert at, f"no {step.given} on the {step.role} goes this way: {step}"


def test_a_walk_that_is_not_right_is_found(calls: list[Call]) -> None:
    step = steps()["A Confirm"][1]
    assert any(happens(step, call) for call in calls)
    swapped = Step(step.role, step.given, step.functions[::-1], step.effects)
    assert not any(happens(swapped, call) for call in calls)

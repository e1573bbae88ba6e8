"""The daemon's wake-up and its answers to operators, with services that only take notes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from nfq_failover.shell.daemon import Daemon


class Notes:
    """Two services and what they were told, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.statuses: list[str] = []
        self.alive = 0
        manager = SimpleNamespace(alive=self._alive, status=self.statuses.append)
        self.daemon = Daemon(SimpleNamespace(manager=manager))  # type: ignore[arg-type]  # never started

    def _alive(self, now: float) -> None:
        del now
        self.alive += 1

    def add(self, name: str, **found: Any) -> None:
        """A service; `found`: what its steps return."""

        def step(word: str) -> Callable[..., Any]:
            def take(*_: object) -> Any:
                self.said.append(f"{word} {name}")
                return found.get(word, True)

            return take

        words = ("before_wait", "read_sync", "read_packets", "let_time_pass", "end")
        answers = {
            "state": f"state of {name}",
            "summary": lambda: f"summary of {name}",
            "status": lambda: {"status": name},
            "claim": lambda: {"claimed": name},
        }
        self.daemon.services.append(
            SimpleNamespace(name=name, **answers, **{word: step(word) for word in words})  # type: ignore[arg-type]
        )

    def turn(self) -> list[str]:
        """What one wake-up has told them."""
        self.said.clear()
        self.daemon._turn()
        return list(self.said)


@pytest.fixture
def notes() -> Iterator[Notes]:
    made = Notes()
    yield made
    made.daemon._loop.close()


def test_a_wake_up_takes_news_first_then_answers_then_packets_then_time(notes: Notes) -> None:
    notes.add("one")
    notes.add("two")
    ready = os.eventfd(1)
    notes.daemon._loop.watch(ready, lambda: notes.said.append("an answer"))
    steps = ("before_wait", "read_sync", None, "read_packets", "let_time_pass")
    expected = [f"{step} {name}" if step else "an answer" for step in steps for name in ("one", "two")]
    expected.remove("an answer")
    assert notes.turn() == expected
    os.close(ready)


@pytest.mark.parametrize("stuck", ["one", "two"])
def test_a_service_without_progress_is_not_said_to_be_alive(notes: Notes, stuck: str) -> None:
    for name in ("one", "two"):
        notes.add(name, before_wait=name != stuck)
    notes.turn()
    assert notes.alive == 0


def test_the_service_manager_hears_of_a_new_state_once(notes: Notes) -> None:
    notes.add("one", let_time_pass=True)
    notes.add("two", let_time_pass=False)
    notes.turn()
    assert (notes.alive, notes.statuses) == (1, ["summary of one; summary of two"])
    notes.daemon.services.pop(0)
    notes.turn()
    assert len(notes.statuses) == 1


def test_an_only_service_is_meant_by_every_command(notes: Notes) -> None:
    notes.add("10.77.0.100")
    ask = notes.daemon._control
    assert ask("status", {}) == {"status": "10.77.0.100"}
    assert ask("claim", {}) == {"claimed": "10.77.0.100"}
    assert ask("ping", {}) == {"pong": True}
    assert "unknown command 'dance'" in ask("dance", {})["error"]


def test_of_several_services_one_has_to_be_named(notes: Notes) -> None:
    notes.add("10.77.0.100")
    notes.add("10.77.0.200")
    ask = notes.daemon._control
    assert ask("status", {"service": "10.77.0.200"}) == {"status": "10.77.0.200"}
    assert ask("claim", {"service": "10.77.0.100"}) == {"claimed": "10.77.0.100"}
    for request in ({}, {"service": "10.77.0.3"}):
        assert ask("status", request) == {"error": "name one 'service' of 10.77.0.100, 10.77.0.200"}


def test_leave_ends_every_service_for_good(notes: Notes) -> None:
    notes.add("one")
    notes.add("two")
    assert notes.daemon._control("leave", {}) == {"state": "state of one, state of two"}
    notes.daemon._serve()
    assert notes.said[-2:] == ["end one", "end two"]
    assert notes.daemon._for_good

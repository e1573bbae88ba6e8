"""A real event loop for one thing that takes time, and what it answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from nfq_failover.core.events import Event
from nfq_failover.shell.loop import Loop


class Turns:
    """As much of the daemon as a fence or a check needs: `loop` to be watched by, and `answer`."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.answers: list[Event] = []

    def answer(self, event: Event) -> None:
        """Keep it."""
        self.answers.append(event)

    @property
    def watched(self) -> set[int]:
        """The descriptors that the loop still waits for."""
        return set(self.loop._readers)

    def turn(self, tick: Callable[[float], object] = lambda now: None) -> None:
        """One wake-up, which never waits long, and one tick."""
        now = time.monotonic()
        self.loop.serve(self.loop.wait(now, 0.02))
        tick(time.monotonic())

    def until_answered(self, tick: Callable[[float], object], seconds: float = 20.0) -> Event:
        """The first answer, when it has come."""
        give_up = time.monotonic() + seconds
        while not self.answers:
            assert time.monotonic() < give_up, "no answer"
            self.turn(tick)
        return self.answers[0]

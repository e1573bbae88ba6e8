"""Virtual time: one queue of calls, one seeded generator, nothing else moves."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any


class Clock:
    """Calls in the order of their time; equal times in the order of their making."""

    def __init__(self, seed: int) -> None:
        self.now = 1000.0
        self.random = Random(seed)
        self._calls: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call at `when`, or as soon as possible."""
        self._serial += 1
        heappush(self._calls, (max(when, self.now), self._serial, call, arguments))

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call in so many seconds."""
        self.at(self.now + seconds, call, *arguments)

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until `until`, or until `done`."""
        while self._calls and self._calls[0][0] <= until and not done():
            self.now, _, call, arguments = heappop(self._calls)
            call(*arguments)
        if not done():
            self.now = max(self.now, until)

"""Virtual time: one queue of calls, and each host's own idea of the time."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Clock:
    """Calls in the order of their time; equal times in the order of their making."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._calls: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call at the time `when`, or as soon as possible."""
        self._serial += 1
        heappush(self._calls, (max(when, self.now), self._serial, call, arguments))

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call when this many seconds have passed."""
        self.at(self.now + seconds, call, *arguments)

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until `until`, or until `done`."""
        while self._calls and self._calls[0][0] <= until and not done():
            self.now, _, call, arguments = heappop(self._calls)
            call(*arguments)
        if not done():
            self.now = max(self.now, until)


class HostClock:
    """A host's monotonic clock in seconds. It began to count somewhere, runs at its own rate and may jump forward."""

    def __init__(self, clock: Clock, rate: float = 1.0, origin: float = 0.0) -> None:
        self._clock, self.rate = clock, rate
        self._began, self._origin = clock.now, origin

    @property
    def now(self) -> float:
        """The time, as the host sees it."""
        return self._origin + (self._clock.now - self._began) * self.rate

    def when(self, own: float) -> float:
        """The virtual time at which this clock will show `own`, if it doesn't jump."""
        return self._began + (own - self._origin) / self.rate

    def jump(self, seconds: float) -> None:
        """The clock jumps forward by this much."""
        self._origin += seconds

"""The host's time of day, which the other host is told: their logs are read side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from nfq_failover.core.events import ClockRead
from nfq_failover.shell.selfcheck.checks import CHEAP_S

_SLEWS_S: Final = 0.05  # smaller steps are not told


def ahead_s() -> float:
    """How far the time of day, in seconds since 1970, is ahead of the monotonic clock."""
    return time.time() - time.monotonic()


class WallClockReader:
    """Reads it once a second. `read` is `ahead_s`."""

    def __init__(self, read: Callable[[], float] = ahead_s) -> None:
        self._read = read
        self._next = 0.0
        self._told: float | None = None

    def tick(self, now: float) -> ClockRead | None:
        """How the two clocks are, if it is time to read them and that has changed. `now` is of the monotonic clock."""
        if now < self._next:
            return None
        self._next = now + CHEAP_S
        read = self._read()
        if self._told is not None and abs(read - self._told) < _SLEWS_S:
            return None
        self._told = read
        return ClockRead(read)

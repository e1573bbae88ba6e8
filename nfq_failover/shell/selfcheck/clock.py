"""The monotonic clock runs at its rate: how long a backup may act is reckoned by two of them (docs/design/pair.md)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from nfq_failover.core.concerns import Concern, Weight

SPAN_S: Final = 10.0  # of one measurement; reading the two clocks takes microseconds


def _read() -> tuple[float, float]:
    return time.monotonic(), time.clock_gettime(time.CLOCK_MONOTONIC_RAW)


class ClockRate:
    """Compares the clock with the one that nobody steers. `tolerated`: by how much two hosts' may differ in rate."""

    name = "clock"
    every_s = SPAN_S

    def __init__(self, tolerated: float, read: Callable[[], tuple[float, float]] = _read) -> None:
        self._tolerated = tolerated
        self._read = read
        self._last = read()

    def run(self, now: float) -> list[Concern]:
        """See `Check`."""
        del now
        (was, raw_was), self._last = self._last, self._read()
        steered, raw = self._last[0] - was, self._last[1] - raw_was
        if raw < SPAN_S / 2:
            return []
        off = abs(steered / raw - 1)
        if off < self._tolerated / 4:
            return []
        what = f"something steers this host's clock by more than {self._tolerated / 4:.2%}"
        cure = "limit what the time daemon may slew (chrony: maxslewrate 500)"
        weight = Weight.WARNING if off < self._tolerated / 2 else Weight.DEGRADED
        return [Concern("clock-rate", weight, what, cure)]

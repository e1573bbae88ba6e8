"""Many deadlines, one earliest; and the ticks, at which everything is looked at."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
SLACK = 64  # entries of moved or cancelled deadlines that may stay in the heap, beyond as many as are armed


class Ticks:
    """When everything is looked at: every `interval_s`. Whoever had no tick for `pause_s` was paused."""

    def __init__(self, interval_s: float, pause_s: float, now: float) -> None:
        self._interval_s = interval_s
        self._pause_s = pause_s
        self._last = now
        self.due_at = now

    def paused(self, now: float) -> bool:
        """Whether this host has stood still since the last one."""
        return now - self._last > self._pause_s

    def took(self, now: float) -> None:
        """There is one now."""
        self._last = now
        self.due_at = now + self._interval_s


class TimerQueue(Generic[K]):
    """A queue with at most one deadline (seconds) per key."""

    def __init__(self) -> None:
        self._when: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._serial = 0

    @property
    def entries(self) -> int:
        """How many entries there are, including those that no longer count."""
        return len(self._heap)

    def set(self, key: K, when: float) -> None:
        """Arm or move the key's deadline."""
        if self._when.get(key) == when:
            return
        self._when[key] = when
        self._serial += 1
        heappush(self._heap, (when, self._serial, key))
        if len(self._heap) > 2 * len(self._when) + SLACK:
            self._heap = [(at, number, armed) for number, (armed, at) in enumerate(self._when.items())]
            heapify(self._heap)

    def set_earlier(self, key: K, when: float) -> None:
        """Arm the key's deadline unless it is armed for earlier."""
        have = self._when.get(key)
        if have is None or when < have:
            self.set(key, when)

    def cancel(self, key: K) -> None:
        """Disarm the key."""
        self._when.pop(key, None)

    def clear(self) -> None:
        """Disarm everything."""
        self._when.clear()
        self._heap.clear()

    def next(self) -> float | None:
        """The earliest deadline."""
        heap, when = self._heap, self._when
        # Ends: each turn takes an entry out.
        while heap and when.get(heap[0][2]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now: float) -> list[K]:
        """Disarm and return the keys that are due, earliest first."""
        due: list[K] = []
        if not self._heap or self._heap[0][0] > now:  # no entry is due, so none that counts
            return due
        # Ends: each turn takes an entry out, and nothing is armed here.
        while (first := self.next()) is not None and first <= now:
            key = heappop(self._heap)[2]
            if self._when.pop(key, None) is not None:
                due.append(key)
        return due

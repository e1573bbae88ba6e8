"""How fast bytes are asked for that a tap has lost: not faster than they arrive.

A host whose packets wait in its queues looks like one whose tap loses them: the primary is ahead of it all the time.
Asking for those bytes again and again makes it later still, and what arrives then keeps its heartbeats waiting. So
requests are paced by what is measured: how late the tap is, how long an answer takes, and how much is still to arrive.
"""

from __future__ import annotations

from collections import deque
from typing import Final

ALPHA: Final = 1 / 8  # of the averages, as of RFC 6298 section 2
BETA: Final = 1 / 4
TIMEOUT_FIRST_S: Final = 0.004
TIMEOUT_MIN_S: Final = 0.004
TIMEOUT_MAX_S: Final = 0.25
PATIENCE_MIN_S: Final = 0.002
PATIENCE_MAX_S: Final = 0.1
WINDOW_BYTES: Final = 256 * 1024


class Pace:
    """The pace of all connections of a host together, since they share the tap and the sync channel."""

    def __init__(self) -> None:
        self._answer_s: float | None = None
        self._variation_s = 0.0
        self._late_s = 0.0
        self._asked: deque[tuple[float, int]] = deque()  # when, and how many bytes have not come yet
        self._pending = 0

    @property
    def timeout_s(self) -> float:
        """How long an answer may take before it is taken for lost (RFC 6298 section 2)."""
        if self._answer_s is None:
            return TIMEOUT_FIRST_S
        return min(max(self._answer_s + 4 * self._variation_s, TIMEOUT_MIN_S), TIMEOUT_MAX_S)

    @property
    def patience_s(self) -> float:
        """How long the tap may be later than the primary before its bytes are taken for lost."""
        return min(max(2 * self._late_s, PATIENCE_MIN_S), PATIENCE_MAX_S)

    def tap_was_late(self, seconds: float) -> None:
        """The tap has brought, this many seconds late, what the primary had."""
        self._late_s += (seconds - self._late_s) * ALPHA

    def answered(self, seconds: float) -> None:
        """A request that was made only once was answered after this time (Karn: nothing is learned from others)."""
        if self._answer_s is None:
            self._answer_s, self._variation_s = seconds, seconds / 2
        else:
            self._variation_s += (abs(seconds - self._answer_s) - self._variation_s) * BETA
            self._answer_s += (seconds - self._answer_s) * ALPHA

    def room(self, now: float) -> int:
        """The number of bytes that may be asked for now."""
        asked, oldest = self._asked, now - 2 * self.timeout_s
        # Ends: each turn takes one out.
        while asked and asked[0][0] < oldest:
            self._pending -= asked.popleft()[1]
        return max(WINDOW_BYTES - self._pending, 0)

    def asked(self, count: int, now: float) -> None:
        """`count` bytes were asked for."""
        self._asked.append((now, count))
        self._pending += count

    def arrived(self, count: int) -> None:
        """`count` bytes have come that were asked for."""
        asked = self._asked
        # Ends: each turn takes one out, or `count` is used up.
        while asked and count:
            at, left = asked.popleft()
            used = min(left, count)
            count -= used
            self._pending -= used
            if left > used:
                asked.appendleft((at, left - used))

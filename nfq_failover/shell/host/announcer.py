"""When to announce the service address: fast at first, then less and less often until clients are heard, and from then
on once in a while.

An announcement is one broadcast frame, and any one may be lost: the switch may just be learning, the client's queue may
be full. A client that missed them all sends to a dead MAC until its own ARP entry is stale, a minute or more. A
packet for the service that arrives here proves that one neighbour has learnt it, not that all have; hence the refresh.
"""

from __future__ import annotations

FIRST_AT_S = (0.0, 0.02, 0.1, 0.5, 1.0)  # after the takeover, and then
LONGEST_S = 8.0  # the longest pause while no client is heard
PATIENCE_S = 120.0  # without a client for this long, only refreshes follow
BLIND_S = 0.1  # what arrives earlier may be a copy, made by the tap of the other host before it fell silent


class Announcer:
    """The schedule of announcements. Times are seconds of the monotonic clock."""

    def __init__(self, refresh_s: float) -> None:
        """`refresh_s`: between refreshes; 0 for none."""
        self._refresh_s = refresh_s
        self._began: float | None = None
        self._next: float | None = None
        self._first: list[float] = []
        self._gap_s = FIRST_AT_S[-1]
        self.sent = 0
        self.seen_after_s: float | None = None

    def refresh(self, every_s: float) -> None:
        """Repeat announcements this often; 0 for never."""
        self._refresh_s = every_s

    @property
    def waiting(self) -> bool:
        """Whether nobody has been heard since the announcements began."""
        return self._began is not None and self.seen_after_s is None

    def start(self, count: int, now: float) -> None:
        """Begin, with at least `count` announcements (0: none at all)."""
        self.stop()
        if count:
            self._began, self._next = now, now
            self._first = [now + at for at in FIRST_AT_S[1:count]]
            self._count = count

    def stop(self) -> None:
        """Announce no more."""
        self._began = self._next = self.seen_after_s = None
        self._gap_s = FIRST_AT_S[-1]
        self.sent = 0

    def heard(self, now: float) -> bool:
        """Note that a client's packet for the service has arrived. Returns whether it is the first one."""
        if self._began is None or self.seen_after_s is not None or now < self._began + BLIND_S:
            return False
        self.seen_after_s = now - self._began
        return True

    def due(self, now: float) -> bool:
        """Returns whether to announce now; if so, the next one is scheduled."""
        if self._next is None or now < self._next:
            return False
        self.sent += 1
        self._next = self._after(now)
        return True

    def _after(self, now: float) -> float | None:
        assert self._began is not None
        if self._first:
            return self._first.pop(0)
        if self.sent < self._count or (self.seen_after_s is None and now < self._began + PATIENCE_S):
            self._gap_s = min(2 * self._gap_s, LONGEST_S)
            return now + self._gap_s
        return now + self._refresh_s if self._refresh_s else None

    def describe(self) -> dict[str, object]:
        """Returns the announcements' row in the status."""
        seen = None if self.seen_after_s is None else round(self.seen_after_s * 1000)
        return {"announced": self.sent, "client_heard_after_ms": seen}

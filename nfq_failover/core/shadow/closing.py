"""What is left of a connection that is over: the primary is told, and our own TCP is waited for."""

from __future__ import annotations

CLOSED_S = 1.0  # how long a connection is kept that the primary's TCP has forgotten, unless ours finishes by itself
TELL_FIRST_S = 0.01
TELL_MAX_S = 10.0


class Closing:
    """The last part of one connection's life; times in seconds.

    `closed_at`: the primary's TCP has forgotten the connection. `gone_at`: our own TCP is known to be rid of it.
    `tell_s`: how long to wait before the primary is told again that we can't continue it; 0: no more.
    """

    __slots__ = ("closed_at", "gone_at", "tell_s")

    def __init__(self) -> None:
        self.closed_at: float | None = None
        self.gone_at: float | None = None
        self.tell_s = 0.0

    def close(self, now: float) -> None:
        """The primary has said that it is over."""
        self.closed_at = now

    def gone_for(self, now: float) -> float:
        """How long our TCP has been known to be rid of the finished connection."""
        if self.gone_at is None:
            self.gone_at = now
        return now - self.gone_at

    def tell(self) -> None:
        """The primary has to be told that we can't continue the connection."""
        self.tell_s = TELL_FIRST_S

    def told(self) -> None:
        """The primary knows, or need not."""
        self.tell_s = 0.0

    def tell_again(self) -> float:
        """The primary is told now. Returns when to tell it again; 0: no more."""
        wait_s = self.tell_s
        if not 0 < wait_s <= TELL_MAX_S:
            wait_s = self.tell_s = 0.0
        self.tell_s *= 2
        return wait_s

"""What one connection's end still needs: who knows of it, and when the primary is told again (see ends.py)."""

from __future__ import annotations

TELL_FIRST_S = 0.05
TELL_MAX_S = 10.0


class ReplicaEnd:
    """The end of one replica's stream, as the two hosts know of it.

    `asked`: the primary has asked for it, so it knows. `primary_ended_at`: when its question first said that its server
    has ended. `wait_s`: how long to wait before it is told again.
    """

    __slots__ = ("asked", "primary_ended_at", "wait_s")

    def __init__(self) -> None:
        self.asked = False
        self.primary_ended_at: float | None = None
        self.wait_s = TELL_FIRST_S

    def ask(self, primary_ended: bool, now: float) -> None:
        """The primary has asked. `primary_ended`: its own server has ended."""
        self.asked = True
        if primary_ended and self.primary_ended_at is None:
            self.primary_ended_at = now

    def tell(self) -> float:
        """The replica has ended just now. Returns how long to wait before the primary is told again."""
        self.wait_s = TELL_FIRST_S
        return self.wait_s

    def tell_again(self) -> float:
        """As `tell`, for what was told before; 0: it is not told any more."""
        self.wait_s *= 2
        return self.wait_s if self.wait_s <= TELL_MAX_S else 0.0

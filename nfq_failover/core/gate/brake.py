"""Is the backup the brake? How long what clients send is acknowledged later because of it.

A client gets no acknowledgement before the backup has its bytes. If the backup's link or processor takes less than the
primary's, bytes queue up on the way there, and the client's TCP slows down to that pace by itself: no replica is late,
and nothing is lost. Only this wait tells: with a backup that keeps up it is the time of a round trip to it, while with
one that does not it is as long as the queue.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.outbox import Outbox

EVERY_S: Final = 1.0
SPANS: Final = 5  # of `EVERY_S` each, that are looked at together
LEAST_BYTES: Final = 1 << 20  # of fewer bytes nothing follows: a client that waits for an answer has no more to send
BRAKED_S: Final = 0.01  # at full speed on one segment 4 ms were measured, behind a link of a tenth 14 to 18 ms
WELL_S: Final = 0.005
LASTING_S: Final = 10.0  # what is shorter is shown, but the pair is as good as before
SOURCE: Final = "brake"
CODE: Final = "backup-brakes"
_CURE: Final = (
    "see whether the backup's link is slower than the clients' together, or its processor busy: it has to take all "
    "that the primary takes, by the tap, and the sync channel besides"
)


class Brake:
    """`wait_s`: how late the clients' bytes of the last seconds were acknowledged on average, because of the backup."""

    def __init__(self, out: Outbox) -> None:
        self.out = out
        self.wait_s = 0.0
        self._spans: deque[tuple[int, float]] = deque(maxlen=SPANS)  # bytes, and their waits together
        self._bytes = 0
        self._waits = 0.0
        self._next = 0.0
        self._since: float | None = None  # when it was found that clients wait

    def confirmed(self, size: int, waited_s: float) -> None:
        """The backup has `size` more bytes of a client, whose acknowledgement has waited for that."""
        self._bytes += size
        self._waits += size * waited_s

    def look(self, now: float) -> None:
        """Judge, if it is time."""
        if now < self._next:
            return
        self._next = now + EVERY_S
        self._spans.append((self._bytes, self._waits))
        self._bytes, self._waits = 0, 0.0
        size = sum(count for count, _ in self._spans)
        self.wait_s = sum(waits for _, waits in self._spans) / size if size else 0.0
        if size >= LEAST_BYTES and self.wait_s >= (WELL_S if self.calming else BRAKED_S):
            self._raise(size, now)
        else:
            self._since = None
            self.out.concerns.over(SOURCE, CODE, now)

    def _raise(self, size: int, now: float) -> None:
        if self._since is None:
            self._since = now
        rate = 8e-6 * size / (len(self._spans) * EVERY_S)
        what = f"what clients send ({rate:.0f} Mbit/s) is acknowledged {self.wait_s * 1000:.0f} ms later, because the "
        what += "backup has it so late: they can't send faster"
        weight = Weight.DEGRADED if now - self._since >= LASTING_S else Weight.WARNING
        self.out.concerns.raised(SOURCE, Concern(CODE, weight, what, _CURE), now)

    @property
    def calming(self) -> bool:
        """Whether it is still to be told that it is over."""
        return self._since is not None

    def clear(self, now: float) -> None:
        """Nobody waits for a backup."""
        self._spans.clear()
        self._bytes, self._waits, self.wait_s, self._since = 0, 0.0, 0.0, None
        self.out.concerns.over(SOURCE, CODE, now)

"""The backup is told what has become of a connection, again and again until it answers or there is no point in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import Close, Closed, Fed, FedSeen, Unprotected, UnprotectedSeen

MAX_TELLING: Final = 8192
FIRST_S: Final = 0.003
TELL_MAX_S: Final = 10.0

Told = Close | Unprotected | Fed
_ANSWERS: Final = {Closed: Close, UnprotectedSeen: Unprotected, FedSeen: Fed}


class News:
    """What the backup has not said back. `protecting()`: whether there is a backup.

    `waiting`: for each connection's number its last news, and how long to wait before it is told again.
    """

    def __init__(self, out: Outbox, timers: TimerQueue[int], protecting: Callable[[], bool]) -> None:
        self.out = out
        self.waiting: dict[int, tuple[Told, float]] = {}
        self._timers = timers
        self._protecting = protecting

    def tell(self, record: Told, now: float, wait: float = FIRST_S) -> None:
        """Tell the backup, again and again until it answers or there is no point in it."""
        if wait > TELL_MAX_S or not self._protecting():
            self.waiting.pop(record.conn, None)
            return
        if len(self.waiting) >= MAX_TELLING and record.conn not in self.waiting:
            self._tell_less()
        self.waiting[record.conn] = (record, wait * 2)
        self.out.record(record)
        self._timers.set(record.conn, now + wait)

    def _tell_less(self) -> None:
        """The backup does not answer, and much has ended: the oldest `Close` is no longer repeated. The backup finds
        out from its own TCP, or asks. An `Unprotected` is never left out; they are no more than the connections."""
        for conn, (record, _) in self.waiting.items():
            if isinstance(record, Close):
                del self.waiting[conn]
                self._timers.cancel(conn)
                self.out.counters["tell-dropped"] += 1
                return

    def on_told(self, record: Closed | UnprotectedSeen | FedSeen, _: float) -> None:
        """The backup has seen what it was told."""
        telling = self.waiting.get(record.conn)
        if telling is not None and isinstance(telling[0], _ANSWERS[type(record)]):
            del self.waiting[record.conn]
            self._timers.cancel(record.conn)

    def tell_again(self, conn: int, now: float) -> bool:
        """The backup has not answered in time. Returns whether there was news of this connection."""
        telling = self.waiting.get(conn)
        if telling is not None:
            self.tell(telling[0], now, telling[1])
        return telling is not None

"""How a replica catches up: bytes lost by the tap are fetched, bytes that its TCP has not taken are delivered again."""

from __future__ import annotations

from nfq_failover.constants import ACK, FIN
from nfq_failover.core.backup_connection import BackupConnection, Shadow
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import Data, Missing
from nfq_failover.wire.segment import Segment

HOLE_FIRST_S = 0.002
HOLE_MAX_S = 0.05
HOLE_IDLE_MAX_S = 1.0  # of a hole that the primary has, too, for all that we know: the client's, and perhaps for ever
HOLES_AT_ONCE = 16
LAG_FIRST_S = 0.06
LAG_MAX_S = 1.0
COMPLAINT_S = 0.005


class Repair:
    """Watches holes (the log lacks bytes that the primary has) and lag (our TCP has not taken what the log has)."""

    def __init__(self, out: Outbox, timers: TimerQueue[int]) -> None:
        self.out = out
        self.timers = timers

    def logged(self, connection: BackupConnection, before: int, now: float) -> None:
        """A segment was put into the log, whose contiguous part ended at `before`."""
        if connection.cum > before:
            connection.hole_retry_s = 0.0
        if connection.journal.has_islands:
            self._watch_hole(connection, now)
        self.watch_lag(connection, now)

    def primary_is_at(self, connection: BackupConnection, now: float) -> None:
        """The primary has told how far its TCP is."""
        if connection.upto > connection.cum:
            if connection.hole_retry_s > HOLE_MAX_S:
                connection.hole_retry_s = 0.0
            self._watch_hole(connection, now)  # the tap may just be a little later than the primary

    def _watch_hole(self, connection: BackupConnection, now: float) -> None:
        if not connection.hole_retry_s:
            connection.hole_retry_s = HOLE_FIRST_S
            self.timers.set_earlier(connection.conn, now + HOLE_FIRST_S)

    def watch_lag(self, connection: BackupConnection, now: float) -> None:
        """Deliver again later, if our TCP is behind the log."""
        if connection.lag_since is None and connection.lagging:
            connection.lag_since = now
            connection.lag_retry_s = LAG_FIRST_S
            self.timers.set_earlier(connection.conn, now + LAG_FIRST_S)

    def heard_our_tcp(self, connection: BackupConnection, seg: Segment, before: int, now: float) -> None:
        """Our TCP has sent `seg`; its acknowledgement was at `before`."""
        if not connection.lagging:
            return
        stalled = connection.k_ack == before and seg.is_pure_ack
        if stalled and connection.lag_since is not None and now - connection.lag_since > COMPLAINT_S:
            connection.lag_since = now
            connection.redeliver(self.out)  # our TCP complains of a gap, or its window has opened
        self.watch_lag(connection, now)

    def fill(self, connection: BackupConnection, record: Data, now: float) -> None:
        """The primary has sent bytes that our tap had lost."""
        offset = connection.client.offset(record.seq)
        before = connection.cum, connection.journal.size
        connection.store(offset, record.data, record.fin, self.out)
        if (connection.cum, connection.journal.size) == before:
            return
        self.out.counters["bytes-fetched"] += len(record.data)
        connection.inject(self.out, offset, record.data, ACK | (FIN if record.fin else 0))
        connection.hole_retry_s = 0.0
        if connection.journal.has_islands or connection.upto > connection.cum:
            connection.hole_retry_s = HOLE_FIRST_S
            self.timers.set(connection.conn, now + HOLE_FIRST_S)
        self.watch_lag(connection, now)

    def repeat(self, connection: BackupConnection, now: float) -> None:
        """The connection's timer: ask again, deliver again."""
        if connection.state is Shadow.SHADOW:
            if connection.hole_retry_s and (connection.journal.has_islands or connection.upto > connection.cum):
                self._ask(connection, now)
            else:
                connection.hole_retry_s = 0.0
        if not connection.lagging:
            connection.lag_since = None
        elif connection.lag_since is not None:
            if now - connection.lag_since >= connection.lag_retry_s:
                connection.redeliver(self.out)
                connection.lag_since = now
                connection.lag_retry_s = min(connection.lag_retry_s * 2, LAG_MAX_S)
            self.timers.set_earlier(connection.conn, connection.lag_since + connection.lag_retry_s)

    def _ask(self, connection: BackupConnection, now: float) -> None:
        """Ask for what is missing: the first holes, and the tail that the primary has."""
        most = HOLE_MAX_S if connection.upto > connection.cum else HOLE_IDLE_MAX_S
        connection.hole_retry_s = min(max(connection.hole_retry_s * 2, HOLE_FIRST_S), most)
        seq = connection.client.seq
        at = connection.cum
        for left, right in [*connection.journal.ranges(HOLES_AT_ONCE), (connection.upto, connection.upto)]:
            if left > at:
                self.out.counters["bytes-asked"] += left - at
                self.out.record(Missing(connection.conn, seq(at), seq(left)))
            at = max(at, right)
        self.timers.set_earlier(connection.conn, now + connection.hole_retry_s)

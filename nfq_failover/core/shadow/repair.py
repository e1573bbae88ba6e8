"""How a replica catches up: bytes lost by the tap are fetched, acknowledgements asked for, bytes that its TCP has not
taken are delivered again."""

from __future__ import annotations

from nfq_failover.constants import ACK, FIN
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import BackupConnection, Shadow
from nfq_failover.core.shadow.pace import Pace
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import AckAsked, Data, Missing
from nfq_failover.wire.segment import Segment

HOLE_FIRST_S = 0.002
HOLE_MAX_S = 0.05  # or the time that an answer takes
HOLE_IDLE_MAX_S = 1.0  # of a hole that the primary has, too, for all that we know: the client's, and perhaps for ever
HOLES_AT_ONCE = 16
REQUEST_BYTES = 40_000  # one request's; the primary answers no more at once, either
LAG_FIRST_S = 0.06
LAG_MAX_S = 1.0
COMPLAINT_S = 0.005
UNHEARD_S = 0.5


class Repair:
    """Watches holes (the log lacks bytes that the primary has) and lag (our TCP has not taken what the log has)."""

    def __init__(self, out: Outbox, timers: TimerQueue[int]) -> None:
        self.out = out
        self.timers = timers
        self.pace = Pace()

    def logged(self, connection: BackupConnection, offset: int, before: int, now: float) -> None:
        """A segment from `offset` on was put into the log, whose contiguous part ended at `before`."""
        if connection.cum > before:
            connection.hole_retry_s = 0.0
            if connection.cum >= connection.asked_to:
                connection.asked_at = None
        if connection.late_since is not None and connection.cum >= connection.late_to:
            if offset < connection.late_to:
                self.pace.tap_was_late(now - connection.late_since)
            connection.late_since = None
        if connection.journal.has_islands:
            self._watch_hole(connection, HOLE_FIRST_S, now)
        self.watch_lag(connection, now)

    def primary_is_at(self, connection: BackupConnection, now: float) -> None:
        """The primary has told how far its TCP is."""
        if connection.upto > connection.cum:
            if connection.hole_retry_s > max(HOLE_MAX_S, self.pace.timeout_s):  # it was the client's
                connection.hole_retry_s, connection.asked_at = 0.0, None
            if connection.late_since is None:
                connection.late_since, connection.late_to = now, connection.upto
            self._watch_hole(connection, self.pace.patience_s, now)  # the tap may just be a little later

    def _watch_hole(self, connection: BackupConnection, patience_s: float, now: float) -> None:
        if not connection.hole_retry_s and connection.asked_at is None:
            connection.hole_retry_s = patience_s
            self.timers.set_earlier(connection.conn, now + patience_s)

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

    def sent_first(self, connection: BackupConnection, now: float) -> None:
        """Our TCP has sent what the client has not acknowledged. If it has to repeat that, the tap may have lost an ACK
        that the client has no reason to repeat; our TCP would wait for it, and give up after a quarter of an hour."""
        if connection.unheard is None or connection.unheard[0] != connection.c_ack:
            connection.unheard = connection.c_ack, now
        elif now - connection.unheard[1] >= UNHEARD_S:
            connection.unheard = connection.c_ack, now
            self.out.record(AckAsked(connection.conn, connection.mapping.seen.seq(connection.c_ack)))

    def fill(self, connection: BackupConnection, record: Data, now: float) -> None:
        """The primary has sent bytes that our tap had lost."""
        offset = connection.client.offset(record.seq)
        size = len(record.data) + record.fin
        if connection.asked_at is not None:
            if connection.asked_once:
                self.pace.answered(now - connection.asked_at)
                connection.asked_once = False
            connection.asked_left -= size
        self.pace.arrived(size)
        before = connection.cum, connection.journal.size
        connection.store(offset, record.data, record.fin, self.out)
        if (connection.cum, connection.journal.size) == before:
            return
        self.out.counters["bytes-fetched"] += len(record.data)
        connection.inject(self.out, offset, record.data, ACK | (FIN if record.fin else 0))
        connection.hole_retry_s = 0.0
        if self._incomplete(connection):
            connection.hole_retry_s = HOLE_FIRST_S
            # The rest of the answer is on its way, or the rest of what is missing is asked for.
            wait = self.pace.timeout_s if connection.asked_left > 0 else 0.0
            self.timers.set(connection.conn, now + wait)
        self.watch_lag(connection, now)

    @staticmethod
    def _incomplete(connection: BackupConnection) -> bool:
        return connection.journal.has_islands or connection.upto > connection.cum

    def repeat(self, connection: BackupConnection, now: float) -> None:
        """The connection's timer: ask again, deliver again."""
        if connection.state is Shadow.SHADOW:
            if connection.hole_retry_s and self._incomplete(connection):
                self._ask(connection, now)
            else:
                connection.hole_retry_s = 0.0
                connection.asked_at = None
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
        pace, most = self.pace, HOLE_MAX_S if connection.upto > connection.cum else HOLE_IDLE_MAX_S
        again = connection.asked_at is not None and connection.asked_left > 0
        connection.hole_retry_s = max(min(connection.hole_retry_s * 2, most), pace.timeout_s)
        room = min(pace.room(now), REQUEST_BYTES)
        seq = connection.client.seq
        at, asked = connection.cum, 0
        for left, right in [*connection.journal.ranges(HOLES_AT_ONCE), (connection.upto, connection.upto)]:
            stop = min(left, at + room - asked)
            if stop > at:
                self.out.record(Missing(connection.conn, seq(at), seq(stop)))
                asked += stop - at
                connection.asked_to = stop
            at = max(at, right)
        if asked:
            self.out.counters["bytes-asked"] += asked
            pace.asked(asked, now)
            connection.asked_at, connection.asked_left, connection.asked_once = now, asked, not again
        self.timers.set_earlier(connection.conn, now + connection.hole_retry_s)

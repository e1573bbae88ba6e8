"""How a replica catches up: bytes lost by the tap are fetched, acknowledgements asked for, bytes that its TCP has not
taken are delivered again."""

from __future__ import annotations

from nfq_failover.constants import ACK, FIN
from nfq_failover.core.backlog import LOOK_AGAIN_S, Backlog
from nfq_failover.core.events import Queue
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import Shadow, ShadowConnection
from nfq_failover.core.shadow.gap import HOLE_FIRST_S, LAG_FIRST_S
from nfq_failover.core.shadow.holding import Holding
from nfq_failover.core.shadow.pace import Pace
from nfq_failover.core.shadow.tap import TapWatch
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import AckAsked, Data, Missing
from nfq_failover.wire.segment import Segment

HOLE_MAX_S = 0.05  # or the time that an answer takes
HOLE_IDLE_MAX_S = 1.0  # of a hole that the primary has, too, for all that we know: the client's, and perhaps for ever
HOLES_AT_ONCE = 16
REQUEST_BYTES = 40_000  # in one request; nor does the primary answer with more at once


class Repair:
    """Watches holes (the log lacks bytes that the primary has) and lag (our TCP has not taken what the log has)."""

    def __init__(
        self, out: Outbox, timers: TimerQueue[int], holding: Holding, backlog: Backlog, multicast: bool = False
    ) -> None:
        """`timers`: the connections' own, by number. `holding`: what is held back from our TCP. `backlog`: what waits
        in our queues. `multicast`: after a takeover the clients' packets come the way of the tap."""
        self.out = out
        self._holding = holding
        self._backlog = backlog
        self.timers = timers
        self.pace = Pace()
        self.tap = TapWatch(out, multicast)

    def logged(self, connection: ShadowConnection, offset: int, before: int, now: float) -> None:
        """A segment from `offset` on was put into the log, whose contiguous part ended at `before`."""
        gap, inward = connection.gap, connection.inward
        held = inward.held
        if held > before:
            gap.filled(held)
        if gap.late_since is not None and held >= gap.late_to:
            late_s = gap.tap_came(offset, self._backlog.read_until(Queue.IN, now))
            if late_s is not None:
                self.pace.tap_was_late(late_s)
        if inward.inbound.has_islands:
            self._watch_hole(connection, HOLE_FIRST_S, now)
        if gap.lag_since is None:
            self.watch_lag(connection, now)

    def primary_is_at(self, connection: ShadowConnection, now: float) -> None:
        """The primary has told how far its TCP is."""
        gap = connection.gap
        if gap.primary_rcv_nxt > connection.inward.held:
            gap.primary_is_ahead(connection.inward.held, max(HOLE_MAX_S, self.pace.timeout_s), now)
            self._watch_hole(connection, self.pace.patience_s, now)  # the tap may just be a little later

    def _watch_hole(self, connection: ShadowConnection, patience_s: float, now: float) -> None:
        if connection.gap.watch_hole(patience_s):
            self.timers.set_earlier(connection.conn, now + patience_s)

    def watch_lag(self, connection: ShadowConnection, now: float) -> None:
        """Deliver again later, if our TCP is behind the log."""
        if connection.gap.lag_since is None and connection.inward.lagging:
            connection.gap.watch_lag(now)
            self.timers.set_earlier(connection.conn, now + LAG_FIRST_S)

    def heard_our_tcp(self, connection: ShadowConnection, seg: Segment, before: int, now: float) -> None:
        """Our TCP has sent `seg`; its acknowledgement was at `before`."""
        inward, gap = connection.inward, connection.gap
        if inward.rcv_nxt > before:
            gap.our_tcp_went_on()
        if inward.rcv_nxt >= inward.held:
            inward.no_lag()
            return
        if inward.takes_more:
            inward.redeliver(connection.mapping, self.out)
        elif inward.rcv_nxt == before and seg.is_pure_ack and gap.complains(self._said_at(now), now):
            inward.redeliver(connection.mapping, self.out)  # it lacks something in between, or its window has opened
        self.watch_lag(connection, now)

    def _said_at(self, now: float) -> float:
        """When our TCP has said what we hear now, at the earliest."""
        return self._backlog.read_until(Queue.OUT, now)

    def sent_first(self, connection: ShadowConnection, now: float) -> None:
        """Our TCP has sent what the client has not acknowledged. If it has to repeat that, the tap may have lost an ACK
        that the client has no reason to repeat; our TCP would wait for it, and give up after a quarter of an hour."""
        snd_una = connection.output.snd_una
        if connection.gap.unheard(snd_una, self._backlog.read_until(Queue.IN, now), now):
            self.tap.unheard()
            self.out.record(AckAsked(connection.conn, connection.mapping.seen.seq(snd_una)))

    def fill(self, connection: ShadowConnection, record: Data, now: float) -> None:
        """The primary has sent bytes that our tap had lost."""
        gap, inward = connection.gap, connection.inward
        offset = inward.client.offset(record.seq)
        size = len(record.data) + record.fin
        took_s = gap.answered(size, now)
        if took_s is not None:
            self.pace.answered(took_s)
        self.pace.arrived(size)
        before = inward.held, inward.inbound.size
        inward.store(offset, record.data, record.fin, self.out)
        if (inward.held, inward.inbound.size) == before:
            return
        self.out.counters["bytes-fetched"] += len(record.data)
        self.tap.fetched(size)
        self._give(connection, offset, record, now)
        incomplete = self._incomplete(connection)
        gap.asks_in(HOLE_FIRST_S if incomplete else 0.0)
        if incomplete:
            # The rest of the answer is on its way, or the rest of what is missing is asked for.
            wait = self.pace.timeout_s if gap.asked_left > 0 else 0.0
            self.timers.set(connection.conn, now + wait)
        self.watch_lag(connection, now)

    def _give(self, connection: ShadowConnection, offset: int, record: Data, now: float) -> None:
        """Give our TCP what has come, but for what is held back."""
        head = connection.inward.order.edge - offset
        if len(record.data) + record.fin <= head:
            connection.inject(self.out, offset, record.data, ACK | (FIN if record.fin else 0))
            return
        if head > 0:
            connection.inject(self.out, offset, record.data[:head])
        self._holding.watch(connection, now)

    @staticmethod
    def _incomplete(connection: ShadowConnection) -> bool:
        return connection.inward.inbound.has_islands or connection.gap.primary_rcv_nxt > connection.inward.held

    def repeat(self, connection: ShadowConnection, now: float) -> None:
        """The connection's timer has run out: ask again, deliver again."""
        gap, inward = connection.gap, connection.inward
        if connection.state in (Shadow.SHADOW, Shadow.FED):
            if gap.hole_retry_s and self._incomplete(connection):
                self._ask(connection, now)
            else:
                gap.closed()
        if not inward.lagging:
            gap.no_lag()
        elif gap.lag_since is not None:
            if gap.lag_due(self._said_at(now), now):
                inward.redeliver(connection.mapping, self.out, probe=connection.state is not Shadow.ACTIVE)
            self.timers.set_earlier(connection.conn, max(gap.lag_since + gap.lag_retry_s, now + LOOK_AGAIN_S))

    def _lost_tail(self, connection: ShadowConnection, now: float) -> int:
        """Returns the end of what the primary has and our tap has lost. What it has only brought into our queue, where
        it waits for us, is not lost: who is behind would be further behind for each byte that is fetched."""
        gap, read_until = connection.gap, self._backlog.read_until(Queue.IN, now)
        if read_until >= now or gap.late_since is None:
            return gap.primary_rcv_nxt
        return gap.late_to if read_until >= gap.late_since + self.pace.patience_s else 0

    def _ask(self, connection: ShadowConnection, now: float) -> None:
        """Ask for what is missing: the first holes, and the tail that the primary has."""
        gap, inward, pace = connection.gap, connection.inward, self.pace
        most = HOLE_MAX_S if gap.primary_rcv_nxt > inward.held else HOLE_IDLE_MAX_S
        gap.asks_in(max(min(gap.hole_retry_s * 2, most), pace.timeout_s))
        room = min(pace.room(now), REQUEST_BYTES, max(inward.room_end - inward.held, 0))
        seq = inward.client.seq
        at, asked, asked_to = inward.held, 0, 0
        tail = self._lost_tail(connection, now)
        for left, right in [*inward.inbound.ranges(HOLES_AT_ONCE), (tail, tail)]:
            stop = min(left, at + room - asked)
            if stop > at:
                self.out.record(Missing(connection.conn, seq(at), seq(stop)))
                asked += stop - at
                asked_to = stop
            at = max(at, right)
        if asked:
            self.out.counters["bytes-asked"] += asked
            pace.asked(asked, now)
            gap.asked(asked, asked_to, now)
        self.timers.set_earlier(connection.conn, now + gap.hole_retry_s)

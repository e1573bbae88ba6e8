"""What clients say only after an answer is held back from a replica that has not given this answer yet.

A server may rely on it that a client waits for its answer. PostgreSQL does: what lies in its buffer when it answers the
question whether it speaks TLS takes it for an attack, and ends the connection. Now a client hears the primary, and its
next segment may reach a replica that is a little later. What the client had heard before it sent the segment, the
segment's acknowledgement says. The replica can send that much without it, since the primary has.

Held back is only what goes to our TCP: it is logged and confirmed like everything else, so that no client waits for
that. The segment's acknowledgement is delivered: the replica may need it to go on. A replica that comes no nearer to
the answer for a while gets the input all the same (order.py): it may have less to say than the server.
"""

from __future__ import annotations

from nfq_failover.constants import FIN
from nfq_failover.core.backlog import LOOK_AGAIN_S, Backlog
from nfq_failover.core.events import PacketQueued, Queue
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import Shadow, ShadowConnection
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import HeardBefore
from nfq_failover.wire.segment import Segment

MAY_HOLD = frozenset((Shadow.OPENING, Shadow.SHADOW, Shadow.ACTIVE))
"""States of connections whose output is, or will be, the client's."""


class Holding:
    """Holds input back, and delivers it from the log. `numbers` are the table's connections by number."""

    def __init__(self, out: Outbox, numbers: dict[int, ShadowConnection], backlog: Backlog) -> None:
        self.out = out
        self._numbers = numbers
        self._backlog = backlog
        self._timers: TimerQueue[int] = TimerQueue()

    def hold(self, connection: ShadowConnection, event: PacketQueued, seg: Segment, offset: int, now: float) -> None:
        """A client's segment goes beyond the edge: our TCP gets what is before it."""
        self.out.drop(event.queue, event.packet_id, "held-back")
        inward = connection.inward
        if connection.state is Shadow.ACTIVE:  # which logs nothing else, for the client keeps what our TCP has not got
            inward.store(offset, seg.payload(), bool(seg.flags & FIN), self.out)
        head = inward.order.edge - offset
        if head > 0:
            connection.inject(self.out, offset, seg.payload()[:head])
        else:
            inward.tell_acknowledged(connection.mapping, self.out)
        if seg.seg_len:
            self.watch(connection, now)

    def watch(self, connection: ShadowConnection, now: float) -> None:
        """Something in the log is held back."""
        self._timers.set_earlier(connection.conn, connection.inward.order.holds_until(now))

    def on_heard(self, record: HeardBefore, now: float) -> None:
        """What the primary knows of bytes that our tap has lost, or not brought yet."""
        del now
        connection = self._numbers.get(record.conn)
        if connection is None or connection.state not in MAY_HOLD:
            return
        ack = connection.seen.offset(record.ack)
        if ack > connection.output.snd_nxt:
            at = connection.inward.client.offset(record.seq)
            connection.inward.order.heard(at, ack, connection.output.snd_nxt)

    def goes_on(self, connection: ShadowConnection, now: float) -> None:
        """The connection goes on here, perhaps with another number."""
        if connection.inward.order.held_since is not None:
            self.watch(connection, now)

    def replica_sent(self, connection: ShadowConnection, now: float) -> bool:
        """Our TCP has sent something: what the client has said after that is for it now. Returns whether it got any of
        it, and with it the client's acknowledgement."""
        inward, output = connection.inward, connection.output
        before = inward.order.edge
        if not inward.order.replica_is_at(output.snd_nxt, output.snd_una, now):
            return False
        if inward.order.edge >= inward.held:
            inward.order.holds_nothing()
        return inward.deliver_from(connection.mapping, before, self.out)

    # ------------------------------------------------------------------------------------ time

    def on_timer(self, now: float) -> None:
        """Wait no longer."""
        for conn in self._timers.pop_due(now):
            connection = self._numbers.get(conn)
            if connection is None or connection.state not in MAY_HOLD:
                continue
            order = connection.inward.order
            if order.held_since is None:
                continue
            if connection.map is None:
                order.wait_anew(now)
            until = order.holds_until(now)
            if until > self._backlog.read_until(Queue.OUT, now):  # else the answer may wait in our own queue
                self._timers.set(conn, max(until, now + LOOK_AGAIN_S))
                continue
            self.out.counters["held-back-in-vain"] += 1
            before = order.edge
            order.in_vain()
            connection.inward.deliver_from(connection.mapping, before, self.out)

    def forget(self, conn: int) -> None:
        """No more deadline for this number."""
        self._timers.cancel(conn)

    def clear(self) -> None:
        """No more deadlines."""
        self._timers.clear()

    def poll_timeout(self) -> float | None:
        """The earliest deadline."""
        return self._timers.next()

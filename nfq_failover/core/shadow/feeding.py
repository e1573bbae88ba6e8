"""Connections whose replica only gets input: what it answers differs from what the client has, so that it can't be
continued, but what other connections are answered may depend on it.

The client's bytes are logged, confirmed and delivered as before. What the replica sends goes nowhere, and is
acknowledged at once: a server that waits for room in its send buffer, or for the acknowledgement of a small segment,
would stop reading. When the connection is over, at a takeover or on the primary, our TCP first gets all that we have of
the client; then it is reset.
"""

from __future__ import annotations

from collections.abc import Callable

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import Shadow, ShadowConnection
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import Fed
from nfq_failover.wire.segment import Segment

TELL_FIRST_S = 0.01
TELL_MAX_S = 10.0
LOOK_S = 0.05
GRACE_S = 0.3  # for the application to read what its TCP has
PATIENCE_S = 10.0  # with a TCP that takes nothing more


class Draining:
    """What is left to be delivered of one connection that is over. `taken`: what our TCP had taken at `since`, when it
    last went on."""

    __slots__ = ("delivered_at", "since", "taken")

    def __init__(self, taken: int, now: float) -> None:
        self.taken, self.since = taken, now
        self.delivered_at: float | None = None

    def over(self, taken: int, left: bool, now: float) -> bool:
        """Whether nothing more is to be waited for. `left`: our TCP lacks bytes that we have."""
        if taken > self.taken:
            self.taken, self.since = taken, now
        if left:
            self.delivered_at = None
            return now - self.since >= PATIENCE_S
        if self.delivered_at is None:
            self.delivered_at = now
        return now - self.delivered_at >= GRACE_S


class Feeding:
    """Feeds replicas, tells the primary, and ends it well. `numbers` are the table's connections by number."""

    def __init__(
        self,
        out: Outbox,
        numbers: dict[int, ShadowConnection],
        finish: Callable[[ShadowConnection, float], None],
    ) -> None:
        """`finish(connection, now)`: one that is over has got all that it could be given."""
        self.out = out
        self._numbers = numbers
        self._finish = finish
        self._timers: TimerQueue[int] = TimerQueue()
        self._telling: dict[int, float] = {}  # how long to wait after the next time
        self._draining: dict[int, Draining] = {}

    def begin(self, connection: ShadowConnection, reason: str, now: float, tell: bool) -> None:
        """Its output is of no use from now on. `tell`: the primary does not know."""
        held_back = connection.inward.order.edge
        connection.feed(reason)
        connection.inject_ack(self.out)
        connection.inward.deliver_from(connection.mapping, held_back, self.out)
        self.out.counters["fed"] += 1
        if tell:
            self._telling[connection.conn] = TELL_FIRST_S
            self._tell(connection, now)

    def _tell(self, connection: ShadowConnection, now: float) -> None:
        wait_s = self._telling[connection.conn]
        if wait_s > TELL_MAX_S:
            del self._telling[connection.conn]
            return
        self.out.record(Fed(connection.conn, connection.reason))
        self._telling[connection.conn] = 2 * wait_s
        self._timers.set_earlier(connection.conn, now + wait_s)

    def told(self, conn: int) -> None:
        """The primary knows."""
        self._telling.pop(conn, None)

    def heard_our_tcp(self, connection: ShadowConnection, seg: Segment, offset: int) -> None:
        """Our TCP has sent a segment at `offset`: acknowledge it, in the client's place; a keep-alive probe, too."""
        if seg.seg_len or offset < connection.output.snd_nxt:
            connection.inject_ack(self.out)

    # ------------------------------------------------------------------------------------ the end

    def drains(self, connection: ShadowConnection) -> bool:
        """Whether the connection is over, and its replica still has to get what we have of its client."""
        return connection.conn in self._draining

    def drain(self, connection: ShadowConnection, now: float) -> None:
        """It is over: deliver what is left, then finish."""
        if connection.conn not in self._draining:
            self._draining[connection.conn] = Draining(connection.inward.rcv_nxt, now)
            self._timers.set_earlier(connection.conn, now + LOOK_S)

    def _look(self, connection: ShadowConnection, now: float) -> None:
        inward = connection.inward
        if self._draining[connection.conn].over(inward.rcv_nxt, inward.lagging, now):
            del self._draining[connection.conn]
            self._finish(connection, now)
        else:
            self._timers.set_earlier(connection.conn, now + LOOK_S)

    # ------------------------------------------------------------------------------------ time

    def forget(self, conn: int) -> None:
        """The connection is not fed any more."""
        self._timers.cancel(conn)
        self._telling.pop(conn, None)
        self._draining.pop(conn, None)

    def on_timer(self, now: float) -> None:
        """Tell again, look again."""
        for conn in self._timers.pop_due(now):
            connection = self._numbers.get(conn)
            if connection is None or connection.state is not Shadow.FED:
                self.forget(conn)
                continue
            if conn in self._telling:
                self._tell(connection, now)
            if conn in self._draining:
                self._look(connection, now)

    def clear(self) -> None:
        """Forget everything."""
        self._timers.clear()
        self._telling.clear()
        self._draining.clear()

    def poll_timeout(self) -> float | None:
        """The earliest deadline."""
        return self._timers.next()

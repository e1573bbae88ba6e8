"""Finds the connections that our own TCP no longer has: one that still counts has lost its replica.

A TCP that ends a connection says so, by a FIN or an RST, but not when it gives up because nobody answers: when it has
repeated its data for too long (`net.ipv4.tcp_retries2`, the application's TCP_USER_TIMEOUT). Before that it repeats
itself, so such a connection is asked for every second, until it goes on.
"""

from __future__ import annotations

from itertools import islice

from nfq_failover.core.events import QueryFlows
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import Die, Forget, Shadow, ShadowConnection
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.segment import FlowKey

QUERY_EVERY_S = 5.0
SUSPECTED_EVERY_S = 1.0
MOST_SUSPECTS = 1024  # asked for at a time: some 15 ms
YOUNG_S = 2.0  # the kernel's list may be older than such a connection
LINGER_S = 60.0
RESET_PATIENCE_S = 1.0
CLOSED = "the replica has closed the connection"
GIVEN_UP = "the replica's TCP has given the connection up, since nobody has answered it for too long"
DEAD_ASK_S = 30.0  # to twice that: between two questions whether a connection without a replica still exists


class Vanished:
    """Asks the kernel now and then which of the table's connections it has, and judges those that it lacks."""

    def __init__(
        self,
        out: Outbox,
        flows: dict[FlowKey, ShadowConnection],
        numbers: dict[int, ShadowConnection],
        timers: TimerQueue[int],
        *,
        die: Die,
        forget: Forget,
    ) -> None:
        """`flows`, `numbers` and `timers` (by number) are the table's; `die` and `forget` are its ways to end a
        connection."""
        self.out = out
        self._flows = flows
        self._numbers = numbers
        self._timers = timers
        self._die = die
        self._forget = forget
        self._next_query = 0.0
        self._suspects: dict[int, int] = {}  # by number: what our TCP had been told that the client has
        self._next_suspects: float | None = None

    def suspect(self, conn: int, now: float) -> None:
        """Our TCP repeats itself on a connection: from now on it may give up at any time."""
        connection = self._numbers[conn]
        self._suspects[conn] = connection.inward.own_una
        if self._next_suspects is None:
            self._next_suspects = now + SUSPECTED_EVERY_S

    def flows_gone(self, flows: list[FlowKey], now: float) -> None:
        """Our TCP no longer has these connections."""
        for flow in flows:
            connection = self._flows.get(flow)
            if connection is not None and now - connection.opened_at >= YOUNG_S:
                self._gone(connection, now)

    def _gone(self, connection: ShadowConnection, now: float) -> None:
        closed, ended = connection.closing.closed_at is not None, connection.ended
        if ended and not closed and connection.linger(now) < LINGER_S:
            return  # the client may have to be told again
        if _to_be_reset(connection):
            connection.closing.gone_for(now)
            spread = connection.conn % 1000 / 1000 * DEAD_ASK_S  # not all at once
            self._timers.set_earlier(connection.conn, now + DEAD_ASK_S + spread)
        elif connection.state in (Shadow.ACTIVE, Shadow.DEAD) or ended or closed or connection.heard:
            if not connection.closing.tell_s:
                self._forget(connection)
        elif connection.state in (Shadow.SHADOW, Shadow.FED):
            if connection.inward.reset_by_client and connection.linger(now) < RESET_PATIENCE_S:
                self.look_soon(now)
                return  # if the primary's TCP was reset by it, too, we are told so
            self._die(connection, GIVEN_UP if connection.conn in self._suspects else CLOSED, now)

    def look_soon(self, now: float) -> None:
        """Ask the kernel before long: our TCP may have been reset by a client whose reset the primary's has missed."""
        self._next_query = min(self._next_query, now + RESET_PATIENCE_S)

    def on_timer(self, now: float) -> None:
        """Ask the kernel, if it is time. The table has connections."""
        if now >= self._next_query:
            self._next_query = now + QUERY_EVERY_S
            self.out.effects.append(QueryFlows(list(self._flows)))
        elif self._next_suspects is not None and now >= self._next_suspects:
            self._ask_for_suspects(now)

    def _ask_for_suspects(self, now: float) -> None:
        asked = []
        for conn in list(islice(self._suspects, MOST_SUSPECTS)):
            told = self._suspects.pop(conn)
            connection = self._numbers.get(conn)
            if connection is None or connection.state is not Shadow.SHADOW or connection.inward.own_una != told:
                continue  # it has gone on
            self._suspects[conn] = told  # the last in the row
            asked.append(connection.flow)
        self._next_suspects = now + SUSPECTED_EVERY_S if self._suspects else None
        if asked:
            self.out.effects.append(QueryFlows(asked))

    def clear(self) -> None:
        """Suspect nobody any more."""
        self._suspects.clear()
        self._next_suspects = None

    def poll_timeout(self) -> float | None:
        """The next deadline."""
        if not self._flows:
            return None
        return self._next_query if self._next_suspects is None else min(self._next_query, self._next_suspects)


def _to_be_reset(connection: ShadowConnection) -> bool:
    """Whether the client must hear that its connection is over, if the primary dies: for all that we know it goes on
    with the primary. Nobody else will know of it."""
    # By us, or by the primary, whose server has ended as well.
    decided = connection.heard or connection.handed or connection.end.primary_ended_at is not None
    return connection.state is Shadow.DEAD and not connection.over and not decided

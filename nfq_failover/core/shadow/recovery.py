"""After a takeover, repeat what was resent and is not acknowledged: our own TCP would take too long.

It takes everything that the client has not acknowledged for lost segments of its own, since they went nowhere: during
a fence of 6 s its retransmission timer doubles to some seconds, and the first acknowledgement afterwards, of what it
sent seconds ago, looks like a round-trip time of seconds. So the loss of one resent segment would stop a connection for
as long again as the outage, or longer. Here a timer of our own goes back to the first
unacknowledged byte, and on from there as the acknowledgements come in (slow start, RFC 5681 section 3.1; the timer,
RFC 6298 section 5), until all is acknowledged that had to be resent. Then our TCP is on its own.

The same timer asks a client whose window is closed, and which may have opened it in vain meanwhile, until it answers
(window probes, RFC 9293 section 3.8.6.1).
"""

from __future__ import annotations

from collections.abc import Mapping

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import Shadow, ShadowConnection
from nfq_failover.core.shadow.resending import WAIT_FIRST_S
from nfq_failover.core.timers import TimerQueue

LONGEST_S = 20.0  # then our TCP's own timer has come


class Recovery:
    """Waits for the clients that owed an acknowledgement, or a window, at their takeover."""

    def __init__(self, numbers: Mapping[int, ShadowConnection], out: Outbox) -> None:
        """`numbers`: the connections by number; one that is not among them any more is left alone."""
        self.numbers = numbers
        self.out = out
        self.timers: TimerQueue[int] = TimerQueue()

    def begin(self, connection: ShadowConnection, now: float) -> None:
        """The connection was taken over just now, and what could be resent at once was."""
        output = connection.output
        due = output.snd_nxt > output.snd_una or not connection.header.wnd or output.compare is not None
        if output.snd_una < 0 or connection.ended or not due:
            return
        connection.resending.wait_for_ack(now)
        self.timers.set(connection.conn, now + WAIT_FIRST_S)

    def heard(self, connection: ShadowConnection, before: int, now: float) -> None:
        """A segment of the client, which had acknowledged `before`; it has got what could be sent upon this."""
        resending, snd_una = connection.resending, connection.output.snd_una
        wait = resending.wait
        if wait is None:
            return
        if resending.next is None and snd_una >= resending.resent:
            self.forget(connection)
        elif wait.heard(snd_una > before, resending.resent, now):
            self.timers.set(connection.conn, now + wait.next_s)

    def on_timer(self, now: float) -> None:
        """Go back to the first byte that the client lacks."""
        for conn in self.timers.pop_due(now):
            connection = self.numbers.get(conn)
            if connection is None:
                continue
            resending = connection.resending
            wait = resending.wait
            if wait is None or _over(connection) or wait.next_s > LONGEST_S:
                self.forget(connection)
                continue
            self.out.counters["recovery-timeouts"] += 1
            resending.go_back(connection.mapping, self.out, now)
            wait.in_vain()
            self.timers.set(conn, now + wait.next_s)

    def poll_timeout(self) -> float | None:
        """The next deadline."""
        return self.timers.next()

    def forget(self, connection: ShadowConnection) -> None:
        """Nothing is to be repeated any more."""
        self.timers.cancel(connection.conn)
        connection.resending.wait_no_more()


def _over(connection: ShadowConnection) -> bool:
    return connection.state is not Shadow.ACTIVE or connection.ended or connection.inward.reset_by_client

"""After a takeover, repeat what was resent and is not acknowledged: our own TCP would take too long.

It takes everything that the client has not acknowledged for lost segments of its own, since they went nowhere: during
a fence of 6 s its retransmission timer doubles to some seconds, and the first acknowledgement afterwards, of what it
has sent so long ago, is a round-trip time of seconds for it. So one lost segment of the resent ones would stop a
connection for as long again as the outage was, or longer. Here a timer of our own goes back to the first
unacknowledged byte, and on from there as the acknowledgements come in (slow start, RFC 5681 section 3.1; the timer,
RFC 6298 section 5), until all is acknowledged that had to be resent. Then our TCP is on its own.

The same timer asks a client whose window is closed, and which may have opened it in vain meanwhile, until it answers
(window probes, RFC 9293 section 3.8.6.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow import takeover
from nfq_failover.core.shadow.connection import BackupConnection, Shadow
from nfq_failover.core.timers import TimerQueue

FIRST_S = 0.3  # Linux' own least is 0.2 s; a round trip that takes longer costs some segments too many
LONGEST_S = 20.0  # then our TCP's own timer has come


@dataclass(slots=True)
class _Wait:
    """`began`: the takeover, or None once the client has acknowledged something. `sent`: how far it was sent to."""

    began: float | None
    sent: int
    timeout_s: float = FIRST_S
    next_s: float = FIRST_S


class Recovery:
    """The connections whose client owed an acknowledgement, or a window, at their takeover."""

    def __init__(self, numbers: Mapping[int, BackupConnection], out: Outbox) -> None:
        self.numbers = numbers
        self.out = out
        self.timers: TimerQueue[int] = TimerQueue()
        self._waits: dict[int, _Wait] = {}

    def begin(self, connection: BackupConnection, now: float) -> None:
        """The connection was taken over just now, and what could be resent at once was."""
        due = connection.produced > connection.c_ack or not connection.c_wnd
        if connection.c_ack < 0 or connection.ended or not due:
            return
        self._waits[connection.conn] = _Wait(now, connection.resent)
        self.timers.set(connection.conn, now + FIRST_S)

    def heard(self, connection: BackupConnection, before: int, now: float) -> None:
        """A segment of the client, which had acknowledged `before`; it has got what could be sent upon this."""
        wait = self._waits.get(connection.conn)
        if wait is None:
            return
        if connection.resend_next is None and connection.c_ack >= connection.resent:
            self.forget(connection.conn)
            return
        more, wait.sent = connection.resent > wait.sent, connection.resent
        if connection.c_ack <= before and not more:
            return
        if connection.c_ack > before and wait.began is not None:
            # The only measure of the round trip that we have. Too long, if something had to be sent twice.
            wait.timeout_s = max(FIRST_S, 2 * (now - wait.began))
            wait.began = None
        wait.next_s = wait.timeout_s
        self.timers.set(connection.conn, now + wait.next_s)

    def on_timer(self, now: float) -> None:
        """Go back to the first byte that the client lacks."""
        for conn in self.timers.pop_due(now):
            connection, wait = self.numbers.get(conn), self._waits[conn]
            if connection is None or _over(connection) or wait.next_s > LONGEST_S:
                self.forget(conn)
                continue
            connection.resend_next = connection.c_ack
            self.out.counters["recovery-timeouts"] += 1
            if not takeover.resend(connection, self.out, 1, now):
                takeover.probe(connection, self.out, now)
            wait.next_s *= 2
            self.timers.set(conn, now + wait.next_s)

    def poll_timeout(self) -> float | None:
        """The next deadline."""
        return self.timers.next()

    def forget(self, conn: int) -> None:
        """Nothing is to be repeated any more."""
        self.timers.cancel(conn)
        self._waits.pop(conn, None)


def _over(connection: BackupConnection) -> bool:
    return connection.state is not Shadow.ACTIVE or connection.ended or connection.reset_by_client

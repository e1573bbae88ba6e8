"""The backup's part in deciding about ends: tells the primary where the replica's stream is (see end_gate.py)."""

from __future__ import annotations

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import BackupConnection, Shadow
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import End, EndKind

TELL_FIRST_S = 0.05
TELL_MAX_S = 10.0


def end_of(connection: BackupConnection, well: bool) -> End:
    """Where the replica's stream is, as the client numbers it. A FIN is not counted: its own number is the end."""
    mapping = connection.mapping
    if connection.rst_out is not None:
        kind, offset = EndKind.RST, connection.rst_out
    elif connection.fin_out is not None:
        kind, offset = EndKind.FIN, connection.fin_out
    else:
        kind, offset = EndKind.OPEN, connection.produced
    return End(connection.conn, mapping.seen.seq(offset), connection.client.seq(connection.k_ack), kind, well)


class ReplicaEnds:
    """Tells of ends: at once, then again until the primary shows that it knows (it asks, or the client has the FIN)."""

    def __init__(self, out: Outbox, numbers: dict[int, BackupConnection], checked: bool) -> None:
        """`checked`: somebody checks the application's health."""
        self.out = out
        self.numbers = numbers
        self._timers: TimerQueue[int] = TimerQueue()
        self._waits: dict[int, float] = {}
        self.checked = checked
        self._well_at: float | None = None  # when a check has last begun that ended well

    def note_well(self, began_at: float) -> None:
        """A check of our application has ended well; this is when it began."""
        self._well_at = began_at

    def _end(self, connection: BackupConnection) -> End:
        since = connection.primary_ended_at
        well = since is None or (self._well_at is not None and self._well_at > since)
        return end_of(connection, well or not self.checked)

    def ended(self, connection: BackupConnection, now: float, tell: bool = True) -> None:
        """The replica has just ended. `tell`: now; else only later."""
        if tell:
            self.out.record(self._end(connection))
        if not connection.end_asked:
            self._waits[connection.conn] = TELL_FIRST_S
            self._timers.set(connection.conn, now + TELL_FIRST_S)

    def asked(self, connection: BackupConnection, primary_ended: bool, now: float) -> None:
        """The primary wants to know."""
        connection.end_asked = True
        if primary_ended and connection.primary_ended_at is None:
            connection.primary_ended_at = now
        self._forget(connection.conn)
        self.out.record(self._end(connection))

    def _forget(self, conn: int) -> None:
        self._waits.pop(conn, None)
        self._timers.cancel(conn)

    def on_timer(self, now: float) -> None:
        """Tell again."""
        for conn in self._timers.pop_due(now):
            connection = self.numbers.get(conn)
            wait = 2 * self._waits.pop(conn, TELL_MAX_S)
            if connection is None or connection.state is not Shadow.SHADOW or connection.closed_at is not None:
                continue
            if wait > TELL_MAX_S or (connection.fin_out is not None and connection.c_ack > connection.fin_out):
                continue
            self.out.record(self._end(connection))
            self._waits[conn] = wait
            self._timers.set(conn, now + wait)

    def clear(self) -> None:
        """Forget everything."""
        self._waits.clear()
        self._timers = TimerQueue()

    def poll_timeout(self) -> float | None:
        """The earliest deadline."""
        return self._timers.next()

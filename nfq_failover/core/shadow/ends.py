"""The shadow's part in deciding about ends: it tells the primary where the replica's stream is (core/gate/end_gate.py
decides)."""

from __future__ import annotations

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.connection import Shadow, ShadowConnection
from nfq_failover.core.shadow.divergence import Divergence
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import End, EndAsked, EndKind, Fed, Unprotected


def end_of(connection: ShadowConnection, well: bool) -> End:
    """Where the replica's stream is, as the client numbers it. A FIN is not counted: its own number is the end.

    What we have not seen, since a full queue has lost it, may have been data, or its FIN: whoever compares the two ends
    must not take it for either, nor the replica for one that goes on, or has gone on until it reset the connection.
    One that its client has reset does not go on either, and what it has said at last is not repeated.
    """
    output, inward = connection.output, connection.inward
    if output.rst_out is not None:
        kind, offset = EndKind.RST, min(output.rst_out, output.seen)
    elif output.fin_out is not None:
        kind, offset = EndKind.FIN, output.fin_out
    else:
        kind, offset = EndKind.OPEN, min(output.seen, output.snd_nxt)
        well = well and offset == output.snd_nxt and not inward.reset_by_client
    return End(connection.conn, connection.mapping.seen.seq(offset), inward.client.seq(inward.rcv_nxt), kind, well)


class ShadowEnds:
    """The ends of all connections. Each is told at once, then again until the primary shows that it knows: it asks, or
    the client has the FIN."""

    def __init__(
        self, out: Outbox, numbers: dict[int, ShadowConnection], divergence: Divergence, settings: Settings
    ) -> None:
        """`numbers`: the connections by number. `divergence`: knows when an end may be told."""
        self.out = out
        self.numbers = numbers
        self._divergence = divergence
        self._timers: TimerQueue[int] = TimerQueue()
        self._settings = settings
        self._well_at: float | None = None  # when a check has last begun that ended well

    def note_well(self, began_at: float) -> None:
        """A check of our application has ended well; this is when it began."""
        self._well_at = began_at

    def _end(self, connection: ShadowConnection) -> End:
        since = connection.end.primary_ended_at
        well = since is None or (self._well_at is not None and self._well_at > since)
        return end_of(connection, well or not self._settings.health_checked)

    def ended(self, connection: ShadowConnection, now: float, tell: bool = True) -> None:
        """The replica has just ended. `tell`: now; else only later."""
        if tell:
            self.out.record(self._end(connection))
        if not connection.end.asked:
            self._timers.set(connection.conn, now + connection.end.tell())

    def on_end_asked(self, record: EndAsked, now: float) -> None:
        """The primary's server has ended, or ours has: tell where our replica is."""
        connection = self.numbers.get(record.conn)
        if connection is None:
            self.out.record(Unprotected(record.conn, "unknown to the backup"))
        elif connection.state is Shadow.SHADOW or connection.output.rst_out is not None:
            if self._divergence.may_tell_end(connection, now):
                self._asked(connection, record.kind is not EndKind.OPEN, now)
        elif connection.state is Shadow.FED:
            self.out.record(Fed(record.conn, connection.reason))
        elif connection.state is Shadow.DEAD:
            self.out.record(Unprotected(record.conn, connection.reason))

    def _asked(self, connection: ShadowConnection, primary_ended: bool, now: float) -> None:
        connection.end.ask(primary_ended, now)
        self._timers.cancel(connection.conn)
        self.out.record(self._end(connection))

    def on_timer(self, now: float) -> None:
        """Tell again."""
        for conn in self._timers.pop_due(now):
            connection = self.numbers.get(conn)
            if connection is None or connection.state is not Shadow.SHADOW or connection.closing.closed_at is not None:
                continue
            output = connection.output
            wait_s = connection.end.tell_again()
            if not wait_s or (output.fin_out is not None and output.snd_una > output.fin_out):
                continue
            self.out.record(self._end(connection))
            self._timers.set(conn, now + wait_s)

    def clear(self) -> None:
        """Forget everything."""
        self._timers = TimerQueue()

    def poll_timeout(self) -> float | None:
        """The earliest deadline."""
        return self._timers.next()

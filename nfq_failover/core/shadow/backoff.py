"""After a takeover, take the clients' doubled retransmission timers back (RFC 6069, "TCP-LCD").

What a client has sent since the primary died it sends again after 0.2, 0.6, 1.4, 3, 6.2 s ...: every repetition that
nobody answers doubles its timer. So after a fence that took 4 s the client would stay silent for 2 s more, although a
server could answer again. An ICMP "host unreachable" that quotes the first byte it has no acknowledgement for
makes its TCP take one doubling back, and repeat at once what would be due by then (RFC 6069 section 4; Linux since
2.6.32). For every other TCP it is a soft error: noted, and nothing more (RFC 1122 section 4.2.3.9).
"""

from __future__ import annotations

from collections.abc import Mapping

from nfq_failover.constants import ACK
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import Shadow, ShadowConnection
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.icmp import build_host_unreachable

AT_ONCE = 3  # an eighth of the client's timer
LATER_S = (0.1, 0.3, 1.0)  # then one each: the client's repetition, or the announcement before it, may be lost


class BackoffRevert:
    """Asks the clients that may be waiting to try again, from the takeover on."""

    def __init__(self, numbers: Mapping[int, ShadowConnection], out: Outbox) -> None:
        """`numbers`: the connections by number; one that is not among them any more is left alone."""
        self.numbers = numbers
        self.out = out
        self._waiting: list[tuple[ShadowConnection, int]] = []  # with what the client had been told then
        self._due: list[float] = []

    def begin(self, connections: list[ShadowConnection], now: float) -> None:
        """`connections` were taken over, and their clients have been told so just now."""
        self._waiting = [(c, c.resending.told_ack) for c in connections if not c.ended and c.output.snd_una >= 0]
        self._due = [now + after for after in LATER_S] if self._waiting else []
        for _ in range(AT_ONCE):
            self._send()

    def on_timer(self, now: float) -> None:
        """Ask those once more that have sent nothing new."""
        # Ends: each turn takes a deadline out.
        while self._due and self._due[0] <= now:
            self._due.pop(0)
            self._waiting = [(connection, told) for connection, told in self._waiting if self._waits(connection, told)]
            self._send()
        if not self._due:
            self._waiting.clear()

    def _waits(self, connection: ShadowConnection, told: int) -> bool:
        here = self.numbers.get(connection.conn) is connection and connection.state is Shadow.ACTIVE
        return here and not connection.ended and connection.resending.told_ack == told

    def poll_timeout(self) -> float | None:
        """The next deadline."""
        return self._due[0] if self._due else None

    def _send(self) -> None:
        for connection, told in self._waiting:
            client, client_port, server, server_port = connection.flow
            quoted = build_segment(
                (client, client_port),
                (server, server_port),
                connection.inward.client.seq(told),
                connection.mapping.seen.seq(connection.output.snd_una),
                ACK,
                0,
            )
            self.out.counters["backoff-reverts"] += 1
            self.out.outward(build_host_unreachable(quoted))

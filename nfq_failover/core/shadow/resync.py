"""After a restart of the daemon: where the two streams of a connection that was taken over are, our own TCP is asked.

The question is an empty segment one byte before the window, as a keep-alive probe is: TCP answers it with its present
SEQ, ACK and window (RFC 9293 section 3.10.7.4, first), whatever it is doing, and takes nothing from it. Until the
answer is there the client's segments are dropped; it repeats them.
"""

from __future__ import annotations

from nfq_failover.constants import ACK, RST
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.inward import Inward
from nfq_failover.core.tcp.translation import Translation
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.segment import Segment

RETRY_FIRST_S = 0.05
RETRY_MAX_S = 1.0  # Linux answers such a segment at most twice a second (tcp_invalid_ratelimit)


class Resync:
    """The question to our own TCP. `pending`: it has not told yet where it is."""

    __slots__ = ("_plain", "_wait_s", "pending")

    def __init__(self) -> None:
        self.pending = False
        self._wait_s = 0.0
        self._plain = False  # how our TCP was asked last: without timestamps

    def begin(self) -> None:
        """Our TCP has to be asked."""
        self.pending = True

    def give_up(self) -> None:
        """Nobody needs the answer any more."""
        self.pending = False

    def ask(self, mapping: Translation, inward: Inward, out: Outbox) -> float:
        """Ask our TCP where it is. Returns how long to wait before it is asked again."""
        header = inward.header
        client, port, server, server_port = inward.flow
        seq = inward.client.seq(inward.rcv_nxt - 1)
        ack = mapping.own.seq(max(inward.own_una, 0))
        # The client's timestamps that we know may be old. Linux (6.18) answers a segment without timestamps, and drops
        # one with old ones silently (TcpExtPAWSOldAck); by RFC 7323 (sections 3.2 and 5.3) it is the other way: both,
        # in turn.
        self._plain = not self._plain
        timestamps = None
        if mapping.timestamps and not self._plain:
            timestamps = (header.tsval, mapping.own_tsecr(header.tsecr))
        options = ack_options(timestamps, [])
        out.inward(build_segment((client, port), (server, server_port), seq, ack, ACK, header.wnd, options))
        out.counters["resync-asked"] += 1
        self._wait_s = min(self._wait_s * 2, RETRY_MAX_S) or RETRY_FIRST_S
        return self._wait_s

    def answered(self, mapping: Translation, inward: Inward, seg: Segment) -> bool:
        """Our TCP has sent `seg`: learn from it. False if it says that it does not have the connection any more."""
        if seg.flags & RST or not seg.flags & ACK:
            return False
        self.pending = False
        if seg.ts_off:
            inward.header.echoed(seg.tsecr)
        inward.output.goes_on_at(mapping.own.offset(seg.seq))
        return True

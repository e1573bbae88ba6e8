"""After a restart of the daemon: where the two streams of a connection that was taken over are, our own TCP is asked.

The question is an empty segment one byte before the window, as a keep-alive probe is: TCP answers it with its present
SEQ, ACK and window (RFC 9293 section 3.10.7.4, first), whatever it is doing, and takes nothing from it. Until the
answer is there the client's segments are dropped; it repeats them.
"""

from __future__ import annotations

from nfq_failover.constants import ACK, RST
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import BackupConnection, Shadow
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.segment import Segment

RETRY_FIRST_S = 0.05
RETRY_MAX_S = 1.0  # Linux answers such a segment at most twice a second (tcp_invalid_ratelimit)


def ask(connection: BackupConnection, out: Outbox, timers: TimerQueue[int], now: float) -> None:
    """Ask our TCP where it is; again and again, until `answered`."""
    if connection.map is None:
        return
    client, port, server, server_port = connection.flow
    seq = connection.client.seq(connection.k_ack - 1)
    ack = connection.map.own.seq(max(connection.k_una, 0))
    # The client's timestamps that we know may be old. Linux (6.18) answers a segment without timestamps, and drops one
    # with old ones silently (TcpExtPAWSOldAck); by RFC 7323 (sections 3.2 and 5.3) it is the other way: both, in turn.
    connection.resync_plain = not connection.resync_plain
    timestamps = None
    if connection.map.timestamps and not connection.resync_plain:
        timestamps = (connection.c_tsval, connection.map.own_tsecr(connection.c_tsecr))
    options = ack_options(timestamps, [])
    out.inward(build_segment((client, port), (server, server_port), seq, ack, ACK, connection.c_wnd, options))
    out.counters["resync-asked"] += 1
    if connection.state is Shadow.ACTIVE:
        connection.resync_s = min(connection.resync_s * 2, RETRY_MAX_S) or RETRY_FIRST_S
        timers.set(connection.conn, now + connection.resync_s)


def answered(connection: BackupConnection, seg: Segment) -> bool:
    """Our TCP has sent `seg`: learn from it. False if it says that it does not have the connection any more."""
    if seg.flags & RST or not seg.flags & ACK:
        return False
    connection.resync = False
    if seg.ts_off:
        connection.c_tsval = seg.tsecr  # the newest of the client that our TCP has taken
    connection.output = Journal(connection.output.limit, connection.mapping.own.offset(seg.seq))
    return True

"""Which copied segments the primary's own TCP has certainly not taken, and which leave it open what it has taken.

Copies are made beside the packet's path, before our TCP judges the segment. The checks follow RFC 9293 section 3.10.7.4
and RFC 5961; core/shadow/acceptance.py has the backup's.
"""

from __future__ import annotations

from typing import Final

from nfq_failover.constants import ACK, URG
from nfq_failover.core.gate.connection import PrimaryConnection
from nfq_failover.core.tcp.claims import TWO_VERSIONS, URGENT, outdated
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import diff

UNREAD_BYTES: Final = 1 << 26
"""More than our TCP can have sent since we last looked: an ACK number further ahead than this is of nothing sent."""
UNREAD_WINDOW: Final = 1 << 20  # the window may be so much further than we have seen it


def copy_refused(connection: PrimaryConnection, seg: Segment, now: float) -> str:
    """Why our TCP has certainly not taken a segment that was copied on its way in; empty if it may have.

    An ACK number that is too old is no reason: Linux's fast path for the segment that comes next does not look.
    """
    if not seg.flags & ACK:
        return "no-ack-flag"
    if diff(seg.ack, connection.snd_nxt) > UNREAD_BYTES:
        return "ack-of-unsent"
    timestamps = connection.open.tsval is not None and connection.tsecr
    return "old-timestamp" if timestamps and outdated(seg, connection.tsecr, now - connection.ts_at) else ""


def copy_contradiction(connection: PrimaryConnection, seg: Segment, now: float) -> str:
    """Why a copied segment leaves it open which bytes our TCP has taken; empty if it does not.

    What our TCP took some time ago is settled: copies may be read late, but not by that much.
    """
    settled = connection.settled(now)
    offset = connection.client.offset(seg.seq)
    stop = offset + seg.payload_len
    if stop < settled or offset > connection.edge_kernel + UNREAD_WINDOW:
        return ""  # outside the window, so our TCP has not taken it
    if seg.flags & URG:
        return URGENT
    fin = connection.fin_in
    if fin is not None and connection.kernel_ack <= fin and (stop > fin or (seg.ends_stream and stop != fin)):
        return TWO_VERSIONS
    if seg.ends_stream and settled <= stop < connection.retained.end:
        return TWO_VERSIONS
    if stop <= settled or (offset >= connection.retained.end and not connection.retained.has_islands):
        return ""
    data = seg.payload()
    if offset < settled:
        data, offset = data[settled - offset :], settled
    return TWO_VERSIONS if connection.retained.differs(offset, data) else ""

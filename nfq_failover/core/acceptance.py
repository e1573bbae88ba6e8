"""Which of a client's segments may be believed: the checks of RFC 9293 section 3.10.7.4 and RFC 5961, for a host that
only listens.

The primary's own TCP makes these checks before it takes a byte. Whoever logs bytes beside it, or learns from a header,
must not believe what it refuses: a blind attacker would else write into the log, or acknowledge what no client has.
Stricter than TCP is safe here, for what is refused and was real is fetched from the primary; laxer is not.

What passes can still differ from what the primary's TCP took: a client may send two versions of the same bytes, and
which of them counts is decided by timestamps, memory and order. So nobody guesses: as soon as two versions are seen
(`Journal.differs`), on either host, the connection is no longer protected. The same goes for urgent data, which TCP
takes out of the stream, or not, as the application has asked for, and for a FIN at two places.
"""

from __future__ import annotations

from typing import Final

from nfq_failover.constants import ACK, URG
from nfq_failover.core.backup_connection import BackupConnection, Shadow
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.primary_connection import PrimaryConnection
from nfq_failover.core.seqspace import PAWS_IDLE_S
from nfq_failover.wire.records import SentAsked, SentUpTo
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import diff

UNREAD_BYTES: Final = 1 << 26
"""More than our TCP can have sent since we last looked: an ACK number further ahead than this is of nothing sent."""
UNREAD_WINDOW: Final = 1 << 20  # the window may be so much further than we have seen it
PAWS_SLACK: Final = 600_000
"""A timestamp that is so much older than the newest is refused (RFC 7323 section 5): ten minutes of a clock in
milliseconds; of one in microseconds longer than a copy may be unread. One that was only reordered is never so old."""
ASK_EVERY_S: Final = 0.005
TWO_VERSIONS: Final = "the client has sent different bytes for the same place"
URGENT: Final = "the client sends urgent data"


def _outdated(seg: Segment, newest: int, age_s: float) -> bool:
    return bool(seg.ts_off) and diff(seg.tsval, newest) < -PAWS_SLACK and age_s <= PAWS_IDLE_S


def refusal(connection: BackupConnection, seg: Segment, out: Outbox, now: float) -> str:
    """Why a client's segment is refused, empty if it may be right: PAWS, and RFC 5961 section 5.2's check of ACKs.

    Nothing older than a window before what is acknowledged; nothing that the server can't have sent. That is at most a
    window ahead, or as far as our own replica is. If the tap has lost what came before, the primary knows better, and
    is asked; after a takeover the client itself, which may say once what a dead primary has sent it.
    """
    if connection.open.tsval is not None and _outdated(seg, connection.c_tsval, now - connection.c_ts_at):
        return "old-timestamp"
    offset = connection.seen.offset(seg.ack)
    if offset < max(connection.c_ack - connection.widest, 0):
        return "ack-too-old"  # or it answers an earlier connection's server
    active = connection.state is Shadow.ACTIVE
    reach = max(connection.c_ack, connection.primary_sent, 0) + connection.widest
    if offset <= max(reach + (connection.left_behind if active else 0), connection.produced):
        if active:
            connection.left_behind = 0
        return ""
    if not active and now - connection.sent_asked_at >= ASK_EVERY_S:
        connection.sent_asked_at = now
        out.record(SentAsked(connection.conn))
    return "ack-of-unsent"


def on_sent(connection: BackupConnection, record: SentUpTo) -> None:
    """The primary has told what its server has sent."""
    connection.primary_sent = max(connection.primary_sent, connection.seen.offset(record.seq))


def contradiction(connection: BackupConnection, offset: int, seg: Segment) -> str:
    """Why the bytes of a client's segment can't be kept beside those that are in the log; empty if they can."""
    if seg.flags & URG:
        return URGENT
    stop = offset + seg.payload_len
    journal = connection.journal
    if seg.payload_len == 1 and stop == connection.cum:
        return ""  # a keep-alive probe may carry a byte of garbage (RFC 9293 section 3.8.4)
    if (offset < journal.end or journal.has_islands) and journal.differs(offset, seg.payload()):
        return TWO_VERSIONS
    fin = connection.fin_in
    if fin is None:
        return TWO_VERSIONS if seg.ends_stream and stop < connection.cum else ""
    return TWO_VERSIONS if stop > fin or (seg.ends_stream and stop != fin) else ""


def copy_refused(connection: PrimaryConnection, seg: Segment, now: float) -> str:
    """Why our TCP has certainly not taken a segment that was copied on its way in; empty if it may have.

    An ACK number that is too old is no reason: Linux's fast path for the segment that comes next does not look.
    """
    if not seg.flags & ACK:
        return "no-ack-flag"
    if diff(seg.ack, connection.snd_nxt) > UNREAD_BYTES:
        return "ack-of-unsent"
    timestamps = connection.open.tsval is not None and connection.tsecr
    return "old-timestamp" if timestamps and _outdated(seg, connection.tsecr, now - connection.ts_at) else ""


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

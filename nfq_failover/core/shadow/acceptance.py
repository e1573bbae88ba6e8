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

from nfq_failover.constants import URG
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import BackupConnection, Shadow
from nfq_failover.core.tcp.claims import TWO_VERSIONS, URGENT, outdated
from nfq_failover.wire.records import SentAsked, SentUpTo
from nfq_failover.wire.segment import Segment

ASK_EVERY_S: Final = 0.005


def refusal(connection: BackupConnection, seg: Segment, out: Outbox, now: float) -> str:
    """Why a client's segment is refused, empty if it may be right: PAWS, and RFC 5961 section 5.2's check of ACKs.

    Nothing older than a window before what is acknowledged; nothing that the server can't have sent. That is at most a
    window ahead, or as far as our own replica is. If the tap has lost what came before, the primary knows better, and
    is asked; after a takeover the client itself, which may say once what a dead primary has sent it.
    """
    if connection.open.tsval is not None and outdated(seg, connection.c_tsval, now - connection.c_ts_at):
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

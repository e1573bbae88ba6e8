"""Which of a client's segments may be believed: the checks of RFC 9293 section 3.10.7.4 and RFC 5961, for a host that
only listens.

The primary's own TCP makes these checks before it takes a byte. Whoever logs bytes beside it, or learns from a header,
must not believe what it refuses: a blind attacker could write into the log, or acknowledge what no client has.
Stricter than TCP is safe here, for what is refused and was real is fetched from the primary; laxer is not.

What passes can still differ from what the primary's TCP took: a client may send two versions of the same bytes, and
which of them counts is decided by timestamps, memory and order. So nobody guesses: as soon as two versions are seen
(`Journal.differs`), on either host, the connection is no longer protected. The same goes for urgent data, which TCP
takes out of the stream, or not, as the application has asked for, and for a FIN at two places.
"""

from __future__ import annotations

from typing import Final

from nfq_failover.constants import URG
from nfq_failover.core.shadow.header import ClientHeader
from nfq_failover.core.shadow.inward import Inward
from nfq_failover.core.shadow.output import Output
from nfq_failover.core.tcp.claims import TWO_VERSIONS, URGENT, outdated
from nfq_failover.wire.segment import Segment

ASK_EVERY_S: Final = 0.005
LEFT_BEHIND_BYTES: Final = 64 << 20  # what the client has acknowledged to a dead primary, beyond what we have heard


class Acceptance:
    """What the acknowledgements of one client are judged by, beside its own header and the replica's output.

    `primary_sent` is the end of what the primary's server has sent, as it last said.
    """

    __slots__ = ("_asked_at", "_left_behind", "_timestamps", "primary_sent")

    def __init__(self, timestamps: bool) -> None:
        """`timestamps`: the connection has them."""
        self._timestamps = timestamps
        self._asked_at = 0.0
        self._left_behind = LEFT_BEHIND_BYTES  # 0 as soon as the client has said what it has
        self.primary_sent = 0

    def refusal(self, seg: Segment, ack: int, header: ClientHeader, output: Output, active: bool, now: float) -> str:
        """Why a client's segment is refused, empty if it may be right: PAWS, and RFC 5961 section 5.2's check of ACKs.
        `ack` is the offset that it acknowledges.

        Nothing is believed that is older than a window before what is acknowledged, and nothing that the server can't
        have sent. That is at most a window ahead, or as far as our own replica is. If the tap has lost what came
        before, the primary knows better, and is asked (`may_ask`); after a takeover (`active`) the client itself, which
        may say once what a dead primary has sent it.
        """
        if self._timestamps and outdated(seg, header.tsval, now - header.tsval_at):
            return "old-timestamp"
        snd_una, widest = output.snd_una, header.widest
        if ack < max(snd_una - widest, 0):
            return "ack-too-old"  # or it answers an earlier connection's server
        reach = max(snd_una, self.primary_sent, 0) + widest
        if ack <= max(reach + (self._left_behind if active else 0), output.snd_nxt):
            if active:
                self._left_behind = 0
            return ""
        return UNSENT

    def may_ask(self, now: float) -> bool:
        """Whether the primary is asked what it has sent, because of a segment that was `UNSENT`; not too often."""
        if now - self._asked_at < ASK_EVERY_S:
            return False
        self._asked_at = now
        return True

    def primary_has_sent(self, offset: int) -> None:
        """The primary has told what its server has sent."""
        self.primary_sent = max(self.primary_sent, offset)


UNSENT: Final = "ack-of-unsent"


def contradiction(inward: Inward, offset: int, seg: Segment) -> str:
    """Why the bytes of a client's segment can't be kept beside those that are in the log; empty if they can."""
    if seg.flags & URG:
        return URGENT
    stop = offset + seg.payload_len
    inbound, held = inward.inbound, inward.held
    if seg.payload_len == 1 and stop == held:
        return ""  # a keep-alive probe may carry a byte of garbage (RFC 9293 section 3.8.4)
    if (offset < inbound.end or inbound.has_islands) and inbound.differs(offset, seg.payload()):
        return TWO_VERSIONS
    fin = inward.fin_in
    if fin is None:
        return TWO_VERSIONS if seg.ends_stream and stop < held else ""
    return TWO_VERSIONS if stop > fin or (seg.ends_stream and stop != fin) else ""

"""The client's stream on a primary: what its TCP has taken, and what the backup may still have to get from it."""

from __future__ import annotations

from nfq_failover.constants import FIN, SYN
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.wire.segment import Segment

MAX_RETAINED = 64 << 20
SETTLE_S = 0.2  # copies are read at every tick, 25 ms at most; a loop that is later than this is in trouble


class ClientStream:
    """`confirmed`: first byte the backup has not confirmed; `kernel_ack`: first byte our TCP has not taken;
    `edge_kernel`: its right window edge. All are offsets of the stream."""

    __slots__ = (
        "acked_at",
        "client",
        "confirmed",
        "edge_kernel",
        "fin_in",
        "kernel_ack",
        "mark",
        "mark_at",
        "retained",
        "settled_ack",
        "unserved",
    )

    def __init__(self, irs: int, now: float) -> None:
        self.client = SeqSpace(irs)
        self.acked_at = self.mark_at = now
        self.mark = self.settled_ack = 0
        self.confirmed = self.kernel_ack = self.edge_kernel = 0
        self.retained = Journal(MAX_RETAINED)
        self.fin_in: int | None = None
        self.unserved: tuple[int, float] | None = None  # what the backup has asked for in vain, since when

    def settled(self, now: float) -> int:
        """Bytes before this one our TCP took so long ago that no copy of them can be unread: a later version of them
        changes nothing."""
        return self.kernel_ack if now - self.acked_at > SETTLE_S else self.settled_ack

    def forget_settled(self, now: float) -> None:
        """Drop the bytes that the backup has, and of which no other version matters."""
        self.retained.trim(min(self.confirmed, self.settled(now)))

    def forget_bytes(self) -> None:
        """The backup will not ask for any."""
        self.retained = Journal(MAX_RETAINED, self.retained.end)

    def copied(self, seg: Segment, out: Outbox, now: float) -> None:
        """Keep the client's bytes until the backup has them, and for as long as another version of them may matter."""
        offset = self.client.offset(seg.seq)
        stop = offset + seg.payload_len + bool(seg.flags & FIN)
        # A merged packet may end beyond what the backup has confirmed, though it begins before. What lies beyond our
        # window is not of this connection, or our TCP will not take it.
        if seg.flags & SYN or stop < min(self.confirmed, self.settled(now)) or offset > self.edge_kernel:
            return
        if seg.payload_len and not self.retained.insert(offset, seg.payload()):
            out.counters["retained-full"] += 1
        if seg.flags & FIN:
            self.fin_in = offset + seg.payload_len

    def bytes_for_backup(self, start: int, count: int) -> tuple[bytes, bool]:
        """Bytes from `start` that our TCP has taken (only those are authoritative); whether the FIN follows them."""
        stop = min(self.kernel_ack, start + count)
        data = self.retained.read(start, stop - start)
        fin = self.fin_in is not None and start + len(data) == self.fin_in and self.kernel_ack > self.fin_in
        return data, fin

    @property
    def client_ended(self) -> bool:
        """Our TCP has taken the client's FIN. A window update for a client that is done would only meet its RST."""
        return self.fin_in is not None and self.kernel_ack > self.fin_in

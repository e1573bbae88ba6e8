"""The client's stream as a protecting host keeps it: the bytes that the backup may still have to get from us."""

from __future__ import annotations

from nfq_failover.constants import FIN, SYN
from nfq_failover.core.gate.own_tcp import OwnTcp
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.tcp.heard import Heard
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import MASK

MAX_RETAINED = 64 << 20


class Retained:
    """Keeps what was copied of one client's stream. `inbound` has the bytes, by offset; `fin_in` is the offset of the
    client's FIN; `unserved` says which byte the backup has asked for in vain, and since when. `heard`: what the client
    had heard before it sent them, in offsets of `server`, the server's stream."""

    __slots__ = ("_own", "fin_in", "heard", "inbound", "server", "unserved")

    def __init__(self, own: OwnTcp) -> None:
        self._own = own
        self.server = SeqSpace((own.snd_nxt_seq - 1) & MASK)
        self.inbound = Journal(MAX_RETAINED)
        self.heard = Heard()
        self.fin_in: int | None = None
        self.unserved: tuple[int, float] | None = None

    def keep(self, seg: Segment, confirmed: int, out: Outbox, now: float) -> bool:
        """Keep the client's bytes until the backup has them, and for as long as another version of them may matter.
        False: there was no room."""
        own = self._own
        offset = own.client.offset(seg.seq)
        stop = offset + seg.payload_len + bool(seg.flags & FIN)
        # A merged packet may end beyond what the backup has confirmed, though it begins before. What lies beyond our
        # window is not of this connection, or our TCP will not take it.
        if seg.flags & SYN or stop < min(confirmed, own.settled(now)) or offset > own.rcv_edge:
            return True
        if stop > self.inbound.end <= offset and (seg.payload_len or self.fin_in is None):
            ack = self.server.offset(seg.ack)
            self.server.follow(ack)
            self.heard.note(offset, ack)  # nothing that our server has sent depends on them
        kept = not seg.payload_len or self.inbound.insert(offset, seg.payload())
        if not kept:
            out.counters["retained-full"] += 1
        if seg.flags & FIN:
            self.fin_in = offset + seg.payload_len
        return kept

    def read(self, start: int, count: int) -> tuple[bytes, bool]:
        """Returns bytes from `start` that our TCP has taken (only those count), and whether the FIN follows them."""
        rcv_nxt = self._own.rcv_nxt
        stop = min(rcv_nxt, start + count)
        data = self.inbound.read(start, stop - start)
        fin = self.fin_in is not None and start + len(data) == self.fin_in and rcv_nxt > self.fin_in
        return data, fin

    def note_unserved(self, at: int | None, now: float) -> None:
        """The backup has asked for the byte `at` in vain; None: there is no such byte."""
        self.unserved = None if at is None else (at, now)

    def forget_settled(self, confirmed: int, now: float) -> None:
        """Drop the bytes that the backup has, and of which no other version matters."""
        self.inbound.trim(min(confirmed, self._own.settled(now)))
        self.heard.trim(confirmed)

    def forget(self) -> None:
        """Drop all bytes: the backup will not ask for any."""
        self.inbound = Journal(MAX_RETAINED, self.inbound.end)
        self.heard = Heard()

    @property
    def client_ended(self) -> bool:
        """Whether our TCP has taken the client's FIN."""
        return self.fin_in is not None and self._own.rcv_nxt > self.fin_in

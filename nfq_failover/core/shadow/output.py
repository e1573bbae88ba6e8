"""The server's stream as the replica sends it: what is kept of it, how far it is, and what the client has of it."""

from __future__ import annotations

from nfq_failover.constants import FIN
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.comparison import Comparison
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.core.tcp.translation import Translation
from nfq_failover.wire.segment import Segment


class Output:
    """The replica's output on one connection; offsets of the server's stream.

    `outbound` keeps what the client, or the comparison with the primary's output, may still need. `snd_nxt` is the end
    of what the replica has sent, `snd_una` what the client has acknowledged (-1 before its handshake is complete).
    `fin_out`, `rst_out`: where the replica has ended. `compare`: None if nothing is, or has to be, compared.
    `discarded`: nothing of it will be used. `healed_to`: before it some bytes of `outbound` may be the primary's, where
    the replica has sent other ones. `seen`: the end of what we have seen of it: less than `snd_nxt` if a packet was
    lost on the way to us, of which only a later one has told.
    """

    __slots__ = ("compare", "discarded", "fin_out", "healed_to", "outbound", "rst_out", "seen", "snd_nxt", "snd_una")

    def __init__(self, limit: int, compare: Comparison | None) -> None:
        """`limit`: how many bytes are kept at most."""
        self.outbound = Journal(limit)
        self.compare = compare
        self.fin_out: int | None = None
        self.rst_out: int | None = None
        self.snd_nxt = self.seen = 0
        self.snd_una = -1
        self.discarded = False
        self.healed_to = 0

    def learn(self, mapping: Translation, seg: Segment, out: Outbox, now: float) -> int:
        """Learn from a segment that our TCP sends (not a SYN-ACK); returns its offset in the server's stream."""
        offset = mapping.own.offset(seg.seq)
        end = offset + seg.seg_len
        if seg.payload_len and not self.discarded:
            needed = self._needed()
            if end > needed:
                if needed > self.outbound.end:
                    self.outbound.trim(min(offset, needed))  # what the client had before we sent it is not kept
                if not self.outbound.insert(offset, seg.payload()):
                    out.counters["output-full"] += 1  # our TCP has it, and would send it again after a takeover
        if seg.flags & FIN:
            self.fin_out = end - 1
        if end > self.seen and seg.seg_len:
            self.seen = end
        if end > self.snd_nxt:
            self.snd_nxt = end
            mapping.own.follow(end)
        if seg.ts_off:
            mapping.note_own_tsval(seg.tsval, now)
        return offset

    def _needed(self) -> int:
        """The first byte of the replica's output that the client, or the comparison with the primary's, may need."""
        return self.snd_una if self.compare is None else min(self.snd_una, self.compare.needed(self.snd_nxt))

    def acknowledged(self, ack: int) -> None:
        """The client has acknowledged everything before `ack`, which is more than it had before."""
        self.snd_una = ack
        if self.compare is not None:
            self.compare.client_has(ack)
        self.trim()

    def trim(self) -> None:
        """Forget what is not needed any more."""
        self.outbound.trim(min(self._needed(), self.outbound.end))

    def established(self) -> None:
        """The client has completed its handshake."""
        self.snd_una = max(self.snd_una, 0)

    def reset(self) -> None:
        """The replica, or after a takeover the server, has reset the connection, where its stream is."""
        self.rst_out = self.end

    @property
    def end(self) -> int:
        """The first byte that the replica has not sent; a FIN does not count."""
        return self.snd_nxt if self.fin_out is None else self.fin_out

    def discard(self) -> None:
        """Nothing of it will be used: it differs from what the client gets, and is not kept any more."""
        self.discarded = True
        self.compare = None
        self.forget_bytes()

    @property
    def whole_to(self) -> int:
        """The end of what we have seen of it without a hole that is still to be compared. A hole: a packet of our TCP
        was lost on its way to us, and a later one was not."""
        if self.compare is None or self.compare.after or not self.outbound.has_islands:
            return self.snd_nxt
        return self.outbound.end

    @property
    def acknowledged_to(self) -> int:
        """What our TCP may be told that the client has. Output that nobody gets is acknowledged as soon as it is there:
        a replica that waits for an acknowledgement would stop reading."""
        return self.snd_nxt if self.discarded else self.snd_una

    def withheld(self, end: int) -> bool:
        """After a takeover: whether output before `end` can't be sent yet."""
        return self.compare is not None and end > self.compare.trusted

    # ------------------------------------------------------------------------------------ the primary's bytes

    def heal(self, start: int, data: bytes) -> bool:
        """The primary has sent these bytes at `start`, the replica other ones: the client gets the primary's,
        unless it has them."""
        if start + len(data) <= self.snd_una:
            return False
        self.outbound.overwrite(start, data)
        self.healed_to = max(self.healed_to, start + len(data))
        return True

    def mend(self, seg: Segment, offset: int) -> None:
        """Put the primary's bytes into a segment that our TCP sends, perhaps once more, at `offset`."""
        start = max(offset, self.outbound.start)
        data = self.outbound.read(start, min(offset + seg.payload_len, self.healed_to) - start)
        at = seg.data_off + start - offset
        seg.buf[at : at + len(data)] = data

    @property
    def foreign(self) -> bool:
        """Whether the client lacks bytes that are not the replica's: nobody but us has them."""
        return self.healed_to > max(self.snd_una, 0) or (self.compare is not None and bool(self.compare.doubts))

    def stop_comparing(self) -> None:
        """Everything that had to be compared was."""
        self.compare = None

    def forget_bytes(self) -> None:
        """Nothing needs the stream any more."""
        self.outbound = Journal(self.outbound.limit, self.outbound.end)
        if self.compare is not None:
            self.compare.forget_pending()

    # ------------------------------------------------------------------------------------ after a restart

    @property
    def saved(self) -> tuple[int, int, int | None]:
        """What the checkpoint keeps, for `restore`."""
        return self.snd_una, self.snd_nxt, self.fin_out

    def restore(self, snd_una: int, snd_nxt: int, fin_out: int | None) -> None:
        """Go on with what was `saved`; the bytes are gone."""
        self.snd_una, self.snd_nxt, self.fin_out = snd_una, snd_nxt, fin_out
        self.seen = snd_nxt
        self.outbound = Journal(self.outbound.limit, snd_nxt)

    def goes_on_at(self, offset: int) -> None:
        """Our TCP was asked, and sends from `offset` on."""
        self.outbound = Journal(self.outbound.limit, offset)

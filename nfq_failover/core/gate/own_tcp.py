"""What our own TCP has said of one connection, in the numbers that the client knows."""

from __future__ import annotations

from nfq_failover.constants import ACK, FIN
from nfq_failover.core.tcp.seqspace import PAWS_IDLE_S, SeqSpace
from nfq_failover.wire.records import Open
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import MASK, diff, lt

REPEAT_S = 0.2  # the least time between two tries of TCP
SETTLE_S = 0.2  # copies are read at every tick, 25 ms at most; a loop that is later than this is in trouble


class OwnTcp:
    """Holds the header fields that our TCP sent last, and what follows from them.

    `rcv_nxt` and `rcv_edge` are offsets of the client's stream: the first byte that our TCP has not taken, and its
    right window edge. `snd_nxt_seq` is the sequence number of the server's next byte. `tsval`, `tsecr`: the newest
    timestamps; `ts_at`: when our TCP last echoed a newer one of the client's. `fin_sent`: its FIN has left.
    `repeated_seq`: where our TCP repeats itself, if it has sent nothing new since.
    """

    __slots__ = (
        "_mark",
        "_mark_at",
        "_sent_after_s",
        "_sent_at",
        "_settled",
        "_taken_at",
        "client",
        "established",
        "fin_sent",
        "flow",
        "mss",
        "rcv_edge",
        "rcv_nxt",
        "repeated_seq",
        "snd_nxt_seq",
        "timestamps",
        "ts_at",
        "tsecr",
        "tsval",
        "wscale",
    )

    def __init__(self, opening: Open, rcv_edge: int, now: float) -> None:
        """`opening` has what both ends agreed on in the handshake."""
        self.flow = opening.flow
        self.client = SeqSpace(opening.irs)
        self.wscale = opening.wscale or 0
        self.mss = opening.mss
        self.timestamps = opening.tsval is not None
        self.established = False  # our TCP has sent something after its SYN-ACK
        self.rcv_nxt = 0
        self.rcv_edge = rcv_edge
        self.snd_nxt_seq = (opening.iss + 1) & MASK
        self.tsval = opening.tsval or 0
        self.tsecr = 0
        self.ts_at = now
        self.fin_sent = False
        self.repeated_seq: int | None = None
        self._sent_at, self._sent_after_s = now, 0.0
        self._taken_at = self._mark_at = now
        self._mark = self._settled = 0

    def learn(self, seg: Segment, now: float) -> int:
        """Take in a segment (not a SYN) that our TCP sends. Returns what it acknowledges, as an offset."""
        ack = self.client.offset(seg.ack) if seg.flags & ACK else self.rcv_nxt
        if ack > self.rcv_nxt:
            if now - self._mark_at >= SETTLE_S:
                self._settled, self._mark, self._mark_at = self._mark, self.rcv_nxt, now
            self._taken_at = now
            self.rcv_nxt = ack
            self.client.follow(ack)
        edge = ack + (seg.wnd << self.wscale)
        if edge > self.rcv_edge:
            self.rcv_edge = edge
        if lt(self.snd_nxt_seq, seg.seq_end):
            self.snd_nxt_seq = seg.seq_end
            self.repeated_seq, self._sent_at = None, now
        elif seg.payload_len:
            self.repeated_seq, self._sent_at, self._sent_after_s = seg.seq, now, now - self._sent_at
        if seg.ts_off and (diff(seg.tsval, self.tsval) >= 0 or now - self.ts_at > PAWS_IDLE_S):
            if seg.tsecr != self.tsecr:
                self.ts_at = now
            self.tsval, self.tsecr = seg.tsval, seg.tsecr
        if seg.flags & FIN:
            self.fin_sent = True
        self.established = True
        return ack

    def learn_syn_ack(self, seg: Segment, wnd: int) -> None:
        """Take in the SYN-ACK that the client gets, with the window `wnd`, which is not scaled (RFC 7323 section 2.2).
        It may be a later one than that which opened the connection."""
        if seg.ts_off:
            self.tsval, self.tsecr = seg.tsval, seg.tsecr
        self.rcv_edge = max(self.rcv_edge, wnd)

    def note_established(self) -> None:
        """The handshake is over, though nobody saw it."""
        self.established = True

    def go_back_to(self, seq: int) -> None:
        """The stream ends before `seq`. An ACK of our TCP may have gone ahead of a FIN that was dropped in doubt."""
        self.snd_nxt_seq = seq

    def send_fin(self, seq: int) -> None:
        """Our TCP's FIN, which was held, leaves with this sequence number."""
        self.fin_sent = True
        self.snd_nxt_seq = (seq + 1) & MASK

    def unheard(self, seq: int, now: float) -> bool:
        """Whether the client does not answer our TCP, and has not acknowledged what precedes `seq` either.

        Its acknowledgements are not seen here. But a TCP that waits for one repeats the first byte that lacks it, each
        time after twice as long (RFC 6298 section 5), and sends nothing new.
        """
        if self.repeated_seq is None or not lt(self.repeated_seq, seq):
            return False
        return now - self._sent_at <= 2.5 * max(self._sent_after_s, REPEAT_S)

    def settled(self, now: float) -> int:
        """Returns the offset before which our TCP took everything long enough ago that every copy of it has been read:
        a later version of those bytes changes nothing."""
        return self.rcv_nxt if now - self._taken_at > SETTLE_S else self._settled

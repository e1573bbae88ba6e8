"""A compact model of a kernel's TCP end, as strict as a real one where translation could go wrong.

Own initial sequence number and timestamp clock, window scale, timestamps with PAWS and a check of TSecr (RFC 7323),
SACK (RFC 2018), cumulative and delayed ACKs, out-of-order reassembly, a bounded receive buffer whose right edge never
moves left, retransmission with backoff, fast retransmit (RFC 6582), zero window probes, FIN in all orders, TIME_WAIT,
and RFC 5961's exact RST. Positions are stream offsets: the SYN is -1, the first byte 0.
"""

from __future__ import annotations

from nfq_failover.constants import ACK, FIN, RST, SYN
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import diff
from nfq_failover.wire.tcp_options import SynOptions

from .tcp_send import CHALLENGE_S, DELAYED_ACK_S, MSS, MTU, SEND_BUFFER, Address, App, Blocks, Personality, Sender

__all__ = ["MSS", "MTU", "Address", "App", "Personality", "Tcp"]


class Tcp(Sender):
    """One end: the application's calls, and what comes in."""

    # ------------------------------------------------------------------------------------ the application's calls

    def write(self, data: bytes) -> int:
        """The application writes; returns how many bytes the buffer had room for."""
        if self.fin_at is not None or self.state in ("closed", "time-wait"):
            return 0
        room = max(SEND_BUFFER - len(self.sent), 0)
        self.sent += data[:room]
        self._output()
        return min(room, len(data))

    def read(self, most: int = 1 << 30) -> bytes:
        """The application reads; returns what is there."""
        data = self.received.read(self.read_at, min(most, self.received.end - self.read_at))
        self.read_at += len(data)
        self.received.trim(self.read_at)
        if self.state == "closed":
            return data  # what came before a reset
        edge = self.read_at + self.who.buffer
        if data and (edge - self.rcv_edge >= 2 * MSS or self.rcv_edge - self.rcv_nxt < MSS < edge - self.rcv_nxt):
            self._send_ack()
        return data

    @property
    def at_end(self) -> bool:
        """Whether the other end has closed, and everything was read."""
        return self.their_fin is not None and self.rcv_nxt > self.their_fin and self.read_at >= self.their_fin

    def close(self) -> None:
        """The application has nothing more to write."""
        if self.fin_at is None and self.state not in ("closed", "time-wait"):
            self.fin_at = self.base + len(self.sent)
            self._output()

    def abort(self) -> None:
        """Reset the connection."""
        if self.state not in ("closed", "time-wait"):
            self._emit(build_segment(self.local, self.remote, self.ours.seq(self.top), self._ack_seq(), RST | ACK, 0))
        self._gone(False)

    # ------------------------------------------------------------------------------------ receiving

    def input(self, seg: Segment) -> None:
        """A segment has come in."""
        if self.state == "syn-sent":
            self._input_syn_sent(seg)
            return
        offset = self.theirs.offset(seg.seq)
        if seg.flags & RST:
            if offset == self.rcv_nxt:
                self._gone(True)
            elif self.rcv_nxt < offset < self.rcv_edge:
                self._challenge("rst")
            else:
                self.counters["rst-ignored"] += 1
            return
        if seg.flags & SYN:
            if self.una < 0 and seg.flags & ACK == 0 and offset == -1:
                self._send_syn(SYN | ACK)
            else:
                self._challenge("syn")
            return
        if not seg.flags & ACK:
            return
        if self.state == "syn-received" and self.ours.offset(seg.ack) != 0:  # RFC 9293 section 3.10.7.4, fifth
            self._emit(build_segment(self.local, self.remote, seg.ack, 0, RST, 0))
            return
        if self.timestamps and not self._timestamps_good(seg, offset):
            return
        end = offset + seg.seg_len
        if end < self.rcv_nxt or offset > max(self.rcv_edge, self.rcv_nxt):
            if seg.payload_len:
                self.counters["out-of-window"] += 1
                self._send_ack(self._repeated(offset, min(end, self.rcv_nxt)))
            else:
                self._challenge("out-of-window")
            return
        ack = self.ours.offset(seg.ack)
        if ack > self.top:
            self._challenge("ack-beyond")
            return
        self._input_ack(seg, ack)
        if self.state == "closed":
            return
        if seg.seg_len:
            self._input_data(seg, offset)
        self._output()
        self._maybe_finished()

    def _repeated(self, offset: int, end: int) -> Blocks:
        """The block that says that these bytes have come once more (RFC 2883)."""
        return [(offset, end)] if self.who.dsack and offset < end else []

    def is_news(self, seg: Segment) -> bool:
        """Whether the segment brings new data."""
        return bool(seg.payload_len) and self.theirs.offset(seg.seq) + seg.payload_len > self.rcv_nxt

    def _timestamps_good(self, seg: Segment, offset: int) -> bool:
        if not seg.ts_off:
            self.counters["timestamp-missing"] += 1
            return False
        if diff(seg.tsval, self.ts_recent) < 0:
            self.counters["paws"] += 1
            self._send_ack()
            return False
        if diff(seg.tsecr, self.ts_first) < 0 or diff(seg.tsecr, self.ts_sent) > 0:
            self.counters["tsecr-rejected"] += 1
            return False
        if offset <= self.last_ack:
            self.ts_recent = seg.tsval
        return True

    def _challenge(self, why: str) -> None:
        """Answer what does not fit, as rarely as Linux does: two ends that disagree would go on for ever."""
        self.counters[f"challenge-{why}"] += 1
        if self.clock.now >= self.next_challenge:
            self.next_challenge = self.clock.now + CHALLENGE_S
            self._send_ack()

    def _input_syn_sent(self, seg: Segment) -> None:
        if seg.flags & RST:
            if seg.flags & ACK and self.ours.offset(seg.ack) == 0:
                self._gone(True)
            return
        if seg.flags & ACK and self.ours.offset(seg.ack) != 0:  # somebody still talks to an earlier connection
            self._emit(build_segment(self.local, self.remote, seg.ack, 0, RST, 0))
            return
        if seg.flags & (SYN | ACK) != SYN | ACK:
            return
        options = SynOptions.parse(seg.options())
        self.theirs = SeqSpace(seg.seq)
        self._negotiate(options, options.tsval)
        self.our_scale = self.who.wscale if self.who.scaling and options.wscale is not None else 0
        self.edge = seg.wnd
        self.una = 0
        self._opened()
        self._send_ack()
        self._output()

    def _opened(self) -> None:
        self.state, self.backoff = "open", 0
        self.timers.pop("rto", None)
        self._wake()

    def _input_ack(self, seg: Segment, ack: int) -> None:
        edge = ack + (seg.wnd << self.their_scale)
        self.unanswered = 0
        if self.una < 0 <= ack:
            self.una = 0
            self.edge = edge
            self._opened()
        for left, right in seg.sack if self.sack else []:
            a, b = self.ours.offset(left), self.ours.offset(right)
            if self.una < a < b <= self.top:
                self.sacked.insert(a, bytes(b - a))
        if ack > self.una:
            self._acked(ack)
        elif ack == self.una < self.top and seg.is_pure_ack and edge == self.edge:
            self.duplicates += 1
            if self.duplicates == 3 and self.una >= self.recover:
                self.recover = self.top
                self.cwnd = max(self.cwnd // 2, 2 * self.mss)
                self._retransmit_first()
        if edge > self.edge:
            self.edge = edge
            self.timers.pop("persist", None)
        self._output()

    def _acked(self, ack: int) -> None:
        newly, self.una = ack - self.una, ack
        self.nxt = max(self.nxt, ack)
        drop = min(ack - self.base, len(self.sent))
        del self.sent[:drop]
        self.base += drop
        self.ours.near = ack
        self.sacked.trim(ack)
        self.duplicates, self.backoff = 0, 0
        self.cwnd = min(self.cwnd + newly, 1 << 20)
        self.timers.pop("rto", None)
        if ack < self.recover:
            self._retransmit_first()
        if self.una < self.top:
            self._arm("rto", self.rto)
        if drop:
            self._wake()

    def _input_data(self, seg: Segment, offset: int) -> None:
        end = self.rcv_edge if self.their_fin is None else min(self.rcv_edge, self.their_fin)
        data = seg.payload()[: max(end - offset, 0)]  # what follows a FIN is ignored (RFC 9293 section 3.10.7.4)
        if data:
            self.received.insert(offset, data)
        if seg.flags & FIN and len(data) == seg.payload_len:
            self.their_fin = offset + seg.payload_len
        before = self.rcv_nxt
        self.rcv_nxt = max(self.rcv_nxt, self.received.end)
        fin = self.their_fin is not None and self.rcv_nxt == self.their_fin
        if fin:
            self.rcv_nxt += 1
        self.theirs.near = self.rcv_nxt
        advanced = self.rcv_nxt - before
        self.unacked += 1
        if not advanced or self.received.has_islands or fin or self.unacked >= 2:
            self._send_ack(self._repeated(offset, min(offset + len(data), before)))
        else:
            self._arm("delayed-ack", DELAYED_ACK_S, keep=True)
        if advanced:
            self._wake()

    def _wake(self) -> None:
        if self.app is not None:
            self.app.readable()

    def _maybe_finished(self) -> None:
        if self.state != "open" or self.their_fin is None or self.rcv_nxt <= self.their_fin:
            return
        if self.fin_at is None or self.una <= self.fin_at:
            return
        self.state = "time-wait"
        self._arm("time-wait", self.who.time_wait)

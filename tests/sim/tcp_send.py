"""The sending half of the model TCP (see tcp.py): opening, windows, retransmission, probes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from nfq_failover.constants import ACK, FIN, PSH, SYN
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import MASK
from nfq_failover.wire.tcp_options import SynOptions

from .clock import Clock, HostClock

MSS, MTU = 1460, 1500
HEADERS = MTU - MSS
RTO_S, RTO_MAX_S = 0.2, 2.0
FOR_EVER = 400
DELAYED_ACK_S = 0.04
CHALLENGE_S = 0.5
SEND_BUFFER = 64 << 10
Address = tuple[bytes, int]


ISN_CLOCK_BYTES = 1 << 22  # a quarter of a second's worth of the clock: more than any stream here has


@dataclass(frozen=True)
class Personality:
    """What differs from host to host."""

    ts_base: int
    wscale: int
    buffer: int
    sack: bool = True
    dsack: bool = True
    timestamps: bool = True
    scaling: bool = True
    mtu: int = MTU
    time_wait: float = 10.0
    super_segment: int = 1  # how many segments leave the stack as one (GSO)
    retries: int = (
        FOR_EVER  # how often it repeats itself, or probes a closed window, without any answer before it gives up
    )
    wrap: int = 0  # initial sequence numbers lie at most so far before 0 (0: anywhere)


Blocks = Sequence[tuple[int, int]]


class App(Protocol):
    """The application that uses the connection."""

    def readable(self) -> None:
        """Bytes, or the end of the stream, can be read; or there is room to write."""

    def closed(self, reset: bool) -> None:
        """The connection is over."""


class Sender:
    """The part of one end that sends. `emit(packet, gso)` hands a packet to the host."""

    def __init__(
        self,
        clock: Clock,
        who: Personality,
        local: Address,
        remote: Address,
        emit: Callable[[bytearray, bool], None],
        random: Random,
        ticks: HostClock,
    ) -> None:
        self.clock, self.who, self.local, self.remote, self.emit = clock, who, local, remote, emit
        self.ticks = ticks
        self.opened_at = clock.now
        self.app: App | None = None
        self.state = "closed"
        self.counters: Counter[str] = Counter()
        self.ours = SeqSpace(-random.randrange(who.wrap) & MASK if who.wrap else random.getrandbits(32))
        self.theirs = SeqSpace(0)
        self.timestamps = self.sack = False
        self.our_scale = self.their_scale = 0
        self.mss = MSS
        # sending
        self.sent: bytearray = bytearray()  # from `base` on
        self.base = 0
        self.una = self.nxt = self.top = -1
        self.edge = 0
        self.cwnd = 10 * MSS
        self.fin_at: int | None = None
        self.sacked = Journal(1 << 30)
        self.duplicates = 0
        self.recover = -1
        self.rto = RTO_S
        self.backoff = self.unanswered = 0
        # receiving
        self.received = Journal(1 << 30)
        self.rcv_nxt = 0
        self.read_at = 0
        self.rcv_edge = 0
        self.their_fin: int | None = None
        self.ts_recent = 0
        self.ts_first = self.ts_sent = 0
        self.last_ack = 0
        self.unacked = 0
        self.next_challenge = 0.0
        self.timers: dict[str, float] = {}
        self.orphan = False  # the process is gone, and has closed it

    # ------------------------------------------------------------------------------------ opening

    def begin_after(self, earlier: Sender) -> None:
        """Move the initial sequence number beyond what an earlier connection of the same two ends has sent, if it lies
        a little before that: a host's clock would not have given it (RFC 9293 section 3.4.1)."""
        end = earlier.ours.seq(earlier.top)
        if (end - self.ours.seq(-1)) & MASK <= ISN_CLOCK_BYTES:
            self.ours = SeqSpace(end + 1 & MASK)

    def connect(self) -> None:
        """Send a SYN."""
        self.state = "syn-sent"
        self.top = self.nxt = 0
        self.una = -1
        self._send_syn(SYN)

    def accept(self, seg: Segment) -> None:
        """Answer a SYN."""
        options = SynOptions.parse(seg.options())
        self.theirs = SeqSpace(seg.seq)
        self._negotiate(options, options.tsval)
        self.edge = seg.wnd
        self.state = "syn-received"
        self.top = self.nxt = 0
        self._send_syn(SYN | ACK)

    def _negotiate(self, options: SynOptions, tsval: int | None) -> None:
        who = self.who
        self.timestamps = who.timestamps and tsval is not None
        self.ts_recent = tsval or 0
        self.sack = who.sack and options.sack_permitted
        self.our_scale = who.wscale if who.scaling and options.wscale is not None else 0
        self.their_scale = (options.wscale or 0) if who.scaling else 0
        self.mss = min(who.mtu - HEADERS, options.mss) - (12 if self.timestamps else 0)

    def _send_syn(self, flags: int) -> None:
        who, answer = self.who, bool(flags & ACK)
        options = bytes((2, 4)) + (who.mtu - HEADERS).to_bytes(2, "big")
        if self.sack if answer else who.sack:
            options += bytes((1, 1, 4, 2))
        if self.timestamps if answer else who.timestamps:
            options += bytes((1, 1, 8, 10)) + self._tsval().to_bytes(4, "big") + self.ts_recent.to_bytes(4, "big")
        if who.scaling and (not answer or self.our_scale):
            options += bytes((1, 3, 3, who.wscale))
        window = min(who.buffer, 0xFFFF)
        self.rcv_edge = max(self.rcv_edge, window)
        ack = self.theirs.seq(0) if answer else 0
        self._emit(build_segment(self.local, self.remote, self.ours.seq(-1), ack, flags, window, options))
        self._arm("rto", self.rto * 2**self.backoff * 2)

    # ------------------------------------------------------------------------------------ sending

    def _tsval(self) -> int:
        self.ts_sent = (self.who.ts_base + int(self.ticks.now * 1000)) & MASK
        if not self.ts_first:
            self.ts_first = self.ts_sent
        return self.ts_sent

    def _ack_seq(self) -> int:
        return self.theirs.seq(self.rcv_nxt)

    def _emit(self, packet: bytearray, gso: bool = False) -> None:
        if self.state != "closed":
            self.emit(packet, gso)

    def _window(self) -> int:
        edge = max(self.rcv_edge, self.read_at + self.who.buffer, self.rcv_nxt)  # a FIN is taken just beyond, too
        window = (edge - self.rcv_nxt) >> self.our_scale
        if self.rcv_nxt + (window << self.our_scale) < self.rcv_edge:
            window = -(-(self.rcv_edge - self.rcv_nxt) >> self.our_scale)
        window = min(window, 0xFFFF)
        self.rcv_edge = max(self.rcv_edge, self.rcv_nxt + (window << self.our_scale))
        return window

    def _send(self, offset: int, data: bytes, flags: int, repeated: Blocks = ()) -> None:
        ranges = [*repeated, *self.received.ranges(3)][:3] if self.sack else []
        blocks = [(self.theirs.seq(a), self.theirs.seq(b)) for a, b in ranges]
        options = ack_options((self._tsval(), self.ts_recent) if self.timestamps else None, blocks)
        packet = build_segment(
            self.local, self.remote, self.ours.seq(offset), self._ack_seq(), flags, self._window(), options, data
        )
        self.last_ack, self.unacked = self.rcv_nxt, 0
        self.timers.pop("delayed-ack", None)
        self._emit(packet, len(data) > self.mss)

    def _send_ack(self, repeated: Blocks = ()) -> None:
        self._send(self.top, b"", ACK, repeated)

    def _end(self) -> int:
        """The offset one past the last byte that there is to send, the FIN included."""
        return self.base + len(self.sent) + (self.fin_at is not None)

    def _output(self) -> None:
        """Send what window and congestion window allow."""
        if self.state not in ("open", "syn-received") or self.una < 0:
            return
        stop = min(self.edge, self.una + self.cwnd)
        while self.nxt < self._end():
            if self.sacked.has_islands and (skip := self._sacked_end(self.nxt)):
                self.nxt = skip
                continue
            room = min(stop - self.nxt, self.mss * self.who.super_segment)
            data_end = self.base + len(self.sent)
            size = min(data_end - self.nxt, room)
            only_fin = self.nxt == data_end
            if size <= 0 and not (only_fin and self.fin_at is not None and self.nxt <= self.edge):
                break
            if 0 < size < self.mss and self.nxt + size < data_end and self.nxt > self.una:
                break  # silly window avoidance
            self.nxt += self._transmit(self.nxt, max(size, 0))
            self.top = max(self.top, self.nxt)
        if self.una < self.top:
            self._arm("rto", self.rto * 2**self.backoff, keep=True)
        elif self.nxt < self._end():
            self._arm("persist", self.rto * 2**self.backoff, keep=True)

    def _transmit(self, offset: int, size: int) -> int:
        data = bytes(self.sent[offset - self.base : offset - self.base + size])
        fin = self.fin_at == offset + size
        self._send(offset, data, ACK | (PSH if data else 0) | (FIN if fin else 0))
        return size + fin

    def _sacked_end(self, offset: int) -> int:
        return next((right for left, right in self.sacked.ranges(1000) if left <= offset < right), 0)

    def _retransmit_first(self) -> None:
        stop = min([left for left, _ in self.sacked.ranges(1)] + [self.base + len(self.sent), self.top])
        self._transmit(self.una, max(min(self.mss, stop - self.una), 0))

    # ------------------------------------------------------------------------------------ timers

    def _arm(self, name: str, seconds: float, keep: bool = False) -> None:
        if keep and name in self.timers:
            return
        self.timers[name] = when = self.clock.now + seconds
        self.clock.at(when, self._fire, name, when)

    def _fire(self, name: str, when: float) -> None:
        if self.timers.get(name) != when:
            return
        del self.timers[name]
        if name == "delayed-ack":
            self._send_ack()
        elif name == "time-wait":
            self._gone(False)
        elif name == "persist":
            if self._gives_up():
                return
            self.backoff = min(self.backoff + 1, 4, self.who.retries)
            self._send(self.una - 1, b"", ACK)
            if self.una == self.top and self.nxt < self._end() and self.edge <= self.nxt:
                self._arm("persist", min(self.rto * 2**self.backoff, RTO_MAX_S))
            self._output()
        elif name == "rto":
            self._timeout()

    def _gives_up(self) -> bool:
        """Nobody answers. Like a kernel, it tells nobody that it has had enough."""
        self.unanswered += 1
        if self.unanswered <= self.who.retries:
            return False
        self.counters["given-up"] += 1
        self._gone(True)
        return True

    def _timeout(self) -> None:
        self.counters["timeout"] += 1
        self.backoff = min(self.backoff + 1, 4, self.who.retries)
        if self._gives_up():
            return
        if self.state == "syn-sent":
            self._send_syn(SYN)
        elif self.una < 0:
            self._send_syn(SYN | ACK)
        elif self.una < self.top:
            self.cwnd, self.duplicates, self.recover = 2 * self.mss, 0, -1
            self.sacked = Journal(1 << 30, self.una)
            self.nxt = self.una
            if self.edge <= self.una:
                self._retransmit_first()  # the other end has shrunk its window: probe with the first segment
            self._arm("rto", min(self.rto * 2**self.backoff, RTO_MAX_S))
            self._output()

    def unreachable(self, seq: int) -> None:
        """A router is said to have dropped what begins with `seq`: one doubling is taken back (RFC 6069)."""
        if seq != self.ours.seq(self.una) or not self.backoff or "rto" not in self.timers:
            return
        armed = self.timers["rto"] - min(self.rto * 2**self.backoff, RTO_MAX_S)
        self.backoff -= 1
        self._arm("rto", max(armed + self.rto * 2**self.backoff - self.clock.now, 0.0))

    def abandon(self) -> None:
        """Forget the connection, and tell nobody."""
        self._gone(False)

    def _gone(self, reset: bool) -> None:
        over = self.state == "closed"
        self.state = "closed"
        self.timers.clear()
        if self.app is not None and not over:
            self.app.closed(reset)

"""The primary's side of one connection: the ACK gate.

While a connection is gated, no acknowledgement (cumulative or selective) leaves for a byte that the backup has not
confirmed, and the window's right edge stays within what the backup's TCP accepts:

- a pure ACK that says too much waits; it is sent again, from the newest header fields, once the backup has confirmed;
- a segment that carries data, FIN or RST goes out at once with its ACK number clamped and its window adjusted; the rest
  of its acknowledgement is owed and follows with the confirmation;
- the SYN-ACK waits until the replica can continue the connection.

Everything that was held back is sent as a newly built ACK, never as the old packet: an old TSval or SEQ would be
refused by the client (RFC 7323 section 5.2, RFC 9293 section 3.10.7.4).
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from nfq_failover.constants import ACK, FIN, PSH, RST
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.gate.client_stream import SETTLE_S, ClientStream
from nfq_failover.core.gate.end_gate import EndGate
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.tcp.seqspace import PAWS_IDLE_S
from nfq_failover.core.tcp.window import window_field
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.records import Confirm, EndKind, Open, Opened
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.seqnum import MASK, diff, lt

MAX_HELD = 64
END_LINGER_S = 2.0  # three repeats of the client's FIN: 0.2, 0.6 and 1.4 s after the first
OWED_HOLD_S = 0.0025  # the timer comes at POLL_FIRST_S = 3 ms
SACK_HOLD_S = 0.002  # how long an ACK waits for the confirmation of its SACK blocks alone
CATCH_UP_S = 0.5  # how long acknowledgements are held for a backup that is behind
CATCH_UP_FIRST_S = 2.0  # how long they are not, after that; doubled each time
CATCH_UP_MAX_S = 60.0

Blocks = list[tuple[int, int]]


class Gate(Enum):
    """The states of a connection on the primary."""

    SYN_HELD = "syn-held"
    CATCHING_UP = "catching-up"
    PROTECTED = "protected"
    UNPROTECTED = "unprotected"
    CLOSED = "closed"
    HANDED = "handed-over"  # see core/gate/handover.py: nothing is ever sent for it


_GATED = (Gate.PROTECTED, Gate.CATCHING_UP)


class PrimaryConnection(ClientStream):
    """State of one connection on the primary. Offsets are of the client's stream unless said otherwise.

    `sent_ack`: the acknowledgement that the client has seen, `sent_sack` the end of the selective ones that were not
    gated; the `edge_*` are right window edges likewise.
    """

    __slots__ = (
        "b_established",
        "catch_up_at",
        "catch_up_s",
        "confirm_at",
        "conn",
        "edge_backup",
        "edge_sent",
        "end",
        "established",
        "fin_clamped",
        "fin_out",
        "flow",
        "gone_at",
        "held",
        "mss",
        "open",
        "opened_at",
        "owed_since",
        "ranges",
        "reason",
        "retry_s",
        "sent_ack",
        "sent_sack",
        "shadowed",
        "snd_nxt",
        "state",
        "syn_ack",
        "ts_at",
        "tsecr",
        "tsval",
        "wscale",
    )

    def __init__(self, flow: FlowKey, opening: Open, now: float) -> None:
        super().__init__(opening.irs, now)
        self.flow = flow
        self.open = opening
        self.conn = opening.conn
        self.state = Gate.SYN_HELD
        self.reason = "opening"
        self.shadowed = False  # the backup has an entry of it, though it can't continue it
        self.wscale = opening.wscale or 0
        self.mss = opening.mss
        self.opened_at = now
        self.retry_s = 0.0
        self.syn_ack: bytearray | None = None
        self.established = False
        self.b_established = False
        self.sent_ack = self.sent_sack = 0
        self.edge_backup = self.edge_sent = 0
        self.ranges: Blocks = []
        self.held: deque[tuple[int, Blocks, float]] = deque()
        self.owed_since: float | None = None
        self.confirm_at = now
        self.catch_up_at = now
        self.catch_up_s = CATCH_UP_FIRST_S
        self.snd_nxt = (opening.iss + 1) & MASK
        self.tsval = opening.tsval or 0
        self.tsecr = 0
        self.ts_at = now  # when our TCP has last taken a newer timestamp of the client
        self.fin_out = self.fin_clamped = False
        self.end: EndGate | None = None
        self.gone_at: float | None = None

    # ------------------------------------------------------------------------------------ what our TCP sends

    @property
    def gated(self) -> bool:
        """Whether acknowledgements are held back."""
        return self.state in _GATED

    @property
    def _limit(self) -> int:
        """What may be acknowledged. While the backup catches up the client has seen more already."""
        return max(self.confirmed, self.sent_ack)

    def outbound(self, event: PacketQueued, seg: Segment, out: Outbox, now: float) -> None:
        """Judge a segment (not a SYN) that our TCP sends."""
        ack = self.client.offset(seg.ack) if seg.flags & ACK else self.kernel_ack
        self._learn(seg, ack, now)
        if self.state not in _GATED:
            self._note_sent(ack, ack + (seg.wnd << self.wscale))
            for _, right in seg.sack:
                self.sent_sack = max(self.sent_sack, self.client.offset(right))
            out.accept(event.queue, event.packet_id)
            return
        if not seg.flags & ACK:  # a bare RST acknowledges nothing
            out.accept(event.queue, event.packet_id)
            return
        blocks = [(self.client.offset(left), self.client.offset(right)) for left, right in seg.sack]
        covered = ack <= self._limit and all(self._covered(b) for b in blocks)
        if seg.is_pure_ack and not covered:
            if len(self.held) >= MAX_HELD:
                self.held.popleft()  # what it says is said by the newest one, too
                out.counters["held-replaced"] += 1
            self.held.append((ack, blocks, now))
            out.drop(event.queue, event.packet_id, "ack-held")
            return
        self._send_changed(event, seg, out, ack, blocks, now)

    def refuses(self, seg: Segment) -> bool:
        """Whether a segment of our TCP is no end of the stream but refuses what came instead of the handshake's last
        ACK. It passes as it is: it has to say what it refuses (RFC 9293 section 3.10.7.1), and proves no failure."""
        if not seg.flags & RST or self.established or (self.end is not None and self.end.held):
            return False  # after an end that is held, our TCP answers whatever comes like that
        return not seg.flags & ACK or seg.seq != self.snd_nxt

    def note_ack(self, seg: Segment, now: float) -> None:
        """Learn from a segment that is not sent (its FIN is held): what it acknowledges is owed."""
        ack = self.client.offset(seg.ack) if seg.flags & ACK else self.kernel_ack
        self._learn(seg, ack, now)
        if self.kernel_ack > self.sent_ack and self.owed_since is None:
            self.owed_since = now

    def release_end(self, out: Outbox) -> None:
        """Send the FIN or RST that was held, with what may be acknowledged now."""
        gate = self.end
        if gate is None or gate.passed:
            return
        gate.passed = True
        if gate.kind is EndKind.OPEN:
            return
        ack = max(min(self.kernel_ack, self._limit) if self.gated else self.kernel_ack, self.sent_ack)
        self.snd_nxt = gate.at  # an ACK of our TCP may have gone ahead of a FIN that was dropped in doubt
        if gate.kind is EndKind.RST:
            self.send_ack(out, ack, [], RST | ACK)
            return
        self.fin_clamped = ack < self.kernel_ack
        self.send_ack(out, ack, [], FIN | ACK)
        self.fin_out = True
        self.snd_nxt = (gate.at + 1) & MASK
        if ack >= self.kernel_ack:
            self.owed_since = None

    def _learn(self, seg: Segment, ack: int, now: float) -> None:
        if ack > self.kernel_ack:
            if now - self.mark_at >= SETTLE_S:
                self.settled_ack, self.mark, self.mark_at = self.mark, self.kernel_ack, now
            self.acked_at = now
            self.kernel_ack = self.client.near = ack
        edge = ack + (seg.wnd << self.wscale)
        if edge > self.edge_kernel:
            self.edge_kernel = edge
        if lt(self.snd_nxt, seg.seq_end):
            self.snd_nxt = seg.seq_end
        if seg.ts_off and (diff(seg.tsval, self.tsval) >= 0 or now - self.ts_at > PAWS_IDLE_S):
            if seg.tsecr != self.tsecr:
                self.ts_at = now
            self.tsval, self.tsecr = seg.tsval, seg.tsecr
        if seg.flags & FIN:
            self.fin_out = True
        self.established = True

    def _send_changed(
        self, event: PacketQueued, seg: Segment, out: Outbox, ack: int, blocks: Blocks, now: float
    ) -> None:
        """Let a segment go out now with what it may say."""
        allowed = min(ack, self._limit)
        window = seg.wnd
        edge = ack + (window << self.wscale)
        if allowed != ack or edge > self.edge_backup or edge < self.edge_sent:
            window = self.window_for(allowed)
        clipped = [b for b in (self._clip(b) for b in blocks) if b] if blocks else blocks
        while self.held and self.held[0][0] <= allowed:
            self.held.popleft()
        unchanged = allowed == ack and window == seg.wnd and clipped == blocks and not seg.changed
        if not unchanged and not event.complete:
            # Can't be rewritten, must not go out as it is: the kernel will send it again.
            out.drop(event.queue, event.packet_id, "incomplete-packet")
            self.owed_since = now
            return
        self._note_sent(allowed, allowed + (window << self.wscale))
        if unchanged:
            self.owed_since = None
            out.accept(event.queue, event.packet_id)
            return
        if allowed == ack:
            self.owed_since = None
        elif self.owed_since is None:
            self.owed_since = now
        if seg.flags & FIN and allowed != ack:
            self.fin_clamped = True
        seg.set_ack(self.client.seq(allowed))
        seg.set_wnd(window)
        if clipped != blocks:
            seg.set_sack([(self.client.seq(left), self.client.seq(right)) for left, right in clipped])
        if not event.gso:
            seg.seal()
        out.accept(event.queue, event.packet_id, seg.buf)

    def _covered(self, block: tuple[int, int]) -> bool:
        left, right = block
        return right <= self.confirmed or any(lo <= left and right <= hi for lo, hi in self.ranges)

    def _clip(self, block: tuple[int, int]) -> tuple[int, int] | None:
        """The first part of a SACK block that the backup holds."""
        left, right = block
        if self._covered(block):
            return block
        for low, high in self.ranges:
            if low < right and left < high:
                return max(low, left), min(high, right)
        return None

    @property
    def edge_limit(self) -> int:
        """The right edge that may be promised."""
        if self.state is Gate.CATCHING_UP:
            return min(self.edge_kernel, max(self.edge_backup, self.edge_sent))
        return min(self.edge_kernel, self.edge_backup) if self.state is Gate.PROTECTED else self.edge_kernel

    def window_for(self, ack: int) -> int:
        """The window field to send with `ack`, see `window_field`."""
        return window_field(ack, self.edge_limit, self.edge_sent, self.wscale)

    def _note_sent(self, ack: int, edge: int) -> None:
        if ack > self.sent_ack:
            self.sent_ack = ack
        if edge > self.edge_sent:
            self.edge_sent = edge

    # ------------------------------------------------------------------------------------ what the backup says

    def opened(self, record: Opened, out: Outbox) -> None:
        """The replica can continue the connection: let the SYN-ACK go."""
        self.edge_backup = max(self.edge_backup, self.client.offset(record.edge))
        if self.state is Gate.SYN_HELD:
            self.state, self.reason = Gate.PROTECTED, ""
            self.release_syn_ack(out)

    def release_syn_ack(self, out: Outbox) -> None:
        """Send the SYN-ACK that was held. Its window is not scaled (RFC 7323 section 2.2)."""
        if self.syn_ack is None:
            return
        seg = Segment(self.syn_ack)
        if seg.ts_off:
            self.tsval, self.tsecr = seg.tsval, seg.tsecr  # it may be a later one than that which opened
        if self.state is Gate.PROTECTED:
            seg.set_wnd(min(seg.wnd, max(self.edge_backup, 0)))
        self._note_sent(0, seg.wnd)
        self.edge_kernel = max(self.edge_kernel, seg.wnd)
        seg.seal()
        out.outward(bytes(seg.buf))

    def confirm(self, record: Confirm, out: Outbox, now: float) -> None:
        """The backup holds more."""
        cum = self.client.offset(record.cum)
        if cum < self.confirmed:
            return  # an old datagram that was overtaken
        self.edge_backup = max(self.edge_backup, self.client.offset(record.edge))
        self.ranges = [(self.client.offset(left), self.client.offset(right)) for left, right in record.ranges]
        self.b_established = self.b_established or record.established
        if cum > self.confirmed:
            self.confirmed = cum
            self.retry_s = 0.0
        self.forget_settled(now)
        self.confirm_at = now
        if self.state in _GATED:
            self.release(out, now)

    def release(self, out: Outbox, now: float) -> None:
        """Send what was held back, as far as it is confirmed."""
        held = self.held
        while held and held[0][0] <= self.confirmed:
            ack, blocks, since = held[0]
            if not all(self._covered(b) for b in blocks):
                if now - since < SACK_HOLD_S:
                    break
                blocks = [b for b in (self._clip(b) for b in blocks) if b]
            held.popleft()
            merges = held and held[0][0] <= self.confirmed and not blocks and ack > self.sent_ack
            if ack >= self.sent_ack and not merges:
                self.send_ack(out, ack, blocks)
        allowed = min(self.kernel_ack, self.confirmed)
        if allowed > self.sent_ack:
            # What a data segment could not say yet may ride on the next one, for a moment: no storm of pure ACKs.
            patient = self.owed_since is not None and now - self.owed_since < OWED_HOLD_S and not held
            if not patient or allowed - self.sent_ack >= 2 * self.mss:
                self.send_ack(out, allowed, [])
        elif self.window_starved:
            edge = min(self.edge_kernel, self.edge_backup)
            # In the scale's unit this ACK may say no more than it has said already: then it is not sent again.
            says = self.sent_ack + (self.window_for(self.sent_ack) << self.wscale)
            if says > self.edge_sent and edge - self.edge_sent >= min(self.mss, self.edge_kernel - self.edge_sent):
                self.send_ack(out, self.sent_ack, [])
        if self.kernel_ack <= self.sent_ack:
            self.owed_since = None

    @property
    def window_starved(self) -> bool:
        """The client may send less than our own TCP would let it; one that has sent its FIN sends no more."""
        return self.edge_sent < self.edge_kernel and not self.client_ended

    @property
    def waiting(self) -> bool:
        """Whether something is held back until the backup says more."""
        starving = self.edge_backup - self.sent_ack < self.mss < self.edge_kernel - self.sent_ack
        starving = starving and not self.client_ended
        return bool(self.held) or self.kernel_ack > self.confirmed or starving

    def send_data(self, out: Outbox, seq: int, data: bytes) -> None:
        """Send bytes that were held back, with what may be acknowledged now."""
        ack = max(min(self.kernel_ack, self._limit) if self.gated else self.kernel_ack, self.sent_ack)
        self.send_ack(out, ack, [], ACK | PSH, seq, data)

    def send_ack(
        self, out: Outbox, ack: int, blocks: Blocks, flags: int = ACK, seq: int | None = None, data: bytes = b""
    ) -> None:
        """Send a newly built segment to the client: a pure ACK at the end of our stream, or what is given."""
        window = self.window_for(ack)
        self._note_sent(ack, ack + (window << self.wscale))
        timestamps = (self.tsval, self.tsecr) if self.open.tsval is not None else None
        options = ack_options(timestamps, [(self.client.seq(left), self.client.seq(right)) for left, right in blocks])
        client_addr, client_port, server_addr, server_port = self.flow
        packet = build_segment(
            (server_addr, server_port),
            (client_addr, client_port),
            self.snd_nxt if seq is None else seq,
            self.client.seq(ack),
            flags,
            window,
            options,
            data,
        )
        out.counters["released" if data else "ack-sent"] += 1
        out.outward(packet)

    def probe(self, out: Outbox, seq: int) -> None:
        """Make the client repeat its acknowledgement, by a segment that is no news to it: the byte before `seq`, which
        it has acknowledged already (a keep-alive probe, RFC 9293 section 3.8.4)."""
        if lt(self.snd_nxt, seq):
            return  # our server has not sent it: nobody has acknowledged it
        out.counters["client-probed"] += 1
        self.send_ack(out, self.sent_ack, [], seq=(seq - 1) & MASK)

    # ------------------------------------------------------------------------------------ protection ends or begins

    def unprotect(self, reason: str, out: Outbox) -> None:
        """Hold nothing back any more."""
        if self.state is Gate.UNPROTECTED or self.state is Gate.CLOSED:
            return
        was, self.state, self.reason = self.state, Gate.UNPROTECTED, reason
        if was is Gate.SYN_HELD:
            self.release_syn_ack(out)
        elif self.held or self.kernel_ack > self.sent_ack or self.window_starved:
            self.send_ack(out, max(self.kernel_ack, self.sent_ack), [])
        self.held.clear()
        self.owed_since = None
        self.release_end(out)

    def protect_late(self, now: float) -> bool:
        """The replica can continue a connection that was let go unprotected. True if it is protected now.

        A busy client would always be told more than the backup has: while the backup catches up it is told no more.
        """
        if self.state not in (Gate.UNPROTECTED, Gate.CATCHING_UP):
            return False
        if self.edge_backup >= self.edge_sent and self.confirmed >= max(self.sent_ack, self.sent_sack):
            self.state, self.reason = Gate.PROTECTED, ""
            return True
        if self.state is Gate.UNPROTECTED and now >= self.catch_up_at:
            self.state = Gate.CATCHING_UP
            self.catch_up_at = now + CATCH_UP_S
        return False

    def give_up_catching_up(self, reason: str, out: Outbox, now: float) -> bool:
        """Let go again, if the backup could not catch up in time. The next time comes later, and later."""
        if self.state is not Gate.CATCHING_UP or now < self.catch_up_at:
            return False
        self.unprotect(reason, out)
        self.catch_up_at = now + self.catch_up_s
        self.catch_up_s = min(self.catch_up_s * 2, CATCH_UP_MAX_S)
        return True

    # ------------------------------------------------------------------------------------ when both have ended

    @property
    def closing(self) -> bool:
        """Both directions have ended."""
        return self.fin_out and self.client_ended

    # A client that got our FIN without the acknowledgement of its own repeats its FIN until that comes. But our TCP has
    # said it with its FIN, is gone when that is acknowledged, and answers a client that it does not know with a reset.

    @property
    def keeps_last_ack(self) -> bool:
        """Whether it is on us to acknowledge the client's FIN, and to repeat that."""
        return self.gated and self.fin_clamped and self.closing

    def lingers(self, now: float) -> bool:
        """Our TCP has none of it any more. Whether we have to remember it for the client's sake."""
        if self.gone_at is None:
            self.gone_at = now
        return self.keeps_last_ack and (self.sent_ack < self.kernel_ack or now - self.gone_at < END_LINGER_S)

    def repeat_last_ack(self, out: Outbox) -> None:
        """The client has repeated its FIN."""
        if self.confirmed >= self.kernel_ack:
            self.send_ack(out, self.kernel_ack, [])

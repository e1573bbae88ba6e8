"""The ACK gate of one connection: what the client may be told of its own stream, while another host has to have it.

While the gate holds, no acknowledgement (cumulative or selective) leaves for a byte that the backup has not confirmed,
and the window's right edge stays within what the backup's TCP accepts:

- a pure ACK that says too much waits; it is sent again, from the newest header fields, once the backup has confirmed;
- a segment that carries data, FIN or RST goes out at once with its ACK number clamped and its window adjusted; the rest
  of its acknowledgement is owed and follows with the confirmation.

Everything that was held back is sent as a newly built ACK, never as the old packet: an old TSval or SEQ would be
refused by the client (RFC 7323 section 5.2, RFC 9293 section 3.10.7.4).

The gate knows the segments that the client sees, and nothing of who makes them, nor of the table that the connection is
in.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from nfq_failover.constants import ACK, FIN, PSH, RST
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.gate.own_tcp import OwnTcp
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.tcp.window import window_field
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.records import Confirm
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import MASK, diff, lt

MAX_HELD = 64
OWED_HOLD_S = 0.0025  # the timer comes at POLL_FIRST_S = 3 ms
SACK_HOLD_S = 0.002  # how long an ACK waits for the confirmation of its SACK blocks alone

Blocks = list[tuple[int, int]]


class Inbound(Protocol):
    """What the gate asks whoever keeps the client's bytes."""

    @property
    def client_ended(self) -> bool:
        """Whether our TCP has taken the client's FIN."""


class AckGate:
    """Knows what one client has been told, and what it may be told. Offsets are of the client's stream.

    `confirmed` is the first byte that the backup lacks, `ranges` what it has beyond, `backup_edge` the right window
    edge that it accepts. `told_ack` and `told_edge` are the acknowledgement and the right edge that the client has
    seen, `told_sack` is the end of the selective acknowledgements that were not gated. `held_acks` are pure ACKs that
    wait, oldest first; `owed_since`: since when something is owed that a segment could not say. `fin_clamped`: our FIN
    went out without all that our TCP acknowledged with it.

    `holds`: acknowledgements are held back. `lenient`: the client has been told more than the backup has, before the
    gate was shut; what it has seen it may see again.
    """

    __slots__ = (
        "_inbound",
        "_own",
        "backup_edge",
        "confirmed",
        "fin_clamped",
        "held_acks",
        "holds",
        "lenient",
        "owed_since",
        "ranges",
        "told_ack",
        "told_edge",
        "told_sack",
    )

    def __init__(self, own: OwnTcp, inbound: Inbound) -> None:
        self._own = own
        self._inbound = inbound
        self.holds = self.lenient = False
        self.confirmed = self.backup_edge = 0
        self.told_ack = self.told_sack = self.told_edge = 0
        self.ranges: Blocks = []
        self.held_acks: deque[tuple[int, Blocks, float]] = deque()
        self.owed_since: float | None = None
        self.fin_clamped = False

    def shut(self, lenient: bool = False) -> None:
        """Hold acknowledgements back from now on."""
        self.holds, self.lenient = True, lenient

    def open(self) -> None:
        """Hold nothing back from now on. What is held already stays so until `let_go` or `discard`."""
        self.holds = self.lenient = False

    # ------------------------------------------------------------------------------------ what our TCP sends

    def outbound(self, event: PacketQueued, seg: Segment, ack: int, out: Outbox, now: float) -> None:
        """Judge a segment (not a SYN) that our TCP sends; `ack` is the offset that it acknowledges."""
        own = self._own
        if not self.holds:
            self._note_told(ack, ack + (seg.wnd << own.wscale))
            for _, right in seg.sack:
                self.told_sack = max(self.told_sack, own.client.offset(right))
            out.accept(event.queue, event.packet_id)
            return
        if not seg.flags & ACK:  # a bare RST acknowledges nothing
            out.accept(event.queue, event.packet_id)
            return
        blocks = [(own.client.offset(left), own.client.offset(right)) for left, right in seg.sack]
        if seg.is_pure_ack and not (ack <= self._limit and all(self._covered(b) for b in blocks)):
            if len(self.held_acks) >= MAX_HELD:
                self.held_acks.popleft()  # what it says is said by the newest one, too
                out.counters["held-replaced"] += 1
            self.held_acks.append((ack, blocks, now))
            out.drop(event.queue, event.packet_id, "ack-held")
            return
        self._send_changed(event, seg, out, ack, blocks, now)

    def owe(self, now: float) -> None:
        """A segment that is not sent has been learnt from: what it acknowledges is owed."""
        if self._own.rcv_nxt > self.told_ack and self.owed_since is None:
            self.owed_since = now

    @property
    def _limit(self) -> int:
        """What may be acknowledged. While the backup catches up the client has seen more already."""
        return max(self.confirmed, self.told_ack)

    def _send_changed(
        self, event: PacketQueued, seg: Segment, out: Outbox, ack: int, blocks: Blocks, now: float
    ) -> None:
        """Let a segment go out now with what it may say."""
        own = self._own
        allowed = min(ack, self._limit)
        window = seg.wnd
        edge = ack + (window << own.wscale)
        if allowed != ack or edge > self.backup_edge or edge < self.told_edge:
            window = self.window_for(allowed)
        clipped = [b for b in (self._clip(b) for b in blocks) if b] if blocks else blocks
        # Ends: each turn takes one out.
        while self.held_acks and self.held_acks[0][0] <= allowed:
            self.held_acks.popleft()
        unchanged = allowed == ack and window == seg.wnd and clipped == blocks and not seg.changed
        self._note_told(allowed, allowed + (window << own.wscale))
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
        seg.set_ack(own.client.seq(allowed))
        seg.set_wnd(window)
        if clipped != blocks:
            seg.set_sack([(own.client.seq(left), own.client.seq(right)) for left, right in clipped])
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
        """Returns the right edge that may be promised."""
        if self.lenient:
            return min(self._own.rcv_edge, max(self.backup_edge, self.told_edge))
        return min(self._own.rcv_edge, self.backup_edge) if self.holds else self._own.rcv_edge

    def window_for(self, ack: int) -> int:
        """Returns the window field to send with `ack`, see `window_field`."""
        return window_field(ack, self.edge_limit, self.told_edge, self._own.wscale)

    def _note_told(self, ack: int, edge: int) -> None:
        if ack > self.told_ack:
            self.told_ack = ack
        if edge > self.told_edge:
            self.told_edge = edge

    # ------------------------------------------------------------------------------------ what the backup says

    def accept_edge(self, edge: int) -> None:
        """The backup's TCP accepts bytes up to `edge`."""
        self.backup_edge = max(self.backup_edge, edge)

    def confirm(self, record: Confirm) -> bool:
        """The backup has told what it holds. False if the record was overtaken by a newer one."""
        offset = self._own.client.offset
        confirmed = offset(record.held)
        if confirmed < self.confirmed:
            return False
        self.backup_edge = max(self.backup_edge, offset(record.rcv_edge))
        self.ranges = [(offset(left), offset(right)) for left, right in record.ranges]
        self.confirmed = confirmed
        return True

    @property
    def caught_up(self) -> bool:
        """Whether the backup has everything that the client has been told."""
        return self.backup_edge >= self.told_edge and self.confirmed >= max(self.told_ack, self.told_sack)

    def release(self, out: Outbox, now: float) -> None:
        """Send what was held back, as far as it is confirmed."""
        held, own = self.held_acks, self._own
        # Ends: each turn takes one out, or is the last.
        while held and held[0][0] <= self.confirmed:
            ack, blocks, since = held[0]
            if not all(self._covered(b) for b in blocks):
                if now - since < SACK_HOLD_S:
                    break
                blocks = [b for b in (self._clip(b) for b in blocks) if b]
            held.popleft()
            merges = held and held[0][0] <= self.confirmed and not blocks and ack > self.told_ack
            if ack >= self.told_ack and not merges:
                self.send_ack(out, ack, blocks)
        allowed = min(own.rcv_nxt, self.confirmed)
        if allowed > self.told_ack:
            # What a data segment could not say may ride on the next one, for a moment: no storm of pure ACKs.
            patient = self.owed_since is not None and now - self.owed_since < OWED_HOLD_S and not held
            if not patient or allowed - self.told_ack >= 2 * own.mss:
                self.send_ack(out, allowed, [])
        elif self._starved:
            edge = min(own.rcv_edge, self.backup_edge)
            # In the scale's unit this ACK may say no more than it has said already: then it is not sent again.
            says = self.told_ack + (self.window_for(self.told_ack) << own.wscale)
            if says > self.told_edge and edge - self.told_edge >= min(own.mss, own.rcv_edge - self.told_edge):
                self.send_ack(out, self.told_ack, [])
        if own.rcv_nxt <= self.told_ack:
            self.owed_since = None

    @property
    def _starved(self) -> bool:
        """Whether the client may send less than our own TCP would let it. One that has sent its FIN sends no more: a
        window update would only meet its RST."""
        return self.told_edge < self._own.rcv_edge and not self._inbound.client_ended

    @property
    def held_since(self) -> float | None:
        """Since when the oldest acknowledgement is held back; None if none is."""
        return self.held_acks[0][2] if self.held_acks else None

    @property
    def waiting(self) -> bool:
        """Whether something is held back until the backup says more."""
        return bool(self.held_acks) or self._own.rcv_nxt > self.confirmed or self.starving

    @property
    def starving(self) -> bool:
        """Whether the client may send less than a segment, though our own TCP would let it."""
        own = self._own
        starving = self.backup_edge - self.told_ack < own.mss < own.rcv_edge - self.told_ack
        return starving and not self._inbound.client_ended

    # ------------------------------------------------------------------------------------ what is newly built

    def promise_syn_ack(self, wnd: int) -> int:
        """Returns the window field, not scaled, that the client is told with the SYN-ACK."""
        if self.holds:
            wnd = min(wnd, max(self.backup_edge, 0))
        self._note_told(0, wnd)
        return wnd

    def send_data(self, out: Outbox, seq: int, data: bytes) -> None:
        """Send bytes that were held back, with what may be acknowledged now."""
        self.send_ack(out, self._sayable, [], ACK | PSH, seq, data)

    def send_end(self, out: Outbox, flags: int, seq: int) -> None:
        """Send the end of our stream (FIN or RST) that was held, with what may be acknowledged now."""
        own, ack = self._own, self._sayable
        own.go_back_to(seq)
        if flags & RST:
            self.send_ack(out, ack, [], RST | ACK)
            return
        self.fin_clamped = ack < own.rcv_nxt
        self.send_ack(out, ack, [], FIN | ACK)
        own.send_fin(seq)
        if ack >= own.rcv_nxt:
            self.owed_since = None

    @property
    def _sayable(self) -> int:
        """The acknowledgement for a segment that is sent now."""
        rcv_nxt = self._own.rcv_nxt
        return max(min(rcv_nxt, self._limit) if self.holds else rcv_nxt, self.told_ack)

    def send_ack(
        self, out: Outbox, ack: int, blocks: Blocks, flags: int = ACK, seq: int | None = None, data: bytes = b""
    ) -> None:
        """Send a newly built segment to the client: a pure ACK at the end of our stream, or what is given."""
        own = self._own
        window = self.window_for(ack)
        self._note_told(ack, ack + (window << own.wscale))
        timestamps = (own.tsval, own.tsecr) if own.timestamps else None
        options = ack_options(timestamps, [(own.client.seq(left), own.client.seq(right)) for left, right in blocks])
        client, client_port, server, server_port = own.flow
        packet = build_segment(
            (server, server_port),
            (client, client_port),
            own.snd_nxt_seq if seq is None else seq,
            own.client.seq(ack),
            flags,
            window,
            options,
            data,
        )
        out.counters["released" if data else "ack-sent"] += 1
        out.outward(packet)

    def renew(self, seg: Segment) -> bool:
        """Bring a segment up to date that was newly built, and has then waited behind segments of our TCP: the client
        would refuse an older TSval (RFC 7323 section 5.3). Returns whether it is changed now."""
        own, told = self._own, self.told_ack
        ack = own.client.offset(seg.ack)
        if not 0 <= ack <= told:
            return False  # of an earlier connection
        late = bool(own.timestamps and seg.ts_off and diff(seg.tsval, own.tsval) < 0)
        if ack == told and ack + (seg.wnd << own.wscale) >= self.told_edge and not late:
            return False
        if ack < told:
            seg.set_ack(own.client.seq(told))
            if seg.sack:
                seg.set_sack([])  # a block that is acknowledged would tell the client of a duplicate (RFC 2883)
        seg.set_wnd(self.window_for(told))
        self._note_told(told, told + (seg.wnd << own.wscale))
        if late:
            seg.set_timestamps(own.tsval, own.tsecr)
        return True

    def probe(self, out: Outbox, seq: int) -> None:
        """Make the client repeat its acknowledgement, by a segment that is no news to it: the byte before `seq`, which
        it has acknowledged already (a keep-alive probe, RFC 9293 section 3.8.4)."""
        if lt(self._own.snd_nxt_seq, seq):
            return  # our server has not sent it: nobody has acknowledged it
        out.counters["client-probed"] += 1
        self.send_ack(out, self.told_ack, [], seq=(seq - 1) & MASK)

    def let_go(self, out: Outbox) -> None:
        """Say everything that was held back, now that the gate is open."""
        if self.held_acks or self._own.rcv_nxt > self.told_ack or self._starved:
            self.send_ack(out, max(self._own.rcv_nxt, self.told_ack), [])
        self.discard()

    def discard(self) -> None:
        """Forget what was held back. Nobody says it."""
        self.held_acks.clear()
        self.owed_since = None

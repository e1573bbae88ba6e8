"""What the client of a connection hears from us once it was taken over: our TCP's segments, translated, and before that
what was suppressed, sent again.

The replica's TCP believes that its suppressed segments are in flight. Everything the client has not acknowledged is
sent again from our copy: about ten segments at once (RFC 6928), then twice what each ACK newly acknowledges, until the
copy is used up. Meanwhile new output is appended to the copy instead of overtaking it; retransmissions of what was
already resent pass. Then the replica's TCP is on its own.
"""

from __future__ import annotations

from nfq_failover.constants import ACK, FIN, PSH, SYN
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.header import ClientHeader
from nfq_failover.core.shadow.inward import Inward
from nfq_failover.core.shadow.output import Output
from nfq_failover.core.tcp.translation import Translation
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.records import Open
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.tcp_options import set_wscale

INITIAL_SEGMENTS = 10
BURST_SEGMENTS = 64  # upon one acknowledgement, however much it says
STUCK_SIGHTINGS = 3
WAIT_FIRST_S = 0.3  # Linux' own least is 0.2 s; a round trip that takes longer costs some segments too many


class AckWait:
    """The client owes an acknowledgement, or a window; times in seconds (see recovery.py).

    `began`: the takeover, or None once the client has acknowledged something. `sent`: how far it was sent to.
    `next_s`: how long it is waited for before everything is sent again, `timeout_s` how long at first.
    """

    __slots__ = ("_began", "next_s", "sent", "timeout_s")

    def __init__(self, now: float, sent: int) -> None:
        self._began: float | None = now
        self.sent = sent
        self.timeout_s = self.next_s = WAIT_FIRST_S

    def heard(self, newly: bool, sent: int, now: float) -> bool:
        """A segment of the client; we have sent it everything before `sent`. `newly`: it acknowledges more than those
        before. Returns whether the wait begins anew."""
        more, self.sent = sent > self.sent, sent
        if not newly and not more:
            return False
        if newly and self._began is not None:
            # The only measure of the round trip that we have. Too long, if something had to be sent twice.
            self.timeout_s = max(WAIT_FIRST_S, 2 * (now - self._began))
            self._began = None
        self.next_s = self.timeout_s
        return True

    def in_vain(self) -> None:
        """Nothing has come: the next wait is twice as long."""
        self.next_s *= 2


class Resending:
    """What one client has heard from us. Offsets of the server's stream, but for those of acknowledgements.

    `next` is the next byte to be resent, None if nothing is; `resent` the end of what was. `floor` is the first of the
    client's bytes that this host lacked at the takeover: nothing before it may be asked for again. `told_ack` is what
    the client was last told that we have. `wait`: see `AckWait`.
    """

    __slots__ = (
        "_header",
        "_inward",
        "_opening",
        "_output",
        "_stuck",
        "floor",
        "next",
        "resent",
        "told_ack",
        "wait",
    )

    def __init__(self, opening: Open, header: ClientHeader, inward: Inward, output: Output) -> None:
        """The other parts of the connection are handed in."""
        self._opening = opening
        self._header = header
        self._inward = inward
        self._output = output
        self.floor = 0
        self.next: int | None = None
        self.resent = 0
        self.told_ack = 0
        self.wait: AckWait | None = None
        self._stuck: tuple[int, int, float] | None = None  # offset, how often, since when

    def begin(self, mapping: Translation, ended: bool, out: Outbox, now: float) -> None:
        """The client hears us from now on: it gets what is due, or at least a pure ACK. `ended`: the connection has."""
        output = self._output
        self.floor = self._inward.held
        mapping.take_over(self._inward.confirmed_edge)  # at most this was promised by the primary
        if output.snd_una < 0 or ended:
            # Handshake not complete: our TCP repeats its SYN-ACK, or the client its SYN. Ended: nobody waits for
            # anything.
            return
        self.next = output.snd_una
        if not self.resend(mapping, out, INITIAL_SEGMENTS, now):
            at = self.next  # not None: the client's window is closed, and nothing beyond it would be accepted
            self.send(mapping, out, self._behind() if at is None else at, b"", ACK, now)
            self.probe(mapping, out, now)

    def _behind(self) -> int:
        """What follows everything that the client has, or was sent by the replica."""
        return max(self._output.snd_nxt, self._output.snd_una)

    def _held(self) -> int:
        """The first of the client's bytes that neither our TCP has, nor this host had at the takeover."""
        return max(self._inward.rcv_nxt, self.floor)

    # ------------------------------------------------------------------------------------ segments of our own

    def send(self, mapping: Translation, out: Outbox, offset: int, data: bytes, flags: int, now: float) -> None:
        """Send the client a segment that we build ourselves."""
        inward = self._inward
        ack = self._held()
        self.told_ack = ack
        window = mapping.seen_window(ack, inward.rcv_edge)
        timestamps = None
        if mapping.timestamps:
            timestamps = (mapping.seen_tsval(mapping.own_clock(now)), self._header.tsval)
        client, client_port, server, server_port = inward.flow
        out.counters["resent"] += 1
        out.outward(
            build_segment(
                (server, server_port),
                (client, client_port),
                mapping.seen.seq(offset),
                inward.client.seq(ack),
                flags,
                window,
                ack_options(timestamps, []),
                data,
            )
        )

    def renew(self, mapping: Translation, seg: Segment) -> bool:
        """Bring a segment up to date that `send` has built, and that has then waited behind segments of our TCP: the
        client would refuse an older TSval, and what it carries (RFC 7323 section 5.3). Returns whether it is changed
        now."""
        client = self._inward.client
        ack = client.offset(seg.ack)
        if not 0 <= ack <= self._held():
            return False  # of an earlier connection
        before = seg.ack, seg.wnd, seg.tsval, seg.tsecr
        ack = max(ack, self.told_ack)
        seg.set_ack(client.seq(ack))
        seg.set_wnd(mapping.seen_window(ack, self._inward.rcv_edge))
        if seg.ts_off:
            seg.set_timestamps(mapping.newest_tsval(seg.tsval), self._header.tsval)
        return (seg.ack, seg.wnd, seg.tsval, seg.tsecr) != before

    def resend(self, mapping: Translation, out: Outbox, segments: int, now: float) -> int:
        """Send up to `segments` more of the suppressed output; returns how many went out. Ends the resending when
        done."""
        output, header = self._output, self._header
        sent = 0
        # Ends: `sent` grows with every turn but the last.
        while self.next is not None and sent < segments:
            at = max(self.next, output.snd_una)
            room = output.snd_una + (header.wnd << header.wscale) - at
            if room <= 0 and at < output.snd_nxt:
                return sent
            if output.compare is not None:
                room = min(room, output.compare.trusted - at)
                if room <= 0:
                    return sent
            data = output.outbound.read(at, min(header.mss, room))
            after = at + len(data)
            fin = output.fin_out == after and output.snd_una <= after
            if not data and not fin:
                self.next = None
                return sent
            last = after >= output.outbound.end
            self.send(mapping, out, at, data, ACK | (PSH if last else 0) | (FIN if fin else 0), now)
            sent += 1
            self.resent = max(self.resent, after + fin)
            self.next = None if fin else after
        return sent

    def go_back(self, mapping: Translation, out: Outbox, now: float) -> None:
        """Send the first byte that the client lacks again, or ask for its window; all that follows comes after that."""
        self.next = self._output.snd_una
        if not self.resend(mapping, out, 1, now):
            self.probe(mapping, out, now)

    def probe(self, mapping: Translation, out: Outbox, now: float) -> None:
        """A client whose window is closed may have opened it meanwhile, and told nobody who is alive; or it has more of
        the primary's bytes than it has said, where we have none. Make it say so again: its TCP answers a segment from
        before its window with an acknowledgement (RFC 9293 section 3.10.7.4, first). Where its answer decides, the
        segment has a byte: then the answer is known (core/shadow/unknown.py), and comes however often it is asked."""
        compare = self._output.compare
        if not self._header.wnd or compare is not None:
            told = self.told_ack
            byte = b"\0" if compare is not None and compare.doubts else b""
            self.send(mapping, out, self._output.snd_una - 1, byte, ACK, now)
            self.told_ack = told  # of what is outside its window it takes no acknowledgement

    def answer(self, mapping: Translation, out: Outbox, now: float) -> None:
        """Repeat our last acknowledgement, for a client that repeats its FIN."""
        self.send(mapping, out, self._output.snd_nxt, b"", ACK, now)

    def on_client_ack(self, mapping: Translation, newly: int, out: Outbox, now: float) -> None:
        """The client has acknowledged `newly` bytes: go on with the resending."""
        if self.next is None:
            return
        idle = self.next <= self._output.snd_una
        segments = min(-(-2 * newly // self._header.mss), BURST_SEGMENTS)
        self.resend(mapping, out, max(segments, INITIAL_SEGMENTS if idle else 0), now)

    # ------------------------------------------------------------------------------------ segments of our TCP

    def outward(
        self, mapping: Translation, event: PacketQueued, seg: Segment, offset: int, out: Outbox, now: float
    ) -> None:
        """Translate a segment of our TCP for the client (its content was learned already)."""
        output = self._output
        if output.healed_to > offset and seg.payload_len:
            output.mend(seg, offset)
        if seg.seg_len and output.withheld(offset + seg.seg_len):
            out.drop(event.queue, event.packet_id, "not-compared")
            self._tell_news(mapping, out, now)
            return
        if self.next is not None and seg.seg_len:
            if offset > self.next:
                out.drop(event.queue, event.packet_id, "resend-pending")
                self._tell_news(mapping, out, now)
                return
            # Not out of order: a retransmission of our TCP, perhaps its probe of a closed window.
            self.next = max(self.next, offset + seg.seg_len)
        if seg.seg_len and offset + seg.seg_len <= output.snd_una:
            out.drop(event.queue, event.packet_id, "client-has-it")
            self._tell_news(mapping, out, now)
            return
        if offset < output.snd_una and seg.payload_len:
            out.drop(event.queue, event.packet_id, "client-has-its-head")
            self._send_rest(mapping, seg, offset, out, now)
            return
        if not seg.seg_len and output.snd_nxt < output.snd_una:
            # Our TCP is behind what the client has: its own SEQ is below the client's window, so its acknowledgement
            # would be refused (RFC 9293 section 3.10.7.4), and the client would repeat its data for ever. Otherwise a
            # SEQ below the window is meant so: it is a probe.
            offset = output.snd_una
        self._translate(mapping, event, seg, offset, out)

    def _tell_news(self, mapping: Translation, out: Outbox, now: float) -> None:
        """A data segment of our TCP is not sent: what it acknowledges is, if the client does not know."""
        if self._held() > self.told_ack:
            self.send(mapping, out, self._behind() if self.next is None else self.next, b"", ACK, now)

    def _send_rest(self, mapping: Translation, seg: Segment, offset: int, out: Outbox, now: float) -> None:
        """Send only what the client has not acknowledged of a segment."""
        at, mss = self._output.snd_una, self._header.mss
        data = seg.payload()[at - offset :]
        flags = seg.flags & ~FIN
        # Ends: `data` gets shorter: the MSS is at least `MIN_MSS` less timestamps.
        while len(data) > mss:
            self.send(mapping, out, at, data[:mss], flags, now)
            data = data[mss:]
            at += mss
        self.send(mapping, out, at, data, seg.flags, now)

    def outward_syn_ack(self, mapping: Translation, event: PacketQueued, seg: Segment, out: Outbox) -> None:
        """Our TCP repeats its SYN-ACK: the client must see the one that the primary sent."""
        if self._opening.wscale is not None:
            options = bytearray(seg.options())
            set_wscale(options, self._opening.wscale)
            seg.buf[seg.tcp_off + 20 : seg.data_off] = options
        self._translate(mapping, event, seg, -1, out)

    def _translate(self, mapping: Translation, event: PacketQueued, seg: Segment, offset: int, out: Outbox) -> None:
        client = self._inward.client
        seg.set_seq(mapping.seen.seq(offset))
        if seg.flags & ACK:
            ack = max(client.offset(seg.ack), self._held())  # a packet may have waited in the queue since before
            seg.set_ack(client.seq(ack))
            self.told_ack = ack
            if not seg.flags & SYN:
                seg.set_wnd(mapping.seen_window(ack, self._inward.rcv_edge))
        if seg.ts_off:
            seg.set_timestamps(mapping.seen_tsval(seg.tsval), seg.tsecr)
        if not event.gso:
            seg.seal()
        out.accept(event.queue, event.packet_id, seg.buf)

    # ------------------------------------------------------------------------------------ what the client sends

    def client_ends_at(self, stop: int) -> None:
        """The client's FIN is behind `stop`: it counts unless it is an old segment, cut elsewhere."""
        if stop >= self._held():
            self._inward.ends_at(stop)

    def stuck(self, offset: int, now: float, deadline_s: float) -> bool:
        """Whether a client's data segment, which starts at `offset`, shows a hole that can never be filled.

        A client that lacks our acknowledgement sends its first unacknowledged byte again and again (RFC 6298 section
        5.4). If that byte lies beyond our hole, it has been told that we had the bytes in between.
        """
        if offset <= self._held():
            self._stuck = None
            return False
        head, times, since = self._stuck or (offset, 0, now)
        if offset != head:
            if offset < head:
                self._stuck = (offset, 1, now)
            return False
        self._stuck = (head, times + 1, since)
        return times + 1 >= STUCK_SIGHTINGS and now - since >= deadline_s

    # ------------------------------------------------------------------------------------ recovery, restart

    def wait_for_ack(self, now: float) -> None:
        """The client owes an acknowledgement of what was resent, or a window."""
        self.wait = AckWait(now, self.resent)

    def wait_no_more(self) -> None:
        """Nothing is to be repeated any more."""
        self.wait = None

    def restore(self, floor: int) -> None:
        """Go on, after a restart of the daemon, with what was held at the takeover."""
        self.floor = self.told_ack = floor

"""The client's stream on its way to the replica: logged, translated, delivered, and delivered again."""

from __future__ import annotations

from nfq_failover.constants import ACK, FIN, PSH, RST
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.header import ClientHeader
from nfq_failover.core.shadow.order import Order
from nfq_failover.core.shadow.output import Output
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.core.tcp.translation import Translation
from nfq_failover.errors import InternalError
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.records import Confirm, Open
from nfq_failover.wire.segment import Segment

REDELIVER_BYTES = 16384
REDELIVER_BURST = 8
OLD_BYTES = 64 << 20  # how old a client's retransmission can be
WIDEST = 0xFFFF  # the window field for a replica whose output goes nowhere
JOURNAL_AHEAD = 4 << 20  # bytes beyond the replica's window that we still log


class Inward:
    """What this host has of one client's stream, and what its TCP has taken of it; offsets of the client's stream.

    `inbound` is the log; `rcv_nxt` the first byte that our TCP has not taken, `rcv_edge` the right edge that it
    accepts, `confirmed_edge` the one that the primary knows. `held` is the first byte that neither the log nor our TCP
    has; a FIN counts as a byte. `fin_in`: where the client has ended; `rst_in`: an RST that waits for our TCP to get
    there. `late_until`: what the client has sent that was let in before our TCP had answered; `was_late`: there was
    such. `given_to`: our TCP is behind, and was given again what is before this; None: it is not. `sent_to`: how far
    the client has sent, for all that has come: what lies before it may be missing here. `order`: what of the log our
    TCP does not get yet.

    In the server's stream, `own_una` is what our TCP was told that the client has acknowledged, with the window field
    `own_wnd`.
    """

    __slots__ = (
        "client",
        "confirmed_edge",
        "fin_in",
        "flow",
        "given_to",
        "header",
        "held",
        "inbound",
        "late_until",
        "order",
        "output",
        "own_una",
        "own_wnd",
        "rcv_edge",
        "rcv_nxt",
        "reset_by_client",
        "rst_in",
        "sent_to",
        "was_late",
    )

    def __init__(self, opening: Open, limit: int, header: ClientHeader, output: Output) -> None:
        """`limit`: how many bytes are logged at most. `header` and `output`: the connection's other parts."""
        self.flow = opening.flow
        self.header = header
        self.output = output
        self.client = SeqSpace(opening.irs)
        self.inbound = Journal(limit)
        self.order = Order()
        self.fin_in: int | None = None
        self.rst_in: int | None = None
        self.reset_by_client = False
        self.held = self.rcv_nxt = self.sent_to = 0
        self.rcv_edge = self.confirmed_edge = 0
        self.late_until = -1
        self.was_late = False
        self.given_to: int | None = None
        self.own_una = self.own_wnd = -1

    # ------------------------------------------------------------------------------------ what we hold

    def _grown(self) -> None:
        held = max(self.inbound.end, self.rcv_nxt)
        self.held = held + 1 if held == self.fin_in else held

    def confirm(self, conn: int) -> Confirm:
        """The confirmation for the primary of what we hold, and of what our TCP accepts."""
        seq = self.client.seq
        self.confirmed_edge = self.rcv_edge
        ranges = tuple((seq(left), seq(right)) for left, right in self.inbound.ranges(4))
        return Confirm(conn, seq(self.held), seq(self.rcv_edge), ranges, self.output.snd_una >= 0)

    def confirm_edge(self) -> int:
        """Returns the sequence number of the right edge, which the primary is told by `Opened`."""
        self.confirmed_edge = self.rcv_edge
        return self.client.seq(self.rcv_edge)

    @property
    def room_end(self) -> int:
        """Returns the end of what the log has room for."""
        return self.inbound.start + self.inbound.limit

    def store(self, offset: int, data: bytes, fin: bool, out: Outbox) -> None:
        """Log bytes of the client's stream."""
        if self.rst_in is not None:
            self.outlived_reset(offset + len(data) + fin)
        if self.fin_in is not None:
            data = data[: max(self.fin_in - offset, 0)]  # a keep-alive probe's garbage; all else contradicts the FIN
        ahead = max(self.rcv_edge, self.held) + JOURNAL_AHEAD
        if offset + len(data) > self.rcv_nxt and (offset > ahead or not self.inbound.insert(offset, data)):
            out.counters["log-full"] += 1
            return
        if fin and offset + len(data) >= self.inbound.end:
            self.fin_in = offset + len(data)
        self._grown()

    def outlived_reset(self, stop: int) -> None:
        """The client goes on to `stop`: an RST before that was not its last word."""
        if self.rst_in is not None and stop > self.rst_in:
            self.rst_in = None

    def ends_at(self, offset: int) -> None:
        """The client has ended at `offset`; nothing is logged any more."""
        self.fin_in = offset
        self._grown()

    def taken(self, seg: Segment, own_wscale: int) -> None:
        """Learn from what our TCP acknowledges, and grants, in `seg`."""
        ack = self.client.offset(seg.ack)
        if ack > self.rcv_nxt:
            self.rcv_nxt = ack
            self.client.follow(ack)
            self.inbound.trim(min(ack, self.fin_in) if self.fin_in is not None else ack)
            self._grown()
        if ack >= self.rcv_nxt:
            self.rcv_edge = max(self.rcv_edge, ack + (seg.wnd << own_wscale))

    def opened(self, wnd: int) -> None:
        """Our TCP has answered the client's SYN with this window, which is not scaled in a SYN-ACK."""
        self.rcv_edge = self.confirmed_edge = wnd
        self.rcv_nxt = 0
        self._grown()

    def plausible(self, offset: int) -> bool:
        """Whether a client's segment can be of this connection: RFC 9293 section 3.10.7.4's check, with room for a
        primary that is ahead of us. The tap may be late with what belongs to an earlier connection of the same port;
        its numbers, taken for this one's, would end it. (ACK numbers: core/shadow/acceptance.py.)"""
        held = self.held
        return max(held - OLD_BYTES, -1) <= offset <= max(self.rcv_edge, held) + JOURNAL_AHEAD

    def client_is_at(self, offset: int) -> None:
        """The client has sent everything before `offset`, though it may not have come here."""
        if offset > self.sent_to:
            self.sent_to = offset

    def let_in(self, stop: int) -> None:
        """The client has sent up to `stop`, though our TCP has not answered: the primary has not waited for us."""
        self.late_until = max(self.late_until, stop)
        self.was_late = True

    def caught_up(self) -> None:
        """The primary learns by our answer that we have what was let in, and protects the connection."""
        self.late_until = -1

    @property
    def late(self) -> bool:
        """The primary has not waited for us, and we can't have told it that we have caught up."""
        return self.late_until > self.held

    @property
    def lagging(self) -> bool:
        """Our TCP has not acknowledged everything that we hold."""
        return self.rcv_nxt < self.held

    @property
    def unread(self) -> bool:
        """There are bytes of the client, not only its end, that our TCP has not taken."""
        return self.inbound.end > self.rcv_nxt or self.inbound.has_islands

    def forget_bytes(self) -> None:
        """Nothing needs the stream any more."""
        self.inbound = Journal(self.inbound.limit, self.inbound.end)

    # ------------------------------------------------------------------------------------ client -> replica

    def deliver(self, mapping: Translation, event: PacketQueued, seg: Segment, ack: int, out: Outbox) -> None:
        """Translate a client's segment for our TCP and let it in. `ack`: the offset that it acknowledges."""
        tellable = self.tellable
        if self.output.discarded:
            told, window = tellable, WIDEST
            if seg.is_pure_ack:
                out.drop(event.queue, event.packet_id, "fed")  # it talks of another server's output
                return
        elif ack <= tellable:
            told, window = ack, seg.wnd
        else:
            told = tellable
            window = self.header.window_from(told, ack, seg.wnd)
            if seg.is_pure_ack and told <= self.own_una and window == self.own_wnd:
                out.drop(event.queue, event.packet_id, "ack-clamped")  # a duplicate for our TCP; told later
                return
        if told > self.own_una:
            self.own_una = told
        self.own_wnd = window
        if window != seg.wnd:
            seg.set_wnd(window)
        self._translate(mapping, event, seg, told, out)

    @property
    def tellable(self) -> int:
        """What our TCP may be told at most that the client has: nothing behind a hole in what we have seen, so that it
        fills that; unless it was told before."""
        whole_to = self.output.whole_to
        return whole_to if whole_to >= self.own_una else self.output.snd_nxt

    def _translate(self, mapping: Translation, event: PacketQueued, seg: Segment, told: int, out: Outbox) -> None:
        """Let the segment in, with an acknowledgement of `told`."""
        if seg.flags & ACK:
            seg.set_ack(mapping.own.seq(told))
        if seg.sack:
            seg.set_sack([] if self.output.discarded else mapping.own_sack(seg.sack, self.output.snd_nxt))
        if seg.ts_off:
            seg.set_timestamps(seg.tsval, mapping.own_tsecr(seg.tsecr))
        seg.seal()
        out.accept(event.queue, event.packet_id, seg.buf)

    def deliver_rst(
        self, mapping: Translation | None, event: PacketQueued, seg: Segment, active: bool, out: Outbox
    ) -> None:
        """Let a client's RST in. In the shadow (not `active`) one that our TCP would take and the primary's would not
        must not get through: it has to fit exactly (RFC 5961 section 3.2) where the client's stream ends, for all that
        we know, and it waits for a TCP of ours that is behind. A client that is gone answers old segments with an RST
        for each, where they say that it is: the primary's TCP has more by then. If it takes another one than ours all
        the same, we are told."""
        offset = self.client.offset(seg.seq)
        self.client_is_at(offset)
        if not active and (offset >= self.rcv_nxt or mapping is None):
            if offset != self.held or offset < self.sent_to:
                out.drop(event.queue, event.packet_id, "rst-elsewhere")
                return
            if mapping is None or offset > self.rcv_nxt:
                self.rst_in = offset
                out.drop(event.queue, event.packet_id, "rst-held")
                return
        if mapping is None:
            raise InternalError("an RST is let in before the replica's SYN-ACK")
        self.reset_by_client = self.reset_by_client or offset == self.rcv_nxt
        if seg.flags & ACK:
            told = self.output.snd_nxt if self.output.discarded else mapping.seen.offset(seg.ack)
            seg.set_ack(mapping.own.seq(min(told, self.output.snd_nxt)))
        if seg.ts_off:
            seg.set_timestamps(seg.tsval, mapping.own_tsecr(seg.tsecr))
        seg.seal()
        out.accept(event.queue, event.packet_id, seg.buf)

    def release_rst(self, mapping: Translation, out: Outbox) -> None:
        """Deliver the RST that has waited, if our TCP has come to where it fits."""
        if self.rst_in is None or self.rst_in > self.rcv_nxt:
            return
        if self.rst_in == self.rcv_nxt:
            self.inject(mapping, out, self.rst_in, flags=RST | ACK)
            self.reset_by_client = True
        self.rst_in = None

    def refer(self, mapping: Translation, event: PacketQueued, seg: Segment, out: Outbox) -> None:
        """Let our TCP judge a segment that can't be of this connection: it will not take it, and answers as TCP does.

        Nothing is learned from it, and its acknowledgement is translated as it is, however wrong."""
        self._translate(mapping, event, seg, mapping.seen.offset(seg.ack), out)

    def inject(self, mapping: Translation, out: Outbox, offset: int, data: bytes = b"", flags: int = ACK) -> None:
        """Deliver a segment that we build ourselves, with the client's newest acknowledgement."""
        header, snd_una = self.header, self.output.acknowledged_to
        told = max(min(snd_una, self.tellable), 0)
        self.own_una = max(self.own_una, told)
        self.own_wnd = WIDEST if self.output.discarded else header.window_from(told, snd_una, header.wnd)
        timestamps = (header.tsval, mapping.own_tsecr(header.tsecr)) if mapping.timestamps else None
        client, port, server, server_port = self.flow
        out.inward(
            build_segment(
                (client, port),
                (server, server_port),
                self.client.seq(offset),
                mapping.own.seq(told),
                flags,
                self.own_wnd,
                ack_options(timestamps, []),
                data,
            )
        )
        out.counters["injected-inward"] += 1

    def tell_acknowledged(self, mapping: Translation, out: Outbox) -> None:
        """Tell our TCP what the client's newest segment says, but for its bytes, if it may need that to go on: an
        acknowledgement, or room in the client's window when less than half of that is left."""
        header, snd_una, snd_nxt = self.header, self.output.acknowledged_to, self.output.snd_nxt
        told = max(min(snd_una, snd_nxt), 0)
        room = self.own_una + (self.own_wnd << header.wscale) - snd_nxt
        window = header.window_from(told, snd_una, header.wnd) << header.wscale
        if told > self.own_una or 2 * room < window:
            self.inject(mapping, out, max(min(self.order.edge, self.held), self.rcv_nxt))

    def redeliver(self, mapping: Translation, out: Outbox, probe: bool = False) -> None:
        """Give our TCP again what it has not taken, within its window. `probe`: if that is closed, ask for it."""
        at = self.given_to = self._deliver_log(mapping, self.rcv_nxt, REDELIVER_BURST, out)
        if probe and self.rcv_edge <= self.rcv_nxt == at:
            self.inject(mapping, out, at - 1)  # no news to our TCP, which answers with its window (RFC 9293 3.8.6.1)

    def deliver_from(self, mapping: Translation, offset: int, out: Outbox) -> bool:
        """Give our TCP what was held back from `offset` on, within its window. Returns whether that is anything."""
        at = max(offset, self.rcv_nxt)
        given_to = self._deliver_log(mapping, at, -(-self.inbound.size // REDELIVER_BYTES) + 1, out)
        if given_to == at:
            return False
        self.given_to = given_to
        return True

    def _deliver_log(self, mapping: Translation, at: int, most: int, out: Outbox) -> int:
        """Deliver at most so many segments of what is logged from `at` on, and is not held back. Returns where what was
        delivered ends."""
        end, edge = self.inbound.end, self.order.edge
        for _ in range(most):
            room = min(self.rcv_edge, edge) - at
            data = self.inbound.read(at, min(REDELIVER_BYTES, room)) if room > 0 else b""
            fin = self.fin_in == at + len(data) == end < edge
            if not data and not fin:
                break
            self.inject(mapping, out, at, data, ACK | PSH | (FIN if fin else 0))
            at += len(data) + fin
            if fin:
                break
        return at

    @property
    def takes_more(self) -> bool:
        """Our TCP, which was behind, has taken all that it was given again, and has room for more that is for it."""
        edge = min(self.held, self.rcv_edge, self.order.edge)
        return self.given_to is not None and self.given_to <= self.rcv_nxt < edge

    def no_lag(self) -> None:
        """Our TCP has what we hold: what the tap brings is enough."""
        self.given_to = None

    # ------------------------------------------------------------------------------------ after a restart

    @property
    def saved(self) -> tuple[int, int, int | None]:
        """What the checkpoint keeps, for `restore`."""
        return self.rcv_nxt, self.rcv_edge, self.fin_in

    def restore(self, rcv_nxt: int, rcv_edge: int, fin_in: int | None) -> None:
        """Go on with what was `saved`; the output has been restored already."""
        self.rcv_nxt, self.rcv_edge, self.fin_in = rcv_nxt, rcv_edge, fin_in
        self.confirmed_edge = rcv_edge
        self.client.follow(rcv_nxt)
        self.inbound = Journal(self.inbound.limit, rcv_nxt)
        self.own_una = min(self.output.snd_una, self.output.snd_nxt)
        self._grown()

"""The backup's side of one connection: the replica's TCP in the shadow of the primary's.

`OPENING`: the client's SYN, as the primary described it, has been delivered; the replica's SYN-ACK is awaited.
`SHADOW`: the client's segments are logged, translated and delivered; the replica's output is kept until the client has
acknowledged it to the primary, and goes nowhere. `ACTIVE`: after the takeover, the output goes to the client. `DEAD`:
the replica can't continue the connection; after a takeover the client is told by RST.

Offsets in the client's stream: `cum` is the first byte we don't hold, `k_ack` the first that our TCP has not taken. In
the server's stream: `c_ack` is what the client has acknowledged, `k_una` what our TCP was told of it, `produced` the
end of what the replica has sent.
"""

from __future__ import annotations

import math
from enum import Enum

from nfq_failover.constants import ACK, FIN, OPT_MSS, OPT_SACK_PERMITTED, OPT_TIMESTAMPS, OPT_WSCALE, PSH, RST, SYN
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.comparison import Comparison
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.core.tcp.seqspace import PAWS_IDLE_S, SeqSpace
from nfq_failover.core.tcp.translation import ReplicaMap
from nfq_failover.errors import InternalError
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.records import Confirm, Open
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import diff
from nfq_failover.wire.tcp_options import SynOptions, without

REDELIVER_BYTES = 16384
REDELIVER_BURST = 8
OLD_BYTES = 64 << 20  # how old a client's retransmission can be
LEFT_BEHIND_BYTES = 64 << 20  # what the client has acknowledged to a dead primary, beyond what we have heard
JOURNAL_AHEAD = 4 << 20  # bytes beyond the replica's window that we still log


class Shadow(Enum):
    """The states of a connection on the backup."""

    OPENING = "opening"
    SHADOW = "shadow"
    ACTIVE = "active"
    DEAD = "dead"


class BackupConnection:
    """State of one connection on the backup; `map` is None until the replica has answered."""

    def __init__(self, opening: Open, settings: Settings, now: float) -> None:
        self.open = opening
        self.flow = opening.flow
        self.conn = opening.conn
        self.state = Shadow.OPENING
        self.reason = ""
        self.opened_at = now
        self.syn_sent_at: float | None = None
        self.syn_retry_s = 0.02
        offered = SynOptions.parse(opening.syn_options)
        self.client_wscale = (offered.wscale or 0) if opening.wscale is not None else 0
        self.client_mss = offered.mss - (12 if opening.tsval is not None else 0)
        self.client = SeqSpace(opening.irs)
        self.seen = SeqSpace(opening.iss)  # the server's stream as the client numbers it
        self.map: ReplicaMap | None = None
        # client's stream
        self.journal = Journal(settings.max_log_bytes)
        self.fin_in: int | None = None
        self.rst_in: int | None = None
        self.reset_by_client = False
        self.k_ack = 0
        self.k_edge = 0
        self.edge_confirmed = 0
        self.upto = 0  # what the primary's TCP has taken, as it last said
        # server's stream
        self.output = Journal(settings.max_unacked_bytes)
        self.compare = (
            None if settings.divergence == "off" else Comparison()
        )  # None: nothing is, or has to be, compared
        self.fin_out: int | None = None
        self.rst_out: int | None = None
        self.end_asked = False
        self.primary_ended_at: float | None = None
        self.produced = 0
        self.c_ack = -1  # -1: the client has not completed the handshake
        self.k_una = -1
        self.late_until = -1  # what a client has sent that was let in before our TCP had answered
        self.primary_sent = 0  # so much the primary's server has sent, as it last said
        self.sent_asked_at = 0.0
        # the client's newest header fields
        self.c_wnd = opening.syn_wnd >> self.client_wscale  # a SYN's window is not scaled (RFC 7323 section 2.2)
        self.c_wnd_told = -1
        self.widest = max(opening.syn_wnd, 65535)  # the largest window that the client has ever granted
        self.c_tsval = offered.tsval or 0
        self.c_tsecr = opening.tsval or 0
        self.c_ts_at = now
        # repeated work
        self.hole_retry_s = 0.0
        self.late_since: float | None = None  # our tap has not brought what the primary had then
        self.late_to = 0
        self.asked_at: float | None = None  # bytes were asked for that have not all come yet
        self.asked_to = self.asked_left = 0
        self.asked_once = False  # and nothing was repeated, nor answered, since
        self.unheard: tuple[int, float] | None = None  # the client's last ACK, when our TCP sent what follows it
        self.lag_since: float | None = None
        self.lag_retry_s = 0.0
        self.closed_at: float | None = None
        self.gone_at: float | None = None
        self.tell_s = 0.0  # how long to wait before the primary is told again that we can't continue; 0: no more
        # after the takeover
        self.heard = False
        self.handed = 0  # the primary's number, if it alone was handed over (core/shadow/handover.py)
        self.floor = 0
        self.left_behind = LEFT_BEHIND_BYTES  # 0 as soon as the client has said what it has
        self.resend_next: int | None = None
        self.resent = 0  # the end of what was
        self.ack_sent = 0
        self.stuck: tuple[int, int, float] | None = None
        # after a restart of the daemon
        self.resync = False  # our TCP has not told yet where it is
        self.resync_s = 0.0
        self.resync_plain = False  # how our TCP was asked last: without timestamps

    def end_with_host(self) -> None:
        """Taken over in an earlier life of the daemon, on a host that did not go on serving: it can't be continued."""
        self.state, self.heard, self.resync = Shadow.DEAD, False, False
        self.reason = "the host did not go on serving after the daemon's restart"

    def forget_bytes(self) -> None:
        """It is not continued, but remembered: nothing needs the two streams any more."""
        self.journal = Journal(self.journal.limit, self.journal.end)
        self.output = Journal(self.output.limit, self.output.end)
        if self.compare is not None:
            self.compare.pending.clear()

    # ------------------------------------------------------------------------------------ what we hold

    @property
    def cum(self) -> int:
        """The first byte of the client's stream that neither our log nor our TCP has; a FIN counts as a byte."""
        held = max(self.journal.end, self.k_ack)
        return held + 1 if held == self.fin_in else held

    def confirm(self) -> Confirm:
        """What we tell the primary."""
        seq = self.client.seq
        self.edge_confirmed = self.k_edge
        ranges = tuple((seq(left), seq(right)) for left, right in self.journal.ranges(4))
        return Confirm(self.conn, seq(self.cum), seq(self.k_edge), ranges, self.c_ack >= 0)

    def store(self, offset: int, data: bytes, fin: bool, out: Outbox) -> None:
        """Log bytes of the client's stream."""
        self.outlived_reset(offset + len(data) + fin)
        if self.fin_in is not None:
            data = data[: max(self.fin_in - offset, 0)]  # a keep-alive probe's garbage; all else contradicts the FIN
        ahead = max(self.k_edge, self.cum) + JOURNAL_AHEAD
        if offset + len(data) > self.k_ack and (offset > ahead or not self.journal.insert(offset, data)):
            out.counters["log-full"] += 1
            return
        if fin and offset + len(data) >= self.journal.end:
            self.fin_in = offset + len(data)

    def outlived_reset(self, stop: int) -> None:
        """The client goes on to `stop`: an RST before that was not its last word."""
        if self.rst_in is not None and stop > self.rst_in:
            self.rst_in = None

    # ------------------------------------------------------------------------------------ client -> replica

    def plausible(self, offset: int) -> bool:
        """Whether a client's segment can be of this connection: RFC 9293 section 3.10.7.4's check, with room for a
        primary that is ahead of us. The tap may be late with what belongs to an earlier connection of the same port;
        its numbers, taken for this one's, would end it. (ACK numbers: core/shadow/acceptance.py.)"""
        cum = self.cum
        return max(cum - OLD_BYTES, -1) <= offset <= max(self.k_edge, cum) + JOURNAL_AHEAD

    def note_client(self, seg: Segment, now: float) -> None:
        """Learn from the header of a client's segment."""
        mapping = self.mapping
        ack = mapping.seen.offset(seg.ack)
        if ack >= self.c_ack:
            if ack > self.c_ack:
                self.c_ack = ack
                mapping.seen.near = ack
                self.trim_output()
            self.c_wnd = seg.wnd
            self.widest = max(self.widest, seg.wnd << self.client_wscale)
        if seg.ts_off:
            if diff(seg.tsval, self.c_tsval) >= 0 or now - self.c_ts_at > PAWS_IDLE_S:
                self.c_tsval, self.c_tsecr, self.c_ts_at = seg.tsval, seg.tsecr, now  # an older one would fail PAWS
            mapping.note_seen_tsecr(seg.tsecr, now)

    def deliver(self, event: PacketQueued, seg: Segment, out: Outbox) -> None:
        """Translate a client's segment for our TCP and let it in."""
        mapping = self.mapping
        ack = mapping.seen.offset(seg.ack)
        told = min(ack, self.produced)
        window = self._window_from(told, ack, seg.wnd)
        if told < ack and seg.is_pure_ack and told <= self.k_una and window == self.c_wnd_told:
            out.drop(event.queue, event.packet_id, "ack-clamped")  # a duplicate for our TCP; told later
            return
        if not event.complete:
            out.drop(event.queue, event.packet_id, "incomplete-packet")
            return
        self.k_una = max(self.k_una, told)
        self.c_wnd_told = window
        seg.set_ack(mapping.own.seq(told))
        if window != seg.wnd:
            seg.set_wnd(window)
        if seg.sack:
            seg.set_sack(mapping.own_sack(seg.sack, self.produced))
        if seg.ts_off:
            seg.set_timestamps(seg.tsval, mapping.own_tsecr(seg.tsecr))
        seg.seal()
        out.accept(event.queue, event.packet_id, seg.buf)

    def _window_from(self, told: int, ack: int, window: int) -> int:
        """The window field for a TCP of ours that is told `told` instead of the client's `ack`: the same right edge.

        Else a replica that is behind would stand still at a client's closed window, though the client has all of that.
        """
        unit = 1 << self.client_wscale
        return min(window + ((ack - told + unit - 1) >> self.client_wscale), 0xFFFF) if told < ack else window

    def deliver_rst(self, event: PacketQueued, seg: Segment, out: Outbox) -> None:
        """A client's RST. In the shadow one that our TCP would take and the primary's would not must not get through:
        it has to fit exactly (RFC 5961 section 3.2) where the client's stream ends, for all that we know, and it waits
        for a TCP of ours that is behind. If the primary's takes another one all the same, we are told."""
        offset = self.client.offset(seg.seq)
        if self.state is not Shadow.ACTIVE and (offset >= self.k_ack or self.map is None):
            if offset != self.cum:
                out.drop(event.queue, event.packet_id, "rst-elsewhere")
                return
            if self.map is None or offset > self.k_ack:
                self.rst_in = offset
                out.drop(event.queue, event.packet_id, "rst-held")
                return
        self.reset_by_client = self.reset_by_client or offset == self.k_ack
        mapping = self.mapping
        if seg.flags & ACK:
            seg.set_ack(mapping.own.seq(min(mapping.seen.offset(seg.ack), self.produced)))
        if seg.ts_off:
            seg.set_timestamps(seg.tsval, mapping.own_tsecr(seg.tsecr))
        seg.seal()
        out.accept(event.queue, event.packet_id, seg.buf)

    def refer(self, event: PacketQueued, seg: Segment, out: Outbox) -> None:
        """Let our TCP judge a segment that can't be of this connection: it will not take it, and answers as TCP does.

        Nothing is learned from it, and its acknowledgement is translated as it is, however wrong."""
        mapping = self.mapping
        if not event.complete:
            out.drop(event.queue, event.packet_id, "incomplete-packet")
            return
        if seg.flags & ACK:
            seg.set_ack(mapping.own.seq(mapping.seen.offset(seg.ack)))
        if seg.sack:
            seg.set_sack(mapping.own_sack(seg.sack, self.produced))
        if seg.ts_off:
            seg.set_timestamps(seg.tsval, mapping.own_tsecr(seg.tsecr))
        seg.seal()
        out.accept(event.queue, event.packet_id, seg.buf)

    def inject_syn(self, out: Outbox, now: float) -> None:
        """Deliver the client's SYN, without what the primary did not grant."""
        opening = self.open
        keep = {OPT_MSS}
        if opening.wscale is not None:
            keep.add(OPT_WSCALE)
        if opening.sack_permitted:
            keep.add(OPT_SACK_PERMITTED)
        if opening.tsval is not None:
            keep.add(OPT_TIMESTAMPS)
        options = without(opening.syn_options, frozenset(keep))
        client, port, server, server_port = self.flow
        out.inward(build_segment((client, port), (server, server_port), opening.irs, 0, SYN, opening.syn_wnd, options))
        self.syn_sent_at = now

    def inject(self, out: Outbox, offset: int, data: bytes = b"", flags: int = ACK) -> None:
        """Deliver a segment that we build ourselves, with the client's newest acknowledgement."""
        mapping = self.mapping
        told = max(min(self.c_ack, self.produced), 0)
        self.k_una = max(self.k_una, told)
        self.c_wnd_told = self._window_from(told, self.c_ack, self.c_wnd)
        timestamps = (self.c_tsval, mapping.own_tsecr(self.c_tsecr)) if mapping.timestamps else None
        client, port, server, server_port = self.flow
        out.inward(
            build_segment(
                (client, port),
                (server, server_port),
                self.client.seq(offset),
                mapping.own.seq(told),
                flags,
                self.c_wnd_told,
                ack_options(timestamps, []),
                data,
            )
        )
        out.counters["injected-inward"] += 1

    def inject_ack(self, out: Outbox) -> None:
        """Tell our TCP what the client has acknowledged."""
        self.inject(out, self.k_ack)

    def redeliver(self, out: Outbox) -> None:
        """Give our TCP again what it has not taken, within its window."""
        at = self.k_ack
        end = self.journal.end
        for _ in range(REDELIVER_BURST):
            room = self.k_edge - at
            data = self.journal.read(at, min(REDELIVER_BYTES, room)) if room > 0 else b""
            fin = self.fin_in == at + len(data) and at + len(data) == end
            if not data and not fin:
                return
            self.inject(out, at, data, ACK | PSH | (FIN if fin else 0))
            at += len(data)
            if fin:
                return

    @property
    def lagging(self) -> bool:
        """Our TCP has not acknowledged everything that we hold."""
        return self.k_ack < self.cum

    # ------------------------------------------------------------------------------------ replica -> nowhere

    def learn_output(self, seg: Segment, out: Outbox, now: float) -> int:
        """Learn from a segment that our TCP sends (not a SYN-ACK); returns its offset in the server's stream."""
        mapping = self.mapping
        offset = mapping.own.offset(seg.seq)
        end = offset + seg.seg_len
        needed = self._output_needed
        if seg.payload_len and end > needed:
            if needed > self.output.end:
                self.output.trim(min(offset, needed))  # what the client had before we produced it is not kept
            if not self.output.insert(offset, seg.payload()):
                out.counters["output-full"] += 1  # our TCP has it, and would send it again after a takeover
        if seg.flags & FIN:
            self.fin_out = end - 1
        if end > self.produced:
            self.produced = mapping.own.near = end
        if seg.ts_off:
            mapping.note_own_tsval(seg.tsval, now)
        if seg.flags & ACK:
            ack = self.client.offset(seg.ack)
            if ack > self.k_ack:
                self.k_ack = self.client.near = ack
                self.journal.trim(min(ack, self.fin_in) if self.fin_in is not None else ack)
                self.lag_since = None
                self.lag_retry_s = 0.0
            if ack >= self.k_ack:
                self.k_edge = max(self.k_edge, ack + (seg.wnd << mapping.own_wscale))
        return offset

    @property
    def _output_needed(self) -> int:
        """The first byte of the replica's output that the client, or the comparison with the primary's, may need."""
        return self.c_ack if self.compare is None else min(self.c_ack, self.compare.needed(self.produced))

    def trim_output(self) -> None:
        """Forget what is not needed any more."""
        self.output.trim(min(self._output_needed, self.output.end))

    def withheld(self, end: int) -> bool:
        """After a takeover: whether output before `end` can't be sent yet."""
        return self.compare is not None and end > self.compare.compared

    @property
    def mapping(self) -> ReplicaMap:
        """The map of a connection that the replica has answered."""
        if self.map is None:
            raise InternalError("no map before the replica's SYN-ACK")
        return self.map

    @property
    def late(self) -> bool:
        """The primary has not waited for us, and we can't have told it that we have caught up."""
        return self.late_until > self.cum

    @property
    def ended(self) -> bool:
        """Both directions have ended and both ends have said so."""
        return (
            self.fin_in is not None
            and self.fin_out is not None
            and self.k_ack > self.fin_in
            and self.c_ack > self.fin_out
        )

    def linger(self, now: float) -> float:
        """For how long our TCP has been known to be rid of the finished connection; like TIME_WAIT, it is kept for a
        client that repeats its FIN (RFC 9293 section 3.10.7.4, eighth)."""
        if self.gone_at is None:
            self.gone_at = now
        return math.inf if self.state is Shadow.DEAD else now - self.gone_at

    def answer_rst(self, out: Outbox, seg: Segment | None) -> None:
        """Tell the client that the connection is over, with the sequence number it expects (RFC 5961 section 3.2)."""
        client, port, server, server_port = self.flow
        if seg is not None and seg.flags & RST:
            return
        seq = seg.ack if seg is not None else (self.open.iss + 1 + max(self.c_ack, 0)) & 0xFFFFFFFF
        out.counters["reset-sent"] += 1
        ends = (server, server_port), (client, port)
        out.outward(build_segment(*ends, seq, self.client.seq(self.cum), RST | ACK, 0))
        if seg is not None or self.compare is None:
            return
        # The client may have more than it has acknowledged, to our knowledge. This one is in its window, though it may
        # not be at the left edge: then the client tells us where that is (RFC 5961 section 3.2).
        ahead = max(self.compare.sent - max(self.c_ack, 0), 0) or (self.c_wnd << self.client_wscale) - 1
        if ahead > 0:
            out.outward(build_segment(*ends, (seq + ahead) & 0xFFFFFFFF, self.client.seq(self.cum), RST | ACK, 0))

"""The primary's side of all connections: opens them towards the backup, gates them, and lets them go.

One table of connections by flow; the backup's records come in by connection number.
"""

from __future__ import annotations

from nfq_failover.constants import ACK, FIN, RST, SYN
from nfq_failover.core.events import FrameCopied, PacketQueued, QueryFlows
from nfq_failover.core.gate import copies
from nfq_failover.core.gate.connection import Gate, PrimaryConnection
from nfq_failover.core.gate.primary_table import NOT_READY, POLL_FIRST_S, PrimaryTable
from nfq_failover.core.tcp.syn import strip
from nfq_failover.errors import MalformedSegment
from nfq_failover.wire.records import (
    AckAsked,
    Confirm,
    Data,
    Missing,
    Open,
    Opened,
    Progress,
    SentAsked,
    SentUpTo,
)
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.tcp_options import NEGOTIABLE, SIGNED, SynOptions

MAX_SYNS = 8192
MAX_DIALLED = 8192
MAX_LATE_BYTES = 256 << 20  # of all connections, for replicas that are not ready
DATA_BYTES = 1300
DATA_PER_REQUEST = 32
POLL_MAX_S = 0.05
OPEN_RETRY_FIRST_S = 0.005
QUERY_EVERY_S = 5.0
QUERY_CLOSING_S = 0.2
QUERY_FULL_S = 0.5
FULL_LOG_EVERY_S = 1.0
UNSERVED_S = 1.0
LATE_POLL_MAX_S = 1.0


class PrimarySide(PrimaryTable):
    """What comes in for the connections of a primary: packets, copies, records of the backup, time."""

    # ------------------------------------------------------------------------------------ packets

    def inbound_syn(self, event: PacketQueued, seg: Segment) -> None:
        """Take out of a client's SYN what a takeover couldn't continue, and remember the rest for `Open`."""
        if not event.checksum_pending and not seg.checksum_ok():
            self.out.drop(event.queue, event.packet_id, "bad-checksum")
            return
        if self.handovers.inbound_syn(event, seg):
            return
        flow: FlowKey = (seg.src, seg.sport, seg.dst, seg.dport)
        signed = SynOptions.parse(seg.options()).signed
        changed = strip(seg, NEGOTIABLE | SIGNED)
        self._syns[flow] = (seg.seq, seg.wnd, seg.options(), signed)
        self._syns.move_to_end(flow)
        if len(self._syns) > MAX_SYNS:
            self._syns.popitem(last=False)
            self.out.counters["syn-forgotten"] += 1
        if changed:
            self.out.counters["syn-stripped"] += 1
        self.out.accept(event.queue, event.packet_id, seg.buf if changed else None)

    def outbound(self, event: PacketQueued, seg: Segment, now: float) -> None:
        """Judge a segment that our TCP sends from the service."""
        if self.handovers.flows and self.handovers.outbound(event, seg):
            return
        if seg.flags & SYN:
            if seg.flags & ACK:
                self._syn_ack(event, seg, now)
            else:
                self._dial(event, seg)
            return
        flow: FlowKey = (seg.dst, seg.dport, seg.src, seg.sport)
        connection = self.flows.get(flow)
        if connection is None:
            self._of_unknown(event, seg, flow, now)
            return
        if seg.flags & RST and connection.keeps_last_ack:
            self.out.drop(event.queue, event.packet_id, "rst-after-end")
            connection.repeat_last_ack(self.out)
            return
        if connection.refuses(seg):
            self._next_query = min(self._next_query, now + QUERY_CLOSING_S)  # our TCP may have given it up
            self.out.accept(event.queue, event.packet_id)
            return
        if connection.gated:
            self.digests.sent(connection, event, seg, now)
        held = connection.state is Gate.PROTECTED and self.ends.outbound(connection, event, seg, now)
        if not held and not (connection.gated and self.digests.holds(connection, event, seg, now)):
            connection.outbound(event, seg, self.out, now)
        if connection.gated and (
            connection.waiting or connection.owed_since is not None or not connection.b_established
        ):
            self.timers.set_earlier(connection.conn, now + max(connection.retry_s, POLL_FIRST_S))
        if seg.flags & RST and not held:
            self._close(connection, "reset by the server", now)
        elif seg.flags & FIN:
            self._next_query = min(self._next_query, now + QUERY_CLOSING_S)

    def _dial(self, event: PacketQueued, seg: Segment) -> None:
        """The server opens a connection: it is left alone, and known as its own."""
        self._leave_alone((seg.dst, seg.dport, seg.src, seg.sport))
        self.out.accept(event.queue, event.packet_id)

    def _leave_alone(self, flow: FlowKey) -> None:
        """Not tracked, but no stranger either."""
        self._dialled[flow] = None
        self._dialled.move_to_end(flow)
        if len(self._dialled) > MAX_DIALLED:
            self._dialled.popitem(last=False)
            self.out.counters["dialled-forgotten"] += 1

    def _of_unknown(self, event: PacketQueued, seg: Segment, flow: FlowKey, now: float) -> None:
        """A segment of a connection that no client has opened before our eyes."""
        if flow in self._dialled:
            self._dialled.move_to_end(flow)
        elif seg.flags & RST and flow in self.poked:
            self.out.drop(event.queue, event.packet_id, "stranger-gone")  # the answer to us, not to the client
            return
        elif not self.strangers and not seg.flags & RST and len(self.flows) < self.settings.max_connections:
            self.out.drop(event.queue, event.packet_id, "stranger")
            self.out.reset_stranger(seg)
            return
        elif seg.flags & (RST | FIN | ACK) == ACK and len(self.flows) < self.settings.max_connections:
            self._adopt(seg, flow, now)
        self.out.accept(event.queue, event.packet_id)

    def _adopt(self, seg: Segment, flow: FlowKey, now: float) -> None:
        """Opened before the daemon's start, or while it was away: not protected, and to be listed as such."""
        opening = Open(
            conn=self._take_number(),
            flow=flow,
            irs=(seg.ack - 1) & 0xFFFFFFFF,
            iss=(seg.seq - 1) & 0xFFFFFFFF,
            tsval=None,
            wscale=None,
            mss=0,
            sack_permitted=False,
            syn_wnd=0,
            syn_options=b"",
        )
        connection = PrimaryConnection(flow, opening, now)
        connection.state, connection.reason = Gate.UNPROTECTED, "opened while no daemon was there"
        connection.established = True
        self.flows[flow] = self.numbers[opening.conn] = connection

    def copied(self, event: FrameCopied, now: float) -> None:
        """A copy of an inbound segment that our TCP may take."""
        try:
            seg = Segment(event.packet)
        except MalformedSegment as error:
            self.out.counters[f"copy-{error.reason}"] += 1
            return
        connection = self.flows.get((seg.src, seg.sport, seg.dst, seg.dport))
        if connection is None or connection.state is Gate.CLOSED:
            return
        if not event.checksum_pending and not seg.checksum_ok():
            self.out.counters["copy-bad-checksum"] += 1
            return
        if seg.flags & (RST | FIN):
            self._next_query = min(self._next_query, now + QUERY_CLOSING_S)
        self.wants_copies = False
        if refused := copies.copy_refused(connection, seg, now):
            self.out.counters[f"copy-{refused}"] += 1
        elif self.protecting and self._keeps_copies(connection, seg, now):
            if connection.gated and (wrong := copies.copy_contradiction(connection, seg, now)):
                self._unprotect(connection, wrong, now)
            connection.copied(seg, self.out, now)

    def _keeps_copies(self, connection: PrimaryConnection, seg: Segment, now: float) -> bool:
        """Whether the backup may still have to get the client's bytes from us."""
        if connection.gated or connection.state is Gate.SYN_HELD:
            return True
        if connection.reason != NOT_READY:
            return False
        if self._late_bytes + seg.payload_len > MAX_LATE_BYTES:
            self._unprotect(connection, "the replica was not ready before there was no more room", now)
            self.out.counters["late-full"] += 1
            return False
        self._late_bytes += seg.payload_len
        return True

    # ------------------------------------------------------------------------------------ opening and closing

    def _syn_ack(self, event: PacketQueued, seg: Segment, now: float) -> None:
        flow: FlowKey = (seg.dst, seg.dport, seg.src, seg.sport)
        have = self.flows.get(flow)
        irs = (seg.ack - 1) & 0xFFFFFFFF
        if have is not None and (have.open.irs, have.open.iss) == (irs, seg.seq):
            if have.state is not Gate.SYN_HELD:
                self.out.accept(event.queue, event.packet_id)
                return
            have.syn_ack = bytearray(seg.buf)
            self.out.drop(event.queue, event.packet_id, "syn-ack-held")
            return
        if have is not None:
            self._close(have, "replaced by a new connection", now)
        reason, opening = self._opening(flow, irs, seg)
        if opening is None:
            self._no_room(now)
            self._leave_alone(flow)  # when the table has room again it must not be taken for a stranger
            self.out.accept(event.queue, event.packet_id)
            return
        connection = PrimaryConnection(flow, opening, now)
        connection.edge_kernel = seg.wnd
        self.flows[flow] = self.numbers[opening.conn] = connection
        if reason:
            connection.unprotect(reason, self.out)
            self.out.log("warning", "connection unprotected", conn=opening.conn, reason=reason)
            self.out.accept(event.queue, event.packet_id)
            return
        connection.syn_ack = bytearray(seg.buf)
        self.out.drop(event.queue, event.packet_id, "syn-ack-held")
        self.out.record(opening)
        connection.retry_s = OPEN_RETRY_FIRST_S
        self.timers.set(opening.conn, now + OPEN_RETRY_FIRST_S)

    def _no_room(self, now: float) -> None:
        """A connection that can't even be listed as unprotected: so it is counted, and said aloud now and then."""
        self.out.counters["connection-not-tracked"] += 1
        self._next_query = min(self._next_query, now + QUERY_FULL_S)
        if now >= self._next_full_log:
            self._next_full_log = now + FULL_LOG_EVERY_S
            count = self.out.counters["connection-not-tracked"]
            self.out.log("error", "connection table full: new connections are not protected", count=count)

    def _opening(self, flow: FlowKey, irs: int, seg: Segment) -> tuple[str, Open | None]:
        """Why the connection can't be protected (empty: it can), and its opening record (None: no room for it)."""
        if len(self.flows) >= self.settings.max_connections:
            return "table full", None
        granted = SynOptions.parse(seg.options())
        syn = self._syns.pop(flow, None)
        reason = "" if self.protecting else self.reason
        wnd, options = 0, b""
        if syn is None or syn[0] != irs:
            reason = reason or "opened before the rules were there"
        else:
            _, wnd, options, signed = syn
            if signed:
                reason = "TCP-MD5 or TCP-AO signs the header"
        return reason, Open(
            conn=self._take_number(),
            flow=flow,
            irs=irs,
            iss=seg.seq,
            tsval=granted.tsval,
            wscale=granted.wscale,
            mss=granted.mss,
            sack_permitted=granted.sack_permitted,
            syn_wnd=wnd,
            syn_options=options,
        )

    def flows_gone(self, flows: list[FlowKey], now: float) -> None:
        """Our TCP no longer has these connections."""
        for flow in flows:
            connection = self.flows.get(flow)
            # A connection younger than the query may have been opened after the kernel was asked.
            if connection is None or now - connection.opened_at <= 1.0 or connection.state is Gate.SYN_HELD:
                continue
            if self.ends.holds(connection) or connection.lingers(now):
                self._next_query = min(self._next_query, now + QUERY_CLOSING_S)
            else:
                self._close(connection, "closed", now)

    # ------------------------------------------------------------------------------------ the backup's records

    def on_opened(self, record: Opened, now: float) -> None:
        connection = self.numbers.get(record.conn)
        if connection is None:
            return
        if not record.ready:
            if connection.state is Gate.SYN_HELD and record.reason:
                self._unprotect(connection, record.reason, now, tell=False)
            return
        connection.opened(record, self.out)
        connection.retry_s = 0.0
        if connection.gated:
            self.timers.cancel(record.conn)

    def on_confirm(self, record: Confirm, now: float) -> None:
        connection = self.numbers.get(record.conn)
        if connection is None:
            return
        connection.confirm(record, self.out, now)
        if self.protecting and connection.reason == NOT_READY:
            if connection.protect_late(now):
                self.out.log("info", "connection protected", conn=connection.conn)
                self._poll(connection)  # the backup, too, is to know
            elif connection.gated:
                self.timers.set_earlier(connection.conn, now + POLL_MAX_S)

    def on_missing(self, record: Missing, now: float) -> None:
        """Send bytes that the backup's tap has lost."""
        connection = self.numbers.get(record.conn)
        if connection is None:
            return
        at = connection.client.offset(record.start)
        stop = min(connection.client.offset(record.end), connection.kernel_ack)
        served = False
        for _ in range(DATA_PER_REQUEST):
            if at >= stop:
                break
            data, fin = connection.bytes_for_backup(at, min(DATA_BYTES, stop - at))
            if not data and not fin:
                break
            served = True
            self.out.record(Data(connection.conn, connection.client.seq(at), data, fin))
            at += len(data) + fin
        first = connection.unserved
        if first is not None and connection.confirmed > first[0]:
            first = connection.unserved = None  # it has them from somewhere else
        if served or at >= stop:
            if first is not None and connection.client.offset(record.start) <= first[0]:
                connection.unserved = None
        elif first is None:
            connection.unserved = (at, now)  # the copy may still be on its way to us
            self.wants_copies = True
        elif now - first[1] > UNSERVED_S:
            self._unprotect(connection, "bytes that the backup misses were not retained", now)

    def on_ack_asked(self, record: AckAsked) -> None:
        """The backup's tap may have lost the client's last word."""
        connection = self.numbers.get(record.conn)
        if connection is not None and connection.established and connection.state is Gate.PROTECTED:
            connection.probe(self.out, record.seq)

    def on_sent_asked(self, record: SentAsked) -> None:
        """The client acknowledges more than the backup knows of."""
        connection = self.numbers.get(record.conn)
        if connection is not None and connection.established:
            self.out.record(SentUpTo(connection.conn, connection.snd_nxt))

    # ------------------------------------------------------------------------------------ protection as a whole

    def on_timer(self, now: float) -> None:
        """Repeat what was not answered."""
        for conn in self.timers.pop_due(now):
            if (telling := self._telling.get(conn)) is not None:
                self._tell(*telling, now)
                continue
            connection = self.numbers.get(conn)
            if connection is None:
                continue
            if connection.state is Gate.SYN_HELD:
                self._repeat_open(connection, now)
            elif self.protecting and connection.state is Gate.PROTECTED:
                connection.release(self.out, now)
                if connection.waiting or not connection.b_established:
                    connection.retry_s = min(max(connection.retry_s * 2, POLL_FIRST_S), POLL_MAX_S)
                    self._poll(connection)
                    self.timers.set(conn, now + connection.retry_s)
                elif connection.owed_since is not None:
                    self.timers.set(conn, now + POLL_FIRST_S)
            elif self.protecting and connection.reason == NOT_READY:
                if connection.gated and not connection.give_up_catching_up(NOT_READY, self.out, now):
                    connection.release(self.out, now)
                slowest = POLL_MAX_S if connection.gated else LATE_POLL_MAX_S
                connection.retry_s = min(max(connection.retry_s * 2, POLL_FIRST_S), slowest)
                self._poll(connection)
                self.timers.set(conn, now + connection.retry_s)
        self.ends.questions.on_timer(now)
        self.digests.on_timer(now)
        self.handovers.on_timer(self.protecting, now)
        if self.flows and now >= self._next_query:
            self._next_query = now + QUERY_EVERY_S
            self._late_bytes = 0
            for connection in self.flows.values():
                connection.forget_settled(now)
                self._late_bytes += 0 if connection.gated else connection.retained.size
            self.out.effects.append(QueryFlows(list(self.flows)))

    def _poll(self, connection: PrimaryConnection) -> None:
        rcv_nxt = connection.client.seq(connection.kernel_ack)
        self.out.record(Progress(connection.conn, rcv_nxt, connection.established))

    def _repeat_open(self, connection: PrimaryConnection, now: float) -> None:
        if now - connection.opened_at > self.settings.open_deadline_ms / 1000:
            self._unprotect(connection, NOT_READY, now, tell=False)
            self.timers.set(connection.conn, now + POLL_MAX_S)
            return
        connection.retry_s = min(connection.retry_s * 2, POLL_MAX_S)
        self.out.record(connection.open)
        self.timers.set(connection.conn, now + connection.retry_s)

    def poll_timeout(self) -> float | None:
        """The earliest deadline."""
        parts = (self.ends.questions, self.digests, self.handovers)
        deadlines = [d for d in (self.timers.next(), *(part.poll_timeout() for part in parts)) if d is not None]
        if self.flows:
            deadlines.append(self._next_query)
        return min(deadlines, default=None)

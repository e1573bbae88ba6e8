"""The backup's side of all connections, in the shadow of the primary and after a takeover."""

from __future__ import annotations

from nfq_failover.constants import ACK, FIN, RST, SYN
from nfq_failover.core.events import PacketQueued, QueryFlows
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow import acceptance, resync, takeover
from nfq_failover.core.shadow.backup_table import BackupTable
from nfq_failover.core.shadow.connection import BackupConnection, Shadow
from nfq_failover.core.tcp.claims import TWO_VERSIONS
from nfq_failover.core.tcp.syn import strip
from nfq_failover.core.tcp.translation import ReplicaMap
from nfq_failover.wire.records import (
    Close,
    Closed,
    Data,
    EndAsked,
    EndKind,
    Open,
    Opened,
    Progress,
    Unprotected,
)
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.tcp_options import NEGOTIABLE, SynOptions

SYN_RETRY_MAX_S = 0.5
EDGE_CONFIRM_S = 0.004
LINGER_S = 60.0
RESET_PATIENCE_S = 1.0
DEAD_ASK_S = 30.0  # to twice that: between two questions whether a connection without a replica still exists
QUERY_EVERY_S = 5.0
OLD_ACK_BYTES = 65536  # the primary's TCP may be so far behind ours: it may have lost what the tap has seen
LATE = "the replica was late, and had not caught up"


class BackupSide(BackupTable):
    """All connections that the backup shadows or, after a takeover, continues."""

    def __init__(self, settings: Settings, out: Outbox) -> None:
        super().__init__(settings, out)
        self._next_query = 0.0

    # ------------------------------------------------------------------------------------ packets

    def inbound(self, event: PacketQueued, seg: Segment, connection: BackupConnection, now: float) -> None:
        """A client's segment of a known connection."""
        out = self.out
        if not event.checksum_pending and not seg.checksum_ok():
            out.drop(event.queue, event.packet_id, "bad-checksum")
            return
        if seg.flags & SYN:
            self._inbound_syn(event, seg, connection)
            return
        if connection.state is Shadow.DEAD:
            out.drop(event.queue, event.packet_id, "connection-dead")
            if connection.heard:
                connection.answer_rst(out, seg)
            elif seg.flags & ACK:  # where the client is: for the RST at a takeover
                if connection.map is not None:
                    connection.note_client(seg, now)
                elif (ack := connection.seen.offset(seg.ack)) > connection.c_ack:
                    connection.c_ack = connection.seen.near = ack
            return
        if connection.resync:
            out.drop(event.queue, event.packet_id, "resyncing")
            return
        offset = connection.client.offset(seg.seq)
        if not connection.plausible(offset):
            self._refuse(connection, event, seg, "implausible")  # of an earlier connection, or forged
            return
        if seg.flags & RST:
            connection.deliver_rst(event, seg, out)
            return
        if not seg.flags & ACK:
            out.drop(event.queue, event.packet_id, "no-ack-flag")  # RFC 9293 section 3.10.7.4, fifth
            return
        if refused := acceptance.refusal(connection, seg, out, now):
            self._refuse(connection, event, seg, refused)
            return
        if connection.state is Shadow.ACTIVE and connection.ended:
            out.drop(event.queue, event.packet_id, "ended")
            if seg.seg_len:  # a client that repeats its FIN; our TCP may be rid of the connection, and would reset it
                takeover.send(connection, out, connection.produced, b"", ACK, now)
            return
        if seg.seg_len and not self._log(connection, offset, seg, now):
            out.drop(event.queue, event.packet_id, "contradiction")
            return
        if connection.map is None:
            # The client has its SYN-ACK: the primary has not waited for us.
            connection.late_until = max(connection.late_until, offset + seg.seg_len)
            out.drop(event.queue, event.packet_id, "replica-opening")
            return
        if offset + seg.seg_len < connection.k_ack - OLD_ACK_BYTES:
            self._refuse(connection, event, seg, "outdated")  # TCP would not look at what it acknowledges
            return
        before = connection.c_ack
        connection.note_client(seg, now)
        if before < 0 <= connection.c_ack:
            self._dirty[connection.conn] = connection
        connection.deliver(event, seg, out)
        if connection.state is Shadow.ACTIVE:
            if connection.resend_next is not None:
                takeover.on_client_ack(connection, connection.c_ack - max(before, 0), out, now)
            self.recovery.heard(connection, before, now)
            self._watch_hole(connection, offset, seg, now)

    def _refuse(self, connection: BackupConnection, event: PacketQueued, seg: Segment, why: str) -> None:
        """A segment that the primary's TCP would refuse. When we are heard, it is on our TCP to say so; of a connection
        that has ended nobody knows anything more (RFC 9293 section 3.10.7.1), least of all of a later one."""
        if connection.state is Shadow.ACTIVE and not connection.ended:
            connection.refer(event, seg, self.out)
            return
        self.out.drop(event.queue, event.packet_id, why)
        if connection.state is Shadow.ACTIVE and seg.flags & ACK and not connection.handed:
            connection.answer_rst(self.out, seg)  # where all is ours; else a later one is the primary's affair

    def _inbound_syn(self, event: PacketQueued, seg: Segment, connection: BackupConnection) -> None:
        if connection.state is not Shadow.ACTIVE or seg.flags & ACK:
            self.out.drop(event.queue, event.packet_id, "syn-of-shadow")  # the primary describes it by `Open`
            return
        if connection.handed and connection.ended:
            self.out.drop(event.queue, event.packet_id, "ended")  # the port is used again: that is the primary's affair
            self.forget(connection)
            return
        self.out.accept(event.queue, event.packet_id, seg.buf if strip(seg, NEGOTIABLE) else None)

    def _log(self, connection: BackupConnection, offset: int, seg: Segment, now: float) -> bool:
        """Put the segment's bytes into the log, and see what is missing before them. False: they contradict it."""
        if connection.state is Shadow.ACTIVE:
            connection.outlived_reset(offset + seg.seg_len)
            if seg.flags & FIN and offset + seg.payload_len >= max(connection.k_ack, connection.floor):
                connection.fin_in = offset + seg.payload_len
            return True  # nothing new is acknowledged before our own TCP has it: the client keeps it
        if wrong := acceptance.contradiction(connection, offset, seg):
            self._die(connection, wrong, now)
            return False
        before = connection.cum
        connection.store(offset, seg.payload(), bool(seg.flags & FIN), self.out)
        self._dirty[connection.conn] = connection
        self.repair.logged(connection, offset, before, now)
        return True

    def _watch_hole(self, connection: BackupConnection, offset: int, seg: Segment, now: float) -> None:
        if not seg.payload_len:
            return
        held = max(connection.k_ack, connection.floor)
        if offset <= held:
            connection.stuck = None
        elif takeover.note_hole(connection, offset, now, self.settings.hole_deadline_ms / 1000):
            self._die(connection, "bytes were acknowledged that this host never had", now)
            connection.answer_rst(self.out, None)  # not from `seg`: its ACK number is already the replica's

    def outbound(self, event: PacketQueued, seg: Segment, connection: BackupConnection, now: float) -> bool:
        """A segment that our TCP sends on a known connection. False: not ours any more, treat it as unknown."""
        out = self.out
        active = connection.state is Shadow.ACTIVE
        if seg.flags & SYN:
            return self._outbound_syn_ack(event, seg, connection, now)
        if connection.state in (Shadow.OPENING, Shadow.DEAD):
            out.drop(event.queue, event.packet_id, "replica-silent")
            if seg.flags & RST and connection.state is Shadow.OPENING:
                out.record(Opened(connection.conn, False, 0, ""))
            else:
                out.reset_unknown(seg)  # of an earlier connection, or of one that can't be continued
            return True
        if connection.resync and not resync.answered(connection, seg):
            out.drop(event.queue, event.packet_id, "replica-gone")
            self._die(connection, "our TCP lost the connection while the daemon was away", now)
            connection.answer_rst(out, None)
            return True
        if seg.flags & RST and not active:
            out.drop(event.queue, event.packet_id, "replica-reset")
            if connection.rst_in is None and not connection.ended:
                self._replica_reset(connection, now)
            return True
        if seg.flags & RST and connection.ended:
            out.drop(event.queue, event.packet_id, "ended")  # our TCP answers something that we injected too late
            return True
        before, held = connection.k_ack, connection.cum
        new_end = connection.fin_out is None and seg.flags & FIN
        offset = connection.learn_output(seg, out, now)
        if not self.divergence.produced(connection, now):
            out.drop(event.queue, event.packet_id, "replica-silent")
            return True
        if connection.cum > held:
            self._dirty[connection.conn] = connection  # our TCP has taken what the log had no room for
        if active:
            takeover.outward(connection, event, seg, offset, out, now)
            if seg.flags & RST:
                self.recovery.forget(connection.conn)
        else:
            out.drop(event.queue, event.packet_id, "replica-silent")
            if new_end:
                self.ends.ended(connection, now, self.divergence.settled(connection))
        self._after_output(connection, seg, offset, before, now)
        return True

    def _after_output(self, connection: BackupConnection, seg: Segment, offset: int, before: int, now: float) -> None:
        out = self.out
        told_late = connection.c_ack > connection.k_una and connection.produced > connection.k_una
        repeated = seg.seg_len and offset + seg.seg_len <= min(connection.c_ack, connection.k_una)
        if told_late or repeated:
            connection.inject_ack(out)
        if connection.rst_in is not None and connection.rst_in <= connection.k_ack:
            if connection.rst_in == connection.k_ack:
                connection.inject(out, connection.rst_in, flags=RST | ACK)
                connection.reset_by_client = True
            connection.rst_in = None
        self.repair.heard_our_tcp(connection, seg, before, now)
        if seg.seg_len and offset <= connection.c_ack and connection.state is Shadow.SHADOW:
            self.repair.sent_first(connection, now)
        if connection.state is Shadow.SHADOW and connection.k_edge > connection.edge_confirmed:
            if connection.edge_confirmed - connection.cum < 16384:
                self._dirty[connection.conn] = connection
            else:
                self.timers.set_earlier(connection.conn, now + EDGE_CONFIRM_S)

    def _outbound_syn_ack(self, event: PacketQueued, seg: Segment, connection: BackupConnection, now: float) -> bool:
        out = self.out
        ours = seg.flags & ACK and (seg.ack - 1) & 0xFFFFFFFF == connection.open.irs
        if connection.state is Shadow.ACTIVE:
            if not ours or seg.seq != connection.mapping.own.seq(-1):
                self.forget(connection)  # the port was reused, natively
                return False
            takeover.outward_syn_ack(connection, event, seg, out)
            return True
        out.drop(event.queue, event.packet_id, "replica-silent")
        if not ours or connection.state is Shadow.DEAD:
            return True
        if connection.state is Shadow.SHADOW and seg.seq == connection.mapping.own.seq(-1):
            if connection.c_ack >= 0:
                connection.inject_ack(out)  # our TCP has missed the client's ACK
            return True
        self._replica_answers(connection, seg, now)
        return True

    def _replica_answers(self, connection: BackupConnection, seg: Segment, now: float) -> None:
        """The replica's SYN-ACK: now the map is known."""
        opening = connection.open
        granted = SynOptions.parse(seg.options())
        theirs = (opening.wscale is None, opening.sack_permitted, opening.tsval is None)
        if theirs != (granted.wscale is None, granted.sack_permitted, granted.tsval is None):
            self._die(connection, "the hosts grant different TCP options", now)
            return
        ts = None if opening.tsval is None or granted.tsval is None else (opening.tsval, granted.tsval)
        connection.map = ReplicaMap(opening.iss, seg.seq, opening.wscale or 0, granted.wscale or 0, ts, now)
        connection.seen = connection.map.seen
        connection.k_edge = connection.edge_confirmed = seg.wnd  # not scaled in a SYN-ACK
        connection.k_ack = 0
        connection.state = Shadow.SHADOW
        if connection.c_ack >= 0 or connection.lagging:
            connection.c_ack = max(connection.c_ack, 0)
            connection.inject_ack(self.out)
            self._dirty[connection.conn] = connection
        self.repair.watch_lag(connection, now)
        self.out.record(Opened(connection.conn, True, connection.client.seq(connection.k_edge)))

    def _replica_reset(self, connection: BackupConnection, now: float) -> None:
        """If the primary's server has ended too, that may be all right: the primary decides."""
        connection.rst_out = connection.fin_out if connection.fin_out is not None else connection.produced
        if connection.primary_ended_at is None:
            self._die(connection, self.divergence.why_reset(connection), now)
            return
        self.ends.ended(connection, now)
        self.bury(connection, "the server has reset the connection")

    # ------------------------------------------------------------------------------------ the primary's records

    def on_open(self, record: Open, now: float) -> None:
        have = self.numbers.get(record.conn)
        if have is not None:
            if have.state is Shadow.SHADOW:
                have.edge_confirmed = have.k_edge
                self.out.record(Opened(have.conn, True, have.client.seq(have.k_edge)))
            elif have.state is Shadow.DEAD:
                self.out.record(Opened(have.conn, False, 0, have.reason))
            return
        if record.conn in self.forgotten:
            return  # it was repeated, and this one was overtaken by what came later
        old = self.flows.get(record.flow)
        if old is not None:
            if old.map is not None:
                old.inject(self.out, old.k_ack, flags=RST | ACK)  # our TCP may still hold the old connection
            self.forget(old)
        if len(self.flows) >= self.settings.max_connections:
            self.out.counters["connection-refused"] += 1
            self.out.record(Opened(record.conn, False, 0, "the backup's table is full"))
            return
        connection = BackupConnection(record, self.settings, now)
        connection.inject_syn(self.out, now)
        self.flows[record.flow] = self.numbers[record.conn] = connection
        self.timers.set(record.conn, now + connection.syn_retry_s)

    def on_progress(self, record: Progress, now: float) -> None:
        """The primary's TCP is that far: answer, and see whether our tap has lost the tail."""
        connection = self.numbers.get(record.conn)
        if connection is None or connection.state is Shadow.DEAD:
            reason = connection.reason if connection is not None else "unknown to the backup"
            self.out.record(Unprotected(record.conn, reason))
            return
        connection.upto = max(connection.upto, connection.client.offset(record.rcv_nxt))
        if record.established and connection.c_ack < 0:
            connection.c_ack = 0
            if connection.map is not None:
                connection.inject_ack(self.out)
        if connection.map is None:
            return
        if connection.upto <= connection.cum:
            connection.late_until = -1  # the primary learns it by our answer, and protects the connection
        self._dirty[connection.conn] = connection
        self.repair.primary_is_at(connection, now)

    def on_end_asked(self, record: EndAsked, now: float) -> None:
        """The primary's server has ended, or ours has: tell where our replica is."""
        connection = self.numbers.get(record.conn)
        if connection is None:
            self.out.record(Unprotected(record.conn, "unknown to the backup"))
        elif connection.state is Shadow.SHADOW or connection.rst_out is not None:
            if self.divergence.may_tell_end(connection, now):
                self.ends.asked(connection, record.kind is not EndKind.OPEN, now)
        elif connection.state is Shadow.DEAD:
            self.out.record(Unprotected(record.conn, connection.reason))

    def on_data(self, record: Data, now: float) -> None:
        """Bytes that our tap had lost."""
        connection = self.numbers.get(record.conn)
        if connection is None or connection.state is not Shadow.SHADOW:
            return
        if connection.journal.differs(connection.client.offset(record.seq), record.data):
            self._die(connection, TWO_VERSIONS, now)
            return
        self._dirty[connection.conn] = connection
        self.repair.fill(connection, record, now)

    def on_close(self, record: Close, now: float) -> None:
        """The primary's TCP has forgotten the connection: ours may finish by itself, or is reset."""
        self.out.record(Closed(record.conn))
        connection = self.numbers.get(record.conn)
        if connection is None or connection.closed_at is not None:
            return
        connection.closed_at = now
        if connection.state is Shadow.SHADOW and not connection.ended:
            connection.inject(self.out, connection.k_ack, flags=RST | ACK)
        self.timers.set(connection.conn, now + (LINGER_S if connection.ended else 1.0))

    # ------------------------------------------------------------------------------------ takeover, end, timers

    def take_over(self, now: float) -> tuple[int, int]:
        """Every connection is ours now. Returns how many go on, and how many are reset."""
        going, reset = 0, 0
        taken: list[BackupConnection] = []
        self._dirty.clear()
        for connection in list(self.flows.values()):
            if connection.state is Shadow.ACTIVE:
                going += 1  # it was handed over before
                continue
            over = connection.closed_at is not None or connection.reset_by_client
            goes_on = connection.state is Shadow.SHADOW and not over and not connection.ended
            if goes_on and (reason := LATE if connection.late else self.divergence.at_takeover(connection, now)):
                self.bury(connection, reason)
            if over and not connection.ended:
                self.forget(connection)  # the client has been told the end, or has told it
            elif connection.state is Shadow.SHADOW:
                self.be_heard(connection, now)
                taken.append(connection)
            elif connection.state is Shadow.DEAD:
                connection.heard = True
                connection.answer_rst(self.out, None)
                reset += 1
            else:
                self.forget(connection)  # no client has seen its SYN-ACK: the next SYN is native
        if self.settings.revert_backoff:
            self.backoff.begin(taken, now)
        return going + len(taken), reset

    def restore(self, connections: list[BackupConnection], now: float) -> None:
        """After a restart of the daemon: what was taken over in its earlier life (ACTIVE, or DEAD: to be cut)."""
        for connection in connections:
            self.flows[connection.flow] = connection
            if connection.handed:
                self.handed.keep(connection, now)
            self.numbers[connection.conn] = connection
            if connection.resync or (connection.state is Shadow.DEAD and not connection.ended):
                resync.ask(connection, self.out, self.timers, now)  # one that is dead shows itself, and is reset
            if connection.state is Shadow.DEAD and connection.heard and not connection.ended:
                connection.answer_rst(self.out, None)

    def cut_dead(self) -> None:
        """This host serves: clients of connections that can't be continued may be told so."""
        for connection in self.flows.values():
            if connection.state is Shadow.DEAD and not connection.heard and not connection.ended:
                connection.heard = True
                connection.answer_rst(self.out, None)

    def flows_gone(self, flows: list[FlowKey], now: float) -> None:
        """Our TCP no longer has these connections."""
        for flow in flows:
            connection = self.flows.get(flow)
            if connection is None or now - connection.opened_at < 2.0:
                continue
            if connection.ended and connection.closed_at is None and connection.linger(now) < LINGER_S:
                continue  # the client may not know yet
            if self._to_be_reset(connection):
                spread = connection.conn % 1000 / 1000 * DEAD_ASK_S  # not all at once
                self.timers.set_earlier(connection.conn, now + DEAD_ASK_S + spread)
                continue
            if connection.state in (Shadow.ACTIVE, Shadow.DEAD) or connection.ended or connection.closed_at is not None:
                if not connection.tell_s:
                    self.forget(connection)
            elif connection.state is Shadow.SHADOW:
                if connection.reset_by_client and connection.linger(now) < RESET_PATIENCE_S:
                    self._next_query = min(self._next_query, now + RESET_PATIENCE_S)
                    continue  # if the primary's TCP was reset by it, too, we are told so
                self._die(connection, "the replica has closed the connection", now)

    @staticmethod
    def _to_be_reset(connection: BackupConnection) -> bool:
        """The client's connection with the primary goes on, for all that we know: if the primary dies, the client must
        hear that it is over. Nobody else will know of it."""
        over = connection.ended or connection.closed_at is not None or connection.reset_by_client
        # By us, or by the primary, whose server has ended as well.
        decided = connection.heard or connection.handed or connection.primary_ended_at is not None
        return connection.state is Shadow.DEAD and not over and not decided

    def flush(self) -> None:
        """Confirm what has come in since the last flush."""
        if not self._dirty:
            return
        for connection in self._dirty.values():
            if connection.state is Shadow.SHADOW:
                self.out.record(connection.confirm())
        self._dirty.clear()

    def on_timer(self, now: float) -> None:
        """Repeat what was not answered."""
        for conn in self.timers.pop_due(now):
            connection = self.numbers.get(conn)
            if connection is None:
                continue
            if connection.closed_at is not None and now - connection.closed_at >= 1.0:
                self.forget(connection)
            elif connection.state is Shadow.OPENING:
                connection.syn_retry_s = min(connection.syn_retry_s * 2, SYN_RETRY_MAX_S)
                connection.inject_syn(self.out, now)
                self.timers.set(conn, now + connection.syn_retry_s)
            elif connection.state is Shadow.DEAD:
                self._tell(connection, now)
            else:
                self._repeat(connection, now)
        self.ends.on_timer(now)
        self.divergence.on_timer(now)
        self.backoff.on_timer(now)
        self.recovery.on_timer(now)
        if self.flows and now >= self._next_query:
            self._next_query = now + QUERY_EVERY_S
            self.out.effects.append(QueryFlows(list(self.flows)))

    def _repeat(self, connection: BackupConnection, now: float) -> None:
        if connection.resync:
            resync.ask(connection, self.out, self.timers, now)
            return
        if connection.state is Shadow.SHADOW and connection.k_edge > connection.edge_confirmed:
            self._dirty[connection.conn] = connection
        self.repair.repeat(connection, now)

    def poll_timeout(self) -> float | None:
        """The earliest deadline."""
        parts = (self.ends, self.divergence, self.backoff, self.recovery)
        deadlines = [d for d in (self.timers.next(), *(part.poll_timeout() for part in parts)) if d is not None]
        if self.flows:
            deadlines.append(self._next_query)
        return min(deadlines, default=None)

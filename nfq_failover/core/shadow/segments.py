"""What comes in packets for the connections of the table: the clients' segments, and those of our own TCP."""

from __future__ import annotations

from collections.abc import Callable

from nfq_failover.constants import ACK, FIN, RST, SYN
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.acceptance import UNSENT, contradiction
from nfq_failover.core.shadow.connection import Die, GiveUp, Shadow, ShadowConnection
from nfq_failover.core.shadow.divergence import Divergence
from nfq_failover.core.shadow.ends import ShadowEnds
from nfq_failover.core.shadow.feeding import Feeding
from nfq_failover.core.shadow.holding import Holding
from nfq_failover.core.shadow.inward import Inward
from nfq_failover.core.shadow.opening import Openings
from nfq_failover.core.shadow.repair import Repair
from nfq_failover.core.shadow.resets import Resets, send_reset
from nfq_failover.core.shadow.takeover import Takeover
from nfq_failover.core.tcp.syn import refuses_syn
from nfq_failover.core.tcp.translation import Translation
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import SentAsked
from nfq_failover.wire.segment import Segment

EDGE_CONFIRM_S = 0.004
EDGE_CLOSE_BYTES = 16384  # a right edge that the client may reach soon is confirmed at once
OLD_ACK_BYTES = 65536  # how far the primary's TCP may be behind ours: it may have lost what the tap has seen


def note_order(inward: Inward, offset: int, stop: int, ack: int) -> None:
    """A client's segment acknowledges what our replica has still to send. What the client has sent before may be
    needed for that: a segment that is sent again acknowledges more than it did at first. (After a takeover it is
    these that come, so nothing is noted then.)"""
    if stop > inward.held and ack <= inward.order.heard_to:
        inward.order.heard(max(offset, inward.held), ack, inward.output.snd_nxt)  # perhaps overtaken on the way
    elif stop >= inward.sent_to:
        inward.order.heard(max(offset, inward.sent_to), ack, inward.output.snd_nxt)


class Segments:
    """Leads each segment through the parts of its connection, and gives its packet the one verdict that it needs."""

    def __init__(
        self,
        out: Outbox,
        timers: TimerQueue[int],
        openings: Openings,
        repair: Repair,
        divergence: Divergence,
        feeding: Feeding,
        resets: Resets,
        ends: ShadowEnds,
        takeover: Takeover,
        holding: Holding,
        *,
        unconfirmed: dict[int, ShadowConnection],
        suspect: Callable[[int, float], None],
        give_up: GiveUp,
        die: Die,
    ) -> None:
        """The table's parts are handed in. `unconfirmed`: its connections that have news for the primary. `give_up` and
        `die` are its ways to give a connection up; `suspect` is told the number of one that our TCP may give up."""
        self.out = out
        self._timers = timers
        self._openings = openings
        self._repair = repair
        self._divergence = divergence
        self._feeding = feeding
        self._resets = resets
        self._ends = ends
        self._takeover = takeover
        self._holding = holding
        self._unconfirmed = unconfirmed
        self._suspect = suspect
        self._give_up = give_up
        self._die = die

    def inbound(self, event: PacketQueued, seg: Segment, connection: ShadowConnection, now: float) -> None:
        """Handle a client's segment of a known connection."""
        out = self.out
        flags = seg.flags
        if not event.checksum_pending and not seg.checksum_ok():
            out.drop(event.queue, event.packet_id, "bad-checksum")
            return
        self._repair.tap.came(seg.payload_len)
        if flags & SYN:
            self._openings.client_syn(event, seg, connection)
            return
        if connection.state is Shadow.DEAD or (connection.state is Shadow.FED and connection.heard):
            self._inbound_dead(event, seg, connection, now)
            return
        if connection.state is Shadow.FED and connection.closing.closed_at is not None:
            out.drop(event.queue, event.packet_id, "closed")  # it may be of a later one, from the same port
            return
        if connection.resync.pending:
            out.drop(event.queue, event.packet_id, "resyncing")
            return
        inward, output, mapping = connection.inward, connection.output, connection.map
        active = connection.state is Shadow.ACTIVE
        offset = inward.client.offset(seg.seq)
        if not inward.plausible(offset):
            self._refuse(connection, event, seg, "implausible")  # of an earlier connection, or forged
            return
        if flags & RST:
            inward.client_is_at(connection.gap.primary_rcv_nxt)
            inward.deliver_rst(mapping, event, seg, active, out)
            return
        if not flags & ACK:
            out.drop(event.queue, event.packet_id, "no-ack-flag")  # RFC 9293 section 3.10.7.4, fifth
            return
        ack = connection.seen.offset(seg.ack)
        goes_on = active and not connection.ended  # what acknowledges more than all of it, is of a later one
        if refused := connection.acceptance.refusal(seg, ack, connection.header, output, goes_on, now):
            if refused == UNSENT and not active and connection.acceptance.may_ask(now):
                out.record(SentAsked(connection.conn))
            self._refuse(connection, event, seg, refused)
            return
        stop = offset + seg.seg_len
        if ack > output.snd_nxt and not (active or output.discarded):
            note_order(inward, offset, stop, ack)
        inward.client_is_at(stop)
        if active and connection.ended:
            if inward.fin_in is not None and stop > inward.fin_in + 1:
                self._refuse(connection, event, seg, "beyond-the-end")  # of a later one, from the same port
                return
            out.drop(event.queue, event.packet_id, "ended")
            if seg.seg_len:  # a client that repeats its FIN; our TCP may be rid of the connection, and would reset it
                connection.resending.answer(connection.mapping, out, now)
            return
        if seg.seg_len and not self._log(connection, offset, seg, now):
            out.drop(event.queue, event.packet_id, "contradiction")
            return
        if mapping is None:
            connection.note_unready(seg, ack)
            inward.let_in(stop)  # the client has its SYN-ACK: the primary has not waited for us
            if stop > inward.order.edge:
                self._holding.watch(connection, now)
            out.drop(event.queue, event.packet_id, "replica-opening")
            return
        if stop < inward.rcv_nxt - OLD_ACK_BYTES:
            self._refuse(connection, event, seg, "outdated")  # TCP would not look at what it acknowledges
            return
        before = output.snd_una
        connection.note_client(mapping, seg, ack, now)
        if before < 0 <= output.snd_una:
            self._unconfirmed[connection.conn] = connection
        ends = active and self._divergence.client_said(connection, seg, ack, now)  # before `seg` is translated
        if stop > inward.order.edge:
            self._holding.hold(connection, event, seg, offset, now)
        else:
            inward.deliver(mapping, event, seg, ack, out)
        if active:
            self._takeover.heard_client(connection, mapping, offset, seg, before, ends, now)

    def _inbound_dead(self, event: PacketQueued, seg: Segment, connection: ShadowConnection, now: float) -> None:
        """A client's segment of a connection that can't be continued."""
        self.out.drop(event.queue, event.packet_id, "connection-dead")
        if connection.heard:
            self._resets.heard(connection, seg, now)
        elif seg.flags & ACK:  # where the client is: for the RST at a takeover
            ack = connection.seen.offset(seg.ack)
            if connection.map is not None:
                connection.note_client(connection.map, seg, ack, now)
            elif ack > connection.output.snd_una:
                connection.seen.follow(ack)
                connection.output.acknowledged(ack)

    def _refuse(self, connection: ShadowConnection, event: PacketQueued, seg: Segment, why: str) -> None:
        """Do with a segment what the primary's TCP, which would refuse it, does. When we are heard, our TCP says so;
        of a connection that has ended nobody knows anything more (RFC 9293 section 3.10.7.1), least of all of a later
        one."""
        active = connection.state is Shadow.ACTIVE
        if active and not connection.ended:
            connection.inward.refer(connection.mapping, event, seg, self.out)
            return
        self.out.drop(event.queue, event.packet_id, why)
        if active and seg.flags & (ACK | RST) == ACK and not connection.handed:  # else the primary deals with it
            send_reset(self.out, connection.flow, seg.ack, connection.reset_ack())

    def _log(self, connection: ShadowConnection, offset: int, seg: Segment, now: float) -> bool:
        """Put the segment's bytes into the log, and see what is missing before them. False: they contradict it."""
        inward = connection.inward
        if connection.state is Shadow.ACTIVE:
            inward.outlived_reset(offset + seg.seg_len)
            if seg.flags & FIN:
                connection.resending.client_ends_at(offset + seg.payload_len)
            return True  # nothing new is acknowledged before our own TCP has it: the client keeps it
        if wrong := contradiction(inward, offset, seg):
            self._die(connection, wrong, now)
            return False
        before = inward.held
        inward.store(offset, seg.payload(), bool(seg.flags & FIN), self.out)
        self._unconfirmed[connection.conn] = connection
        self._repair.logged(connection, offset, before, now)
        return True

    def outbound(self, event: PacketQueued, seg: Segment, connection: ShadowConnection, now: float) -> bool:
        """Handle a segment that our TCP sends on a known connection. False: the connection is not ours any more, and
        the segment belongs to one that we do not know."""
        out = self.out
        if seg.flags & SYN:
            return self._openings.replica_syn_ack(event, seg, connection, now)
        mapping = connection.map
        if connection.state is Shadow.OPENING or connection.state is Shadow.DEAD or mapping is None:
            out.drop(event.queue, event.packet_id, "replica-silent")
            if seg.flags & RST and connection.state is Shadow.OPENING:
                self._openings.refused(connection)
            else:
                out.reset_unknown(seg)  # of an earlier connection, or of one that can't be continued
            return True
        inward, output = connection.inward, connection.output
        active = connection.state is Shadow.ACTIVE
        if active and refuses_syn(seg, mapping.own.seq(output.snd_nxt)):
            return False
        if connection.resync.pending and not connection.resync.answered(mapping, inward, seg):
            out.drop(event.queue, event.packet_id, "replica-gone")
            self._die(connection, "our TCP lost the connection while the daemon was away", now)
            self._resets.tell(connection, now)
            return True
        if seg.flags & RST and not active:
            out.drop(event.queue, event.packet_id, "replica-reset")
            if inward.rst_in is None and not connection.ended:
                self._replica_reset(connection, now)
            return True
        if seg.flags & RST and connection.ended:
            out.drop(event.queue, event.packet_id, "ended")  # our TCP answers something that we injected too late
            return True
        before, held, sent = inward.rcv_nxt, inward.held, output.snd_nxt
        new_end = output.fin_out is None and seg.flags & FIN
        offset = output.learn(mapping, seg, out, now)
        if seg.flags & ACK:
            inward.taken(seg, mapping.own_wscale)
        if not self._divergence.sent_more(connection, now):
            out.drop(event.queue, event.packet_id, "replica-silent")
            return True
        if inward.held > held:
            self._unconfirmed[connection.conn] = connection  # our TCP has taken what the log had no room for
        if active:
            connection.resending.outward(mapping, event, seg, offset, out, now)
            if seg.flags & RST:
                output.reset()
                self._takeover.recovery.forget(connection)
        else:
            out.drop(event.queue, event.packet_id, "replica-silent")
            if connection.state is Shadow.FED:
                self._feeding.heard_our_tcp(connection, seg, offset)
            elif new_end:
                self._ends.ended(connection, now, self._divergence.settled(connection))
            if offset < sent and connection.state is Shadow.SHADOW:
                self._repeated(connection, seg, now)
        self._after_output(connection, mapping, seg, offset, before, now)
        return True

    def _repeated(self, connection: ShadowConnection, seg: Segment, now: float) -> None:
        """Our TCP says again what it has said, and waits for the client: it may give up. Or it asks whether the client
        is there, and has room. The client answers the primary's TCP, which asks at times of its own, and has a patience
        of its own; how long a client may be silent is for the primary to judge. So we answer, with what the client has
        said last."""
        if seg.seg_len or not connection.inward.own_wnd:  # else a keep-alive: it does not outlast our answer
            self._suspect(connection.conn, now)
        if not seg.seg_len:
            self.out.counters["probe-answered"] += 1
            connection.inject_ack(self.out)

    def _after_output(
        self, connection: ShadowConnection, mapping: Translation, seg: Segment, offset: int, before: int, now: float
    ) -> None:
        """Our TCP has sent `seg`, at `offset` of its stream; it had taken everything before `before`."""
        inward, output = connection.inward, connection.output
        snd_una = output.acknowledged_to
        told_late = snd_una > inward.own_una and inward.tellable > inward.own_una
        repeated = not output.discarded and seg.seg_len and offset + seg.seg_len <= min(snd_una, inward.own_una)
        delivered = inward.order.watches and self._holding.replica_sent(connection, now)
        if (told_late or repeated) and not delivered:
            connection.inject_ack(self.out)
        if inward.rst_in is not None:
            inward.release_rst(mapping, self.out)
        self._repair.heard_our_tcp(connection, seg, before, now)
        if connection.heard or connection.state not in (Shadow.SHADOW, Shadow.FED):
            return
        if connection.state is Shadow.SHADOW and seg.seg_len and offset <= output.snd_una:
            self._repair.sent_first(connection, now)
        if inward.rcv_edge > inward.confirmed_edge:
            if inward.confirmed_edge - inward.held < EDGE_CLOSE_BYTES:
                self._unconfirmed[connection.conn] = connection
            else:
                self._timers.set_earlier(connection.conn, now + EDGE_CONFIRM_S)

    def _replica_reset(self, connection: ShadowConnection, now: float) -> None:
        """If the primary's server has ended too, that may be all right: the primary decides."""
        if self._unconfirmed.pop(connection.conn, None) is not None:
            # What the replica has answered with its reset is not missing there.
            self.out.record(connection.inward.confirm(connection.conn))
        connection.output.reset()
        if connection.end.primary_ended_at is None:
            if connection.over:
                return  # it answers what came too late; that it has ended is known if the primary asks
            self._die(connection, self._divergence.why_reset(connection), now)
            return
        self._ends.ended(connection, now)
        self._give_up(connection, "the server has reset the connection")

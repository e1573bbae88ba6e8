"""What comes in packets for the connections of the table: clients' SYNs, and the segments of our own TCP."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nfq_failover.constants import ACK, FIN, RST, SYN
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.gate.asking import POLL_FIRST_S
from nfq_failover.core.gate.connection import Gate, GatedConnection
from nfq_failover.core.gate.digests import GateDigests
from nfq_failover.core.gate.ends import GateEnds
from nfq_failover.core.gate.handover import Handovers
from nfq_failover.core.gate.missed import MissedInput
from nfq_failover.core.gate.opening import DIALLED, Opening
from nfq_failover.core.gate.pace import Pacing
from nfq_failover.core.gate.served import ServedAlone
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.tcp.syn import refuses_syn
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.segment import FlowKey, Segment


class Segments:
    """Leads each segment through the parts of its connection, and gives its packet the one verdict that it needs."""

    def __init__(
        self,
        out: Outbox,
        flows: Mapping[FlowKey, GatedConnection],
        timers: TimerQueue[int],
        opening: Opening,
        handovers: Handovers,
        digests: GateDigests,
        ends: GateEnds,
        pace: Pacing,
        missed: MissedInput,
        served: ServedAlone,
        *,
        protecting: Callable[[], bool],
        why_not: Callable[[], str],
        close: Callable[[GatedConnection, str, float], None],
        look_soon: Callable[[float], None],
        make_room: Callable[[float], None],
    ) -> None:
        """The table's parts are handed in. `why_not()`: why a new connection can't be protected, empty if it can.
        `close(connection, reason, now)` forgets one; `look_soon(now)` says that our TCP may have forgotten one;
        `make_room(now)`, that the table is full."""
        self.out = out
        self._flows = flows
        self._timers = timers
        self._opening = opening
        self._handovers = handovers
        self._digests = digests
        self._ends = ends
        self._pace = pace
        self._missed = missed
        self._served = served
        self._protecting = protecting
        self._why_not = why_not
        self._close = close
        self._look_soon = look_soon
        self._make_room = make_room

    def inbound_syn(self, event: PacketQueued, seg: Segment) -> None:
        """Judge a client's SYN."""
        if not event.checksum_pending and not seg.checksum_ok():
            self.out.drop(event.queue, event.packet_id, "bad-checksum")
        elif not self._handovers.inbound_syn(event, seg):
            self._opening.inbound_syn(event, seg, self._protecting())

    def outbound(self, event: PacketQueued, seg: Segment, now: float) -> None:
        """Judge a segment that our TCP sends from the service."""
        if self._handovers.flows and self._handovers.outbound(event, seg):
            return
        flow: FlowKey = (seg.dst, seg.dport, seg.src, seg.sport)
        connection = self._flows.get(flow)
        if seg.flags & SYN:
            if seg.flags & ACK:
                self._syn_ack(event, seg, connection, now)
            else:
                if connection is not None:  # our TCP begins anew from a port that the last one has left
                    self._close(connection, "replaced by a new connection", now)
                self._opening.dialled(event, seg)
            return
        if connection is None:
            found = self._opening.unknown(event, seg, flow, now)
            if found is not None and self._protecting():
                self._served.begins(found, now)
                self._missed.begins(found, now, counts=found.reason == DIALLED)
            return
        if seg.flags & RST:
            if refuses_syn(seg, connection.own.snd_nxt_seq):
                self._look_soon(now)
                self.out.accept(event.queue, event.packet_id)
                return
            if connection.keeps_last_ack:
                self.out.drop(event.queue, event.packet_id, "rst-after-end")
                connection.repeat_last_ack(self.out)
                return
            if connection.outlived_by(seg):
                self.out.drop(event.queue, event.packet_id, "rst-after-end")
                self._look_soon(now)
                return
            if connection.refuses(seg):
                self._look_soon(now)  # our TCP may have given it up
                self.out.accept(event.queue, event.packet_id)
                return
        if connection.gated or connection.awaited:
            self._digests.sent(connection, seg, now)
        held = connection.state is Gate.PROTECTED and self._ends.outbound(connection, event, seg, now)
        held = held or (connection.gated and self._digests.holds(connection, event, seg, now))
        held = held or (connection.distance.slow and self._pace.slowing.holds(connection, event, seg, now))
        if not held:
            connection.acks.outbound(event, seg, connection.own.learn(seg, now), self.out, now)
        if (connection.gated or connection.fed) and (
            connection.acks.waiting or connection.acks.owed_since is not None or not connection.backup_established
        ):
            self._timers.set_earlier(connection.conn, now + max(connection.retry_s, POLL_FIRST_S))
        if connection.gated and not connection.distance.watched:
            self._pace.watch(connection, now)
        if connection.missing_from is not None:
            self._missed.look(connection, now)
        if seg.flags & RST and connection.lacks:
            self._look_soon(now)
        elif seg.flags & RST and not held:
            self._close(connection, "reset by the server", now)
        elif seg.flags & FIN:
            self._look_soon(now)

    def _syn_ack(self, event: PacketQueued, seg: Segment, have: GatedConnection | None, now: float) -> None:
        if have is not None:
            if self._opening.repeats(event, seg, have):
                return
            self._close(have, "replaced by a new connection", now)
        if self._opening.has_room:
            connection = self._opening.syn_ack(event, seg, self._why_not(), now)
            if self._protecting() and connection.state is Gate.UNPROTECTED:
                self._missed.begins(connection, now)
                self._served.begins(connection, now)
        else:
            self._make_room(now)
            self._opening.no_room(event, seg, now)
            if self._protecting():
                self._missed.untracked("the connection table is full", (seg.dst, seg.dport, seg.src, seg.sport), now)

"""Clients of a primary that is well come on, whatever becomes of their replicas; and what is called protected has a
replica that is not far behind, and has said the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfq_failover.constants import SYN
from nfq_failover.core.gate.connection import FED_HOLD_S, Gate, GatedConnection
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.wire.icmp import is_icmp
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import diff

from .apps import Client

if TYPE_CHECKING:
    from .world import SimWorld

EVERY_S = 0.05
GRACE_S = 3.0  # repeated segments, a client's pauses, an end that waits for the replica's
LOOKED_AT = ("replica-hangs", "lopsided-hangs", "outrun")
LATE_S = 1.0  # looks, and connections that are let go one after the other


class Stalls:
    """Looks at all clients from time to time. `bound_s`: how long one may stand still; None: as long as it likes."""

    def __init__(self, world: SimWorld) -> None:
        self.world = world
        scenario = world.scenario
        patience_s = scenario.limits.replica_patience_ms / 1000
        self.bound_s = patience_s + GRACE_S if scenario.kind in LOOKED_AT else None
        if self.bound_s is not None and scenario.kind.startswith("lopsided"):
            self.bound_s += FED_HOLD_S
        self._late_s = patience_s + LATE_S
        self._marks: dict[GatedConnection, tuple[int, int, float]] = {}
        self._unprotected: dict[GatedConnection, int] = {}  # how much the client had got from its server
        self._seen: dict[Client, tuple[tuple[object, ...], float]] = {}

    def start(self) -> None:
        """Look from now on."""
        if self.bound_s is not None:
            self._look()

    def lost(self, packet: bytes) -> None:
        """The client's network has lost a packet. If it was news to a client, this one waits for the network from now
        on: its server's TCP sends that again, the later the longer it was held."""
        if is_icmp(bytearray(packet)):
            return
        seg = Segment(bytearray(packet))
        client = self.world.clients.get((seg.dst, seg.dport, seg.src, seg.sport))
        if client is None:
            return
        tcp = client.tcp
        if seg.flags & SYN if tcp.state == "syn-sent" else tcp.theirs.offset(seg.seq) + seg.seg_len > tcp.rcv_nxt:
            self._seen.pop(client, None)

    def _look(self) -> None:
        now = self.world.clock.now
        if self.world.healed or self.bound_s is None:
            return
        owner = self.world.owner
        well = owner is None or owner.application.well  # a backup that has taken over hangs itself, perhaps
        for client in self.world.clients.values():
            tcp = client.tcp
            state = (tcp.una, tcp.rcv_nxt, len(client.got), client.sent, tcp.state)
            before, since = self._seen.get(client, (state, now))
            self._seen[client] = (state, since if before == state and well else now)
            stands_s = now - self._seen[client][1]
            assert client.ending or stands_s <= self.bound_s, (
                f"client port {tcp.local[1]} has stood still for {stands_s:.1f} s, though its server is well"
            )
        for host in self.world.hosts:
            for gate in list(host.node.gate.flows.values()) if host.running else ():
                self._look_at(gate, now)
        self.world.clock.after(EVERY_S, self._look)

    def _look_at(self, gate: GatedConnection, now: float) -> None:
        """A connection is protected: its replica comes, in time, to where our TCP and our server were."""
        self._say_the_same(gate)
        mark = self._marks.pop(gate, None)
        if gate.state is not Gate.PROTECTED or gate.holds_end:
            return
        for other in self.world.hosts:
            shadow = other.node.shadow.flows.get(gate.flow) if other.running else None
            if shadow is None or shadow.conn != gate.conn or shadow.state is not Shadow.SHADOW or shadow.map is None:
                continue
            sent = shadow.seen.seq(shadow.output.snd_nxt)
            if mark is None or (shadow.inward.held >= mark[0] and diff(sent, mark[1]) >= 0):
                mark = gate.own.rcv_nxt, gate.own.snd_nxt_seq, now
            late_s = now - mark[2]
            assert late_s <= self._late_s, f"{gate.flow} is called protected, its replica is {late_s:.1f} s behind"
            self._marks[gate] = mark

    def _say_the_same(self, gate: GatedConnection) -> None:
        """A connection is protected again, of whose server the client had got something: its replica has not said
        something else."""
        client = self.world.clients.get(gate.flow)
        if client is None or gate.state is not Gate.PROTECTED:
            self._unprotected[gate] = 0 if client is None else len(client.got)
            return
        got = self._unprotected.pop(gate, 0)
        assert not (client.odd and got), (
            f"{gate.flow} is called protected again, though its two servers do not say the same: {got} bytes"
        )

"""What must hold at every packet, and at the end. A failure is an AssertionError that says what and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, cast

from nfq_failover.constants import FIN, RST, SYN
from nfq_failover.core.events import Log, Profile
from nfq_failover.core.gate.connection import Gate, GatedConnection
from nfq_failover.core.node import Node
from nfq_failover.core.pair.roles import Role, State
from nfq_failover.core.ports import covers
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.core.tcp.window import ROUNDING_BYTES
from nfq_failover.wire.icmp import IcmpError, is_icmp
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.seqnum import diff
from nfq_failover.wire.tcp_options import SynOptions

from . import bounds
from .apps import Client, twisted
from .host import LOOK_S, SimHost
from .scenario import PROBE_PORT, PUSH

if TYPE_CHECKING:
    from .world import SimWorld

TOLD_S = 1.5  # a connection without a replica has been told of by then
NOTICED_S = 0.5  # an application that was started anew is known to have been
KNOWN_S = 2.0  # three failed checks, and a heartbeat that says so


def _begins_to_serve(log: Log) -> bool:
    """Whether a log line says that its host serves from now on."""
    move = log.fields.get("before"), log.fields.get("after")
    return log.event == "state" and move in (("claiming", "unprotected"), ("storing", "unprotected"))


@dataclass
class Seen:
    """One connection as it looks on the wire."""

    client_space: SeqSpace
    server_space: SeqSpace
    wscale: int
    timestamps: bool
    options: tuple[int | None, bool, bool]
    client: Client
    ack: int = 0
    acked: int = 0  # as `ack`, also of one that is excused
    behind: tuple[str, int, int, int] | None = None  # survivor, its life and run, what its application must have read
    must_hear: tuple[str, int, int] | None = None  # survivor, its life and run: its client must not be left in silence
    edge: int = 0
    tsval: int | None = None
    resets: int = 0
    ended: bool = False
    promised: bool = False
    excused: str = ""
    survivor: str = ""
    promised_until: float = 0.0  # its survivor must have taken over by then
    protected: bool = False  # by the primary, when it was last heard
    let_go: bool = False  # its server had let this one connection go, and may not have been able to say so


@dataclass
class Checks:
    """Watches everything that leaves from the service address."""

    world: SimWorld
    flows: dict[FlowKey, Seen] = field(default_factory=dict)
    heard: dict[int, tuple[str, int]] = field(default_factory=dict)
    past: dict[Client, Seen] = field(default_factory=dict)  # their ports were used again
    excuse: str = ""
    took_over: set[str] = field(default_factory=set)
    refused: dict[FlowKey, str] = field(default_factory=dict)  # the application was not up yet, the backup too late

    def emitted(self, host: SimHost, packet: bytes) -> None:
        """A packet leaves a server's network card."""
        if is_icmp(bytearray(packet)):
            self._unreachable(host, IcmpError(bytearray(packet)))
            return
        seg = Segment(bytearray(packet))
        assert seg.checksum_ok(), f"{host.name} sends a wrong checksum: {seg}"
        flow = (seg.dst, seg.dport, seg.src, seg.sport)
        self._one_host(host, flow, seg)
        if seg.flags & SYN:
            self._syn_ack(host, flow, seg)
            return
        seen = self.flows.get(flow)
        if seg.flags & RST:
            shadow = host.node.shadow.flows.get(flow)
            late = shadow is not None and shadow.heard and shadow.state is Shadow.DEAD  # the takeover came too late
            fresh = seen is None or seen.client is not self.world.clients.get(flow)
            nobody = not host.kernel.listeners or (flow, seg.ack) in host.kernel.refused  # when its SYN came
            down = nobody and (host.application.well or fresh)
            down = down or (fresh and flow in host.application.broken)
            down = down or (flow[3] == PUSH and host.plan.deaf)
            if late or down:
                self.refused[flow] = host.name
        if seen is None:
            assert seg.flags & RST, f"{host.name} sends {seg} before any SYN-ACK"
            return
        client = seen.client
        gate = host.node.gate.flows.get(flow)
        seen.protected = gate is not None and gate.state is Gate.PROTECTED
        if seg.flags & (FIN | RST) and flow in host.application.broken and host.node.gate.missed.reason:
            seen.promised, seen.excused = False, "its process had ended, and its replica's host has missed input"
        if seg.flags & RST:
            seen.resets += 1
            alone = client.aborted or client.tcp.state in ("time-wait", "closed")
            assert alone or self.excuse or not seen.promised, f"{host.name} resets a living, promised connection: {seg}"
            return
        if self.excuse:
            return  # which of two hosts' numbers are the client's, is its own choice; what it has read is checked
        if gate is not None and gate.state is Gate.SYN_HELD and client is not self.world.clients[flow]:
            # Of a connection whose SYN-ACK is held, about some stray segment of the last one from this port: a client
            # in SYN_SENT takes no notice of it (RFC 9293 section 3.10.7.3).
            assert seg.is_pure_ack and seg.ack == gate.own.client.seq(0), f"{host.name} sends {seg} before the SYN-ACK"
            return
        self._numbers(host, seen, seg, client)
        self._gated(host, flow, seen, seg)

    def returned(self, host: SimHost, packet: bytes) -> None:
        """A packet leaves that was judged when the daemon sent it; since then it has been in the queue."""
        seg = Segment(bytearray(packet))
        self._one_host(host, (seg.dst, seg.dport, seg.src, seg.sport), seg)

    def logged(self, host: SimHost, log: Log) -> None:
        """A host of this world has its rules before it serves, so it sees every SYN that its TCP answers.

        Except for one: a half-open connection may be left from a time when this host served before. Its SYN is
        forgotten, its SYN-ACK is repeated, and it is listed as unprotected.

        A primary that goes on without a backup protects nothing any more, also if no client hears it say anything.
        """
        if log.event == "state" and log.fields.get("after") == "unprotected" and not _begins_to_serve(log):
            for seen in self.flows.values():
                seen.protected = False
        if log.fields.get("reason") != "opened before the rules were there":
            return
        client, client_port, server, server_port = host.node.gate.numbers[cast(int, log.fields["conn"])].flow
        opened_at = host.kernel.flows[(server, server_port), (client, client_port)].opened_at
        begins = (at for at, said in host.logs if _begins_to_serve(said))
        assert opened_at <= max(begins, default=0.0), f"{host.name} has not remembered a SYN: {log.fields}"

    def carried_out(self, host: SimHost, effects: int) -> None:
        """A host has carried out all effects of an input."""
        bounds.check(host, effects)

    def _unreachable(self, host: SimHost, error: IcmpError) -> None:
        """The quoted byte is the first one that the client has not been told to be here."""
        flow = (error.src, error.sport, error.dst, error.dport)
        self._one_host(host, flow, "an ICMP error")
        seen = self.flows[flow]
        if self.excuse or seen.excused:
            return
        quoted = seen.client_space.offset(error.seq)
        assert quoted == seen.ack, f"{host.name} quotes {quoted}, the client has been told {seen.ack}"

    def _one_host(self, host: SimHost, flow: FlowKey, what: object) -> None:
        """Invariant 2: in one epoch at most one host is heard, and after each boot in a new one (name, boot)."""
        epoch = host.node.members.epoch
        who = self.heard.setdefault(epoch, (host.name, host.life))
        now = (host.name, host.life)
        assert who == now, f"epoch {epoch}: {who} was heard, now {now}: {what}"
        if not self.world.split_brain:
            latest = max(self.heard)
            assert epoch == latest, f"{host.name} sends {what} in epoch {epoch}, but epoch {latest} has begun"

    def diverts(self, host: SimHost) -> None:
        """`host` has other rules: nobody clones to a host what that one's rules do not keep silent."""
        for one in (host, *self.world.others(host)):
            if one.profile is not Profile.PRIMARY or not one.running:
                continue
            for other in self.world.others(one):
                assert not other.up or covers(other.diverted, one.diverted), (
                    f"{one.name} clones ports {one.diverted}, and {other.name} diverts {other.diverted}"
                )

    def owns(self, host: SimHost) -> None:
        """`host` is to be heard from now on: nobody else that has power may be, and nobody's client may have been told
        more than `host` has."""
        others = self.world.others(host)
        for other in others:
            assert self.world.split_brain or not other.audible, (
                f"two owners: {host.name} in epoch {host.node.members.epoch},"
                f" {other.name} in {other.node.members.epoch}"
            )
        if self.world.split_brain:
            return
        self.took_over.add(host.name)
        if any(other.up for other in others):
            self._moved(host)
        for promised in self.flows.values():
            in_time = self.world.clock.now + host.jumped <= promised.promised_until  # it believes its clock
            if promised.promised and promised.survivor == host.name and not in_time:
                promised.promised, promised.excused = False, "taken over too late"
        for flow, shadow in host.node.shadow.flows.items():
            seen = self.flows.get(flow)
            if shadow.state is not Shadow.ACTIVE or shadow.resync.pending or seen is None or seen.let_go:
                continue  # resync: after a restart; our TCP is still to be asked what it has
            if (shadow.inward.client.base, shadow.mapping.seen.base) == (
                seen.client_space.base,
                seen.server_space.base,
            ):
                assert seen.ack <= shadow.inward.held, (
                    f"{flow} goes on: acknowledged {seen.ack}, {host.name} has {shadow.inward.held}"
                )

    def _syn_ack(self, host: SimHost, flow: FlowKey, seg: Segment) -> None:
        options = SynOptions.parse(seg.options())
        granted = (options.wscale, options.sack_permitted, options.tsval is not None)
        client_space, server_space = SeqSpace((seg.ack - 1) & 0xFFFFFFFF), SeqSpace(seg.seq)
        have = self.flows.get(flow)
        if have is not None and have.client_space.base == client_space.base:
            assert have.server_space.base == server_space.base or not have.promised, f"{host.name}: another ISS: {seg}"
            assert have.options == granted or not have.promised, f"{host.name}: granted options have changed: {seg}"
            if have.server_space.base == server_space.base:
                return
        if have is not None:
            self.past[have.client] = have
        self.flows[flow] = Seen(
            client_space,
            server_space,
            options.wscale or 0,
            options.tsval is not None,
            granted,
            self.world.clients[flow],
        )
        self.flows[flow].excused = self.excuse
        if have is not None and have.client_space.base == client_space.base:
            self.flows[flow].excused = self.excuse or have.excused  # the client may have taken the first answer
        if self.world.clients[flow].odd:
            self.flows[flow].excused = "its servers differ"
        if not host.application.well or flow in host.application.broken:
            self.flows[flow].excused = "opened while the application failed"
        if flow[1] >= PROBE_PORT and not self.excuse and not self.world.scenario.limits.max_connections:
            gate = host.node.gate.flows.get(flow)
            assert gate is not None and gate.state is Gate.PROTECTED, f"{flow} is not protected, though all is well"
        self.flows[flow].edge = seg.wnd
        self.flows[flow].tsval = options.tsval

    def _numbers(self, host: SimHost, seen: Seen, seg: Segment, client: Client) -> None:
        """Invariant 3: what the client sees goes on as it began."""
        where = f"{host.name} at {self.world.clock.now:.4f}: {seg}"
        start = seen.server_space.offset(seg.seq)
        payload = seg.payload()
        expected = client.expected[start : start + len(payload)]
        right = payload == expected or (client.odd and payload == twisted(expected))
        assert right, f"wrong bytes: {where}"
        if seg.flags & FIN:
            whole = start + len(payload) == len(client.expected)
            unpromised = client.aborted or (bool(seen.excused) and not seen.promised)
            broken = host.application.broken and unpromised
            assert whole or broken, f"FIN at the wrong place: {where}"
        ack = seen.client_space.offset(seg.ack)
        assert 0 <= ack <= len(client.out) + 1, f"acknowledges what was never sent: {where}"
        seen.acked = max(seen.acked, ack)
        if seen.excused:
            return
        shrink = max(1 << seen.wscale, ROUNDING_BYTES)  # what rounding had added may be taken back
        edge = ack + (seg.wnd << seen.wscale)
        assert ack >= seen.ack, f"ACK falls from {seen.ack} to {ack}: {where}"
        assert edge > seen.edge - shrink, f"the right edge moves left from {seen.edge} to {edge}: {where}"
        seen.ack, seen.edge = max(ack, seen.ack), max(edge, seen.edge)
        if ack:
            seen.client_space.near = ack
        if seen.timestamps:
            assert seg.ts_off, f"no timestamp: {where}"
            assert seen.tsval is None or diff(seg.tsval, seen.tsval) >= 0, f"TSval falls from {seen.tsval}: {where}"
            seen.tsval = seg.tsval

    def _gated(self, host: SimHost, flow: FlowKey, seen: Seen, seg: Segment) -> None:
        """Invariant 1: while protected, nothing is acknowledged that a backup does not hold."""
        gate = host.node.gate.flows.get(flow)
        if gate is None or gate.state is not Gate.PROTECTED:
            return
        for other in self.world.others(host):
            if other.running and not self.world.crashed_lately(other):
                self._held(host, gate, other, seen, seg)

    def _held(self, host: SimHost, gate: GatedConnection, other: SimHost, seen: Seen, seg: Segment) -> None:
        flow = gate.flow
        shadow = other.node.shadow.flows.get(flow)
        assert shadow is not None and shadow.conn == gate.conn, (
            f"{flow} is called protected, {other.name} has no shadow"
        )
        if shadow.state is Shadow.DEAD:
            return  # it has said so; the news is on its way
        ack = seen.client_space.offset(seg.ack)
        assert ack <= shadow.inward.held, f"{host.name} acknowledges {ack}, the backup has {shadow.inward.held}: {seg}"
        held = [(0, max(shadow.inward.held, shadow.inward.rcv_nxt)), *shadow.inward.inbound.ranges(1000)]
        for left_seq, right_seq in seg.sack:
            left, right = seen.client_space.offset(left_seq), seen.client_space.offset(right_seq)
            inside = any(a <= left and right <= b for a, b in held)
            assert inside, f"SACK {left}-{right}, the backup has {held}: {seg}"

    # ------------------------------------------------------------------------------------ promises

    def promise(self, primary: SimHost) -> None:
        """The primary dies now: the connections that it and a backup call protected must live, and that backup must
        have every byte of theirs that was acknowledged."""
        others = self.world.others(primary)
        able = [backup for backup in others if self._able(primary, backup)]
        for flow, seen in self.flows.items():
            gate = primary.node.gate.flows.get(flow)
            if gate is not None and gate.own.client.base != seen.client_space.base:
                gate = None  # a later connection from this port, whose SYN-ACK was never sent
            going = [backup for backup in able if gate is not None and self._goes_on(gate, backup)]
            survivor = (*going, *others)[0]
            seen.promised, seen.survivor = bool(going) and not seen.client.odd, survivor.name
            if gate is not None and survivor in able:
                self._expect(primary, gate, survivor, seen)
            decided = self.world.scenario.witness and survivor in able and survivor.node.members.pact.held
            seen.promised_until = inf if decided else min(primary.heard, survivor.awake) + self.world.time_to_act
            if not seen.promised:
                seen.excused = seen.excused or "not protected when its server died"
            seen.let_go = gate is not None and gate.state is not Gate.PROTECTED and primary.node.gate.protecting
            if seen.promised and not self.excuse:
                held = survivor.node.shadow.flows[flow].inward.held
                assert seen.ack <= held, f"{flow}: acknowledged {seen.ack}, {survivor.name} has {held}"

    def _expect(self, primary: SimHost, gate: GatedConnection, survivor: SimHost, seen: Seen) -> None:
        """What must come of a connection that may be lost: the state behind it is not, and its client hears of it."""
        shadow = survivor.node.shadow.flows.get(gate.flow)
        who = survivor.name, survivor.life, survivor.run
        acked = min(seen.acked, len(seen.client.out))
        known = gate.flow in survivor.node.shadow.strays.flows
        if shadow is not None and shadow.conn == gate.conn:
            known = True
            fed = gate.state in (Gate.PROTECTED, Gate.FED) and shadow.state in (Shadow.SHADOW, Shadow.FED)
            if fed and acked <= shadow.inward.held:
                seen.behind = (*who, acked)
        if gate.state is not Gate.PROTECTED and (known or primary.ticks.now - gate.opened_at > TOLD_S):
            seen.must_hear = who if primary.node.gate.protecting else None

    def _able(self, primary: SimHost, backup: SimHost) -> bool:
        """Whether `backup` can take over when `primary` is silent from now on."""
        able = backup.running and backup.node.members.state is not State.REFUSED and not backup.speechless
        return able and self._may_act(primary, backup)

    @staticmethod
    def _goes_on(gate: GatedConnection, backup: SimHost) -> bool:
        """Whether `backup`, which can take over, has what it needs to continue the connection."""
        shadow = backup.node.shadow.flows.get(gate.flow)
        well = backup.application.well and gate.flow not in backup.application.broken
        both = gate.state is Gate.PROTECTED and shadow is not None and gate.conn == shadow.conn
        if both and shadow is not None and shadow.state is Shadow.SHADOW:
            assert not shadow.turn & 1, f"{gate.flow} is called protected, {backup.name} will not continue it"
            forgot_at = backup.application.forgot_at
            if forgot_at is not None and backup.settings.service_state == "shared":
                anew = shadow.opened_at >= forgot_at and backup.ticks.now > forgot_at + NOTICED_S
                assert not anew, f"{gate.flow} is called protected, {backup.name}'s application has forgotten others"
        return well and both and shadow is not None and shadow.state is Shadow.SHADOW and not shadow.inward.late

    def _may_act(self, primary: SimHost, backup: SimHost) -> bool:
        """Whether `backup` is to take over when `primary` is silent from now on."""
        world = self.world
        if not world.takes_over or not world.scenario.witness:
            return world.takes_over
        if not backup.node.members.pact.held:
            return world.scenario.fence != "none"
        # A primary that has asked may have the right: if it dies, that is the second failure.
        asked = primary.running and primary.node.members.pact.asked
        last = world.witness.last
        granted = last is not None and last.holder == backup.name and last.number >= backup.node.members.pact.high
        return (granted or not asked) and world.witness.reaches(backup)

    def fences(self, host: SimHost) -> None:
        """`host` acts against another one. It has been able to hear that one, and to be heard, for a detection time;
        unless the witness has let it act, so that the other one is silent."""
        if not self.world.scenario.witness and self.world.clock.now > host.cut_off_at + LOOK_S:
            able_s = (self.world.clock.now - host.cut_off_until) * host.plan.rate + host.jumped
            assert able_s >= host.settings.detection_ms / 1000, (
                f"{host.name} fences another host, but was cut off itself until {able_s:.3f} s ago"
            )

    def witness_cut(self) -> None:
        """A path was cut: who needs the witness, and has not served yet, may not be able to ask it."""
        for seen in self.flows.values():
            if self.world.scenario.witness and seen.promised and seen.promised_until == inf:
                survivor = self.world.host(seen.survivor)
                serves = survivor.running and survivor.node.members.role is Role.PRIMARY
                if not serves and not self.world.witness.reaches(survivor):
                    seen.promised, seen.excused = False, "its survivor can't ask the witness"

    def application_failed(self, host: SimHost, how: str, alone: FlowKey | None = None) -> None:
        """The application of `host` fails now (die, hang, refuse; exit: only the process of the connection `alone`).

        If the contract says that it is found, the protected connections must live. Others of this host are lost when
        the service moves, or at once.
        """
        settings = host.settings
        found = how in ("die", "exit") or settings.health_checked
        degraded = host.running and host.node.gate.missed.reason  # then one end alone proves nothing
        moves = found and settings.on_app_failure == "service" and not degraded
        serves = host.running and host.node.members.role is Role.PRIMARY
        able = moves and serves and host.node.members.state is State.PROTECTED
        ready = [other for other in self.world.others(host) if able and self._follows(other)]
        for flow, seen in self.flows.items():
            if not serves:
                if seen.survivor == host.name and (alone in (None, flow)) and how != "refuse":
                    seen.promised, seen.excused = False, "its survivor's application has failed, too"
                continue
            gate = host.node.gate.flows.get(flow)
            tcp = host.kernel.flows.get(((flow[2], flow[3]), (flow[0], flow[1])))
            known = tcp is not None and tcp.state != "syn-received"  # else it is a new one, which may be refused
            if gate is not None and gate.state is Gate.PROTECTED and known and not seen.excused:
                going = [other for other in ready if self._shadows(other, gate)]
                if going:
                    seen.promised, seen.survivor, seen.promised_until = True, going[0].name, inf
                    continue
            if moves or how in ("die", "hang") or flow == alone:
                seen.promised, seen.excused = False, f"its application has failed ({how}), and nobody can go on"

    @staticmethod
    def _follows(other: SimHost) -> bool:
        """Whether a backup is there, and well, to take the service at once."""
        follows = other.running and other.node.members.state is State.SHADOWING and not other.node.members.invalid
        return follows and other.application.well and not other.speechless

    @staticmethod
    def _shadows(other: SimHost, gate: GatedConnection) -> bool:
        """Whether a backup has a living replica of the connection."""
        shadow = other.node.shadow.flows.get(gate.flow)
        lives = shadow is not None and shadow.conn == gate.conn and shadow.state is Shadow.SHADOW
        return lives and gate.flow not in other.application.broken

    def yielded(self, host: SimHost) -> None:
        """The service of `host` moves: not because of an application that has not failed, and not to where it is known
        to have."""
        scenario, others = self.world.scenario, self.world.others(host)
        differ = any(plan.odd or plan.server_port == PUSH for plan in scenario.connections)
        failed = any(incident.what.startswith("app_") for incident in scenario.incidents)
        assert differ or failed, f"{host.name} says that its application has failed, which has not"
        assert not all(map(self._known_to_fail, others)), f"{host.name} moves to a host whose application has failed"
        served = [tcp for tcp in host.kernel.flows.values() if tcp.state == "open" and tcp.fin_at is None]
        if served and host.application.well:
            lacking = [other.node.shadow.wholeness.missed for other in others]
            assert not all(lacking), f"{host.name}, whose application goes on, moves to one that has missed input"

    def _known_to_fail(self, host: SimHost) -> bool:
        since = self.world.clock.now - host.application.failed_at
        return self.world.scenario.health and not host.application.well and since > KNOWN_S

    def denied(self, host: SimHost) -> None:
        """The witness has let another host act alone. If its fence fails, nobody goes on."""
        if not self.world.takes_over:
            for seen in self.flows.values():
                seen.promised, seen.excused = False, f"{host.name} was denied, and another's fence may have failed"

    def _moved(self, host: SimHost) -> None:
        """`host` serves from now on, though another one lives: what was not protected is lost."""
        for flow, seen in self.flows.items():
            shadow = host.node.shadow.flows.get(flow)
            going = shadow is not None and shadow.state is Shadow.ACTIVE
            if not going and not seen.promised and not seen.protected:
                seen.excused = "not protected when the service moved"

    def died(self, host: SimHost) -> None:
        """What `host` alone could continue is lost: one failure is promised to be survived, not two."""
        for seen in self.flows.values():
            if seen.survivor == host.name:
                seen.promised, seen.excused = False, "its survivor has died, too"

    def restarted(self, host: SimHost, old: Node, resumes: bool) -> None:
        """The daemon of `host` is back; `old` is the node of its earlier life."""
        self.world.crashes[host.name] = self.world.clock.now  # a peer may not know yet what this one has lost
        node, was = host.node, old.members.state
        assert not resumes or was in (State.UNPROTECTED, State.ARMING), (
            f"{host.name} goes on after {was.name}: the backup may be about to take over"
        )
        for flow, seen in self.flows.items():
            shadow = node.shadow.flows.get(flow)
            if resumes and shadow is not None and shadow.state is Shadow.DEAD:
                seen.promised, seen.excused = False, "its bytes were in the dead daemon's memory"
            elif resumes and shadow is None and not node.gate.opening.adopts_unknown:
                seen.promised, seen.excused = False, "opened on a host with connections left over from an earlier role"
            elif not resumes and (flow in old.gate.flows or flow in old.shadow.flows) and not seen.promised:
                seen.excused = "its host did not go on"

    def excuse_all(self, why: str) -> None:
        """From here on no connection is promised anything."""
        self.excuse = why
        for seen in self.flows.values():
            seen.promised, seen.excused = False, why

    def _lives_on(self, name: str, life: int, run: int) -> bool:
        """Whether a survivor has taken over, and its daemon and application have gone on since."""
        host = self.world.host(name)
        return (host.life, host.run) == (life, run) and host.application.well and name in self.took_over

    def _kept(self, flow: FlowKey, seen: Seen) -> None:
        """The state behind a connection that was lost has survived, and its client knows."""
        if self.excuse:
            return
        if seen.behind is not None and self._lives_on(*seen.behind[:3]):
            name, *_, acked = seen.behind
            host = self.world.host(name)
            apps = host.apps.get(flow, [])
            if (flow, seen.client_space.base) not in host.application.lost:
                read = max((len(app.read) for app in apps if seen.client.out.startswith(bytes(app.read))), default=0)
                assert read >= acked, f"{flow}: {acked} bytes were acknowledged, {name}'s application has {read}"
        if seen.must_hear is not None and self._lives_on(*seen.must_hear):
            client = seen.client
            told = client.ending or client.reset or client.aborted or client.tcp.state == "syn-sent"
            assert told, f"client port {flow[1]} has not heard that its connection is over: {client.tcp.state}"

    # ------------------------------------------------------------------------------------ the end

    def final(self) -> None:
        """Every client that was promised a living connection has ended well; nobody has read a wrong byte."""
        for flow, client in [*self.world.past, *self.world.clients.items()]:
            seen = self.flows.get(flow)
            if seen is not None and seen.client is not client:
                seen = self.past.get(client)
            got = bytes(client.got)
            expected = client.expected[: len(got)]
            # How long a mixture is possible, test_sim_divergence.py measures.
            both = zip(got, expected, twisted(expected), strict=True) if client.odd else ()
            right = got == expected or (client.odd and all(byte in (one, other) for byte, one, other in both))
            assert right, f"port {flow[1]}: the client has read wrong bytes"
            if seen is not None:
                self._kept(flow, seen)
            excused = self.excuse or (seen is not None and seen.excused) or flow in self.refused
            state = f"{client.tcp.state}, {len(got)} of {len(client.expected)}, sent {client.sent}/{len(client.out)}"
            assert client.finished or excused, f"client port {flow[1]} -> {flow[3]} did not end well: {state}"
        for host in self.world.hosts:  # the servers
            for flow, apps in host.apps.items():
                sent = [client.out for at, client in [*self.world.past, *self.world.clients.items()] if at == flow]
                for app in apps:
                    read = bytes(app.read)
                    assert any(read == out[: len(read)] for out in sent), (
                        f"{host.name}: the server has read wrong bytes"
                    )

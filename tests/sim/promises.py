"""What clients are promised at each incident, and whether that is kept.

A connection that is called protected when its server dies must live, and its survivor must have every byte of it that
was acknowledged. One that is not, and whose host goes on, must be told; and the state behind it is not lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from nfq_failover.core.gate.connection import Gate, GatedConnection
from nfq_failover.core.node import Node
from nfq_failover.core.pair.roles import Role, State
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.wire.segment import FlowKey

from .apps import Client
from .host import LOOK_S, SimHost
from .scenario import PUSH

if TYPE_CHECKING:
    from .world import SimWorld

TOLD_S = 1.5  # a connection without a replica has been told of by then
NOTICED_S = 0.5  # an application that was started anew is known to have been
KNOWN_S = 2.0  # three failed checks, and a heartbeat that says so


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
class Promises:
    """What each connection was promised, as far as it has been seen on the wire."""

    world: SimWorld
    flows: dict[FlowKey, Seen] = field(default_factory=dict)
    past: dict[Client, Seen] = field(default_factory=dict)  # their ports were used again
    excuse: str = ""
    took_over: set[str] = field(default_factory=set)

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

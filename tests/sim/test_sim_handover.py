"""Single connections lose their server on the primary (`on_failure = "connection"`): the backup goes on with each, the
client sees one sender after the other, and nothing of the failure."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from nfq_failover.constants import RST
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.gate.connection import Gate
from nfq_failover.core.gate.handover import Handovers
from nfq_failover.core.pair.roles import State
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.wire.icmp import is_icmp
from nfq_failover.wire.records import HandedOver
from nfq_failover.wire.segment import FlowKey, Segment

from .apps import Client
from .checks import Checks
from .generate import from_seed
from .host import SimHost
from .promises import Seen
from .scenario import Incident, Scenario
from .world import SimWorld

SEEDS = range(1, 7)
KINDS = ("none", "crash-primary", "crash-backup", "cut", "pause", "hang", "rejoin", "kill-backup")
FAILURES = 6
MEAN_S = 0.02  # between two failures


class Gone:
    """The application of a connection whose server has died."""

    def readable(self) -> None:
        """Bytes can be read, but nobody reads them."""

    def closed(self, reset: bool) -> None:
        """The connection is over, and nobody takes notice."""


class HandoverChecks(Checks):
    """Beside all else: who is heard on a connection, and what is promised to one that was handed over."""

    def __init__(self, world: SimWorld) -> None:
        super().__init__(world)
        self.speaks: dict[Client, list[str]] = {}
        self.lost: set[Client] = set()
        self.confirmed = 0  # of those that were lost: the replica has ended, too, or the client

    def emitted(self, host: SimHost, packet: bytes) -> None:
        if is_icmp(bytearray(packet)):
            super().emitted(host, packet)
            return
        seg = Segment(bytearray(packet))
        client = self.world.clients.get((seg.dst, seg.dport, seg.src, seg.sport))
        if client is not None and not seg.flags & RST and client not in self.lost:
            speakers = self.speaks.setdefault(client, [])
            if speakers[-1:] != [host.name]:
                speakers.append(host.name)
                if len(speakers) > 1:
                    self.world.moved()  # type: ignore[attr-defined]
            most = 3 if self.world.scenario.kind == "rejoin" else 2  # hosts that crash hand over, too
            assert len(speakers) <= most or self.excuse, f"port {seg.dport} hears {speakers}: {seg}"
        if client in self.lost:
            return
        if client is not None and client in self.world.struck and self._unprotected(host, seg):  # type: ignore[attr-defined]
            flow = (seg.dst, seg.dport, seg.src, seg.sport)
            (other,) = self.world.others(host)
            shadow = other.node.shadow.flows.get(flow)
            # A reset where the replica closes is confirmed; what the client has aborted can't go on anywhere.
            if client.aborted or (shadow is not None and shadow.output.fin_out is not None):
                self.confirmed += 1
            self.lose(flow, "two failures: its server, and its backup")
            return
        super().emitted(host, packet)

    def returned(self, host: SimHost, packet: bytes, of: Seen | None) -> None:
        if of is None or of.client not in self.lost:
            super().returned(host, packet, of)

    @staticmethod
    def _unprotected(host: SimHost, seg: Segment) -> bool:
        flow = (seg.dst, seg.dport, seg.src, seg.sport)
        gate = host.node.gate.flows.get(flow)
        if gate is None:  # its RST has been let go, and it is forgotten
            return bool(seg.flags & RST) and flow not in host.node.shadow.flows
        return gate.state is Gate.UNPROTECTED and gate.end is not None and gate.end.passed

    def _one_host(self, host: SimHost, flow: FlowKey, what: object) -> None:
        shadow = host.node.shadow.flows.get(flow)
        if shadow is None or not shadow.handed:
            super()._one_host(host, flow, what)

    def promise(self, primary: SimHost) -> None:
        super().promise(primary)
        (backup,) = self.world.others(primary)
        for flow, seen in self.flows.items():
            shadow = backup.node.shadow.flows.get(flow) if backup.running else None
            if shadow is not None and shadow.handed and shadow.state is Shadow.ACTIVE:
                seen.promised, seen.excused, seen.promised_until = True, "", inf

    def died(self, host: SimHost) -> None:
        super().died(host)
        for flow, shadow in host.node.shadow.flows.items() if host.running else ():
            if shadow.handed and flow in self.flows:
                self.lose(flow, "the host that it was handed over to has died")
        (other,) = self.world.others(host)
        for flow in other.node.gate.handovers.flows if other.running else ():
            if flow in self.flows:
                self.lose(flow, "the host that it was being handed over to has died")

    def lose(self, flow: FlowKey, why: str) -> None:
        """The connection is promised nothing from now on."""
        seen = self.flows[flow]
        seen.promised, seen.excused = False, why
        self.lost.add(seen.client)


class Failing(SimWorld):
    """A world in which servers of single connections die on the primary, now and then."""

    def __init__(self, scenario: Scenario) -> None:
        # A client may wait for ever for a server that has no backup: nothing is drained.
        incidents = () if scenario.kind == "crash-primary" else scenario.incidents
        super().__init__(replace(scenario, drain=False, incidents=incidents))
        self.checks = HandoverChecks(self)
        self.failed = 0
        self.struck: set[Client] = set()
        for host in self.hosts:
            host.settings = replace(host.settings, on_app_failure="connection", end_deadline_ms=200)
        self.chance = self.dice("failures")
        self.struck_down = scenario.kind != "crash-primary"
        self.clock.after(0.2, self._strike)

    def moved(self) -> None:
        """A connection is heard from the other host: the first one may not be there for long."""
        if not self.struck_down and not self.healed and self.owner is not None:
            self.struck_down = True
            self.clock.after(self.chance.random() * 0.1, self.incidents.strike, Incident(0.0, "crash", "primary"))

    def _strike(self) -> None:
        if self.failed < FAILURES and not self.healed:
            self.clock.after(self.chance.expovariate(1 / MEAN_S), self._strike)
        owner = self.owner
        if owner is None or not owner.running or owner.node.members.state is not State.PROTECTED:
            return
        able = []
        for flow, apps in owner.apps.items():
            gate, app = owner.node.gate.flows.get(flow), apps[-1]
            if gate is not None and gate.state is Gate.PROTECTED and app.tcp.app is app and app.tcp.fin_at is None:
                able.append((flow, app))
        if not able:
            return
        self.failed += 1
        flow, app = self.chance.choice(able)
        self.struck.add(self.clients[flow])
        app.tcp.app = Gone()
        if app.tcp.received.end > app.tcp.read_at or self.chance.random() < 0.2:
            app.tcp.abort()
        else:
            app.tcp.close()


def run(seed: int, kind: str) -> tuple[int, int, int]:
    """One run; how many servers have died, how many connections have moved, and how many were lost."""
    world = Failing(from_seed(seed, kind))
    try:
        world.run()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, {world.scenario.kind}: {error}") from error
    counters = [host.node.out.counters for host in world.hosts if host.up]
    checks = world.checks
    assert isinstance(checks, HandoverChecks)
    return world.failed, sum(found["handed-over-to-us"] for found in counters), len(checks.lost) - checks.confirmed


@pytest.mark.parametrize("kind", KINDS)
def test_every_connection_ends_well_with_one_sender_after_the_other(kind: str) -> None:
    found = [run(seed, kind) for seed in SEEDS]
    failed, moved, lost = (sum(column) for column in zip(*found, strict=True))
    assert failed and moved
    assert not lost or kind not in ("none", "crash-primary"), found


def _leaks(self: Handovers, event: PacketQueued, seg: Segment) -> bool:
    if (seg.dst, seg.dport, seg.src, seg.sport) not in self.flows:
        return False
    self.out.accept(event.queue, event.packet_id)
    return True


def _resumes(self: Handovers, record: HandedOver, now: float) -> None:
    handed = self._by_number.get(record.conn)
    if handed is not None and handed.connection is not None:
        self._forget(handed, still=True)
        self._tracked[handed.asked.flow] = handed.connection
        handed.connection.state = Gate.PROTECTED
        self._give_back(handed.connection, "taken back", now)


def _forgets(self: ShadowTable, now: float) -> tuple[int, int]:
    for connection in [c for c in self.flows.values() if c.state is Shadow.ACTIVE]:
        self.forget(connection)
    return take_over(self, now)


take_over = ShadowTable.take_over


@pytest.mark.parametrize("sabotage", ["leaks", "resumes", "forgets"])
def test_check_finds_a_core_that(sabotage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if sabotage == "leaks":
        monkeypatch.setattr(Handovers, "outbound", _leaks)
    elif sabotage == "resumes":
        monkeypatch.setattr(Handovers, "on_handed", _resumes)
    else:
        monkeypatch.setattr(ShadowTable, "take_over", _forgets)
    assert any(_finds(seed) for seed in range(1, 30))


def _finds(seed: int) -> bool:
    try:
        run(seed, "crash-primary")
    except AssertionError:
        return True
    return False

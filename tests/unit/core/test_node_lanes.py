"""A host between two others: one protects its connections, it shadows those of the other one."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nfq_failover.core.events import DatagramReceived, PacketQueued, PublishHeartbeat, Queue, SendDatagram, TimerFired
from nfq_failover.core.node import Node
from nfq_failover.core.pair.roles import Do, State
from nfq_failover.wire.heartbeat import HeartbeatTemplate
from nfq_failover.wire.records import Open, Opened, Record
from tests.support import configured
from tests.support.transcript import (
    ISS,
    ISS_OWN,
    OWN_TS,
    SERVER,
    Sent,
    granted,
    opening,
    server,
    settings,
    syn,
    syn_ack,
)

RING = {"before": ("mid", "after"), "mid": ("after", "before"), "after": ("before", "mid")}
ADDRESSES = {name: (f"192.0.2.{number}", 7766) for number, name in enumerate(RING, 1)}


class Ring:
    """Three hosts, each with a session with either of the others; `taken` notes (host, its peer, record)."""

    def __init__(self) -> None:
        self.now = 100.0
        rng = random.Random(1)
        self.taken: list[tuple[str, str, Record]] = []
        self.templates: dict[tuple[str, str], bytes] = {}
        self.nodes: dict[str, Node] = {}
        for name, peers in RING.items():
            conf = settings(
                name=name, service=SERVER[0], peers=tuple(configured.peer(each, *ADDRESSES[each]) for each in peers)
            )
            self.nodes[name] = Node(conf, rng.randbytes, 0, False, self.now)
            self._note_records(name)
        for _ in range(4):
            self.tick()
        self._id = 0

    def _note_records(self, name: str) -> None:
        node = self.nodes[name]
        take = node._record

        def note(link: Any, record: Record, now: float) -> None:
            self.taken.append((name, link.peer.name, record))
            take(link, record, now)

        node._record = note  # type: ignore[method-assign]

    def tick(self) -> None:
        """Let all hosts see that time has passed."""
        self.now += 0.05
        for name in self.nodes:
            self.nodes[name].handle(TimerFired(), self.now)
            self.drain(name)

    def drain(self, name: str) -> None:
        """Carry the datagrams of a host to those that they are for."""
        while (effect := self.nodes[name].poll_effect()) is not None:
            if isinstance(effect, SendDatagram):
                self.deliver(name, effect)
            elif isinstance(effect, PublishHeartbeat):
                self.templates[name, effect.peer] = effect.template

    def deliver(self, name: str, effect: SendDatagram, source: tuple[str, int] | None = None) -> None:
        """Bring one datagram where it is to go. `source`: where it seems to come from, if not from its sender."""
        (to,) = (other for other, address in ADDRESSES.items() if address == effect.destination)
        self.nodes[to].handle(DatagramReceived(source or ADDRESSES[name], effect.data), self.now)
        self.drain(to)

    def packet(self, sent: Sent) -> None:
        """A packet at the host in the middle."""
        self._id += 1
        queue = Queue.IN if sent.by == "client" else Queue.OUT
        self.nodes["mid"].handle(PacketQueued(queue, self._id, sent.packet(ISS)), self.now)
        self.drain("mid")

    def heartbeat(self, name: str) -> None:
        """A heartbeat of a host reaches the one in the middle."""
        sent = int(self.now * 1000)
        data = HeartbeatTemplate.decode(self.templates[name, "mid"]).datagram(sent, sent, 0)
        self.deliver(name, SendDatagram(ADDRESSES["mid"], data))

    def say(self, name: str, record: Record) -> None:
        """A host says something to the one in the middle."""
        self.nodes[name].links.by_name["mid"].lane.append(record)
        self.drain(name)


@pytest.fixture
def ring() -> Ring:
    made = Ring()
    assert all(link.session.established for node in made.nodes.values() for link in node.links.all)
    made.taken.clear()
    return made


def protect(ring: Ring) -> None:
    """The host in the middle opens a connection that is protected."""
    mid = ring.nodes["mid"]
    mid.members.state = State.PROTECTED
    mid.members.actions.append(Do.PROTECT)
    ring.tick()
    mid.members.state = State.PROTECTED  # the others do not answer as a backup would
    ring.packet(syn())
    ring.packet(syn_ack())


def shadow(ring: Ring, by: str) -> None:
    """The host in the middle is told of a connection, and its replica answers."""
    ring.nodes["mid"].members.state = State.SHADOWING
    ring.say(by, opening())
    ring.packet(server(-1, ack=0, flags="S.", options=granted(3, OWN_TS), iss=ISS_OWN))


def test_what_the_gate_says_goes_to_the_host_that_protects(ring: Ring) -> None:
    protect(ring)
    assert ring.taken
    assert {(host, peer) for host, peer, _ in ring.taken} == {("after", "mid")}
    assert isinstance(ring.taken[0][2], Open)


def test_what_the_shadow_says_goes_to_the_host_that_is_shadowed(ring: Ring) -> None:
    shadow(ring, "before")
    heard = [(host, peer, type(record)) for host, peer, record in ring.taken]
    assert heard == [("mid", "before", Open), ("before", "mid", Opened)]


def test_either_side_takes_only_what_its_own_peer_says(ring: Ring) -> None:
    mid = ring.nodes["mid"]
    shadow(ring, "after")
    assert [(host, peer) for host, peer, _ in ring.taken] == [("mid", "after")]
    assert not mid.shadow.flows
    protect(ring)
    (connection,) = mid.gate.flows.values()
    reason = connection.reason
    ring.say("before", Opened(connection.conn, False, 0, "no room"))
    assert connection.reason == reason
    ring.say("after", Opened(connection.conn, False, 0, "no room"))
    assert connection.reason == "no room"


def test_datagram_from_elsewhere_is_for_the_link_that_can_authenticate_it(ring: Ring) -> None:
    sessions = {name: ring.nodes[name].links.by_name["mid"].session for name in ("before", "after")}
    datagrams = {name: session.seal([Opened(77, False, 0, "")], 0)[0] for name, session in sessions.items()}
    mid = ADDRESSES["mid"]
    counters = ring.nodes["mid"].out.counters
    before = counters["datagram-wrong-session"]
    ring.deliver("before", SendDatagram(mid, datagrams["after"]))
    assert counters["datagram-wrong-session"] == before + 1, "from an address whose link is another one"
    for name, data in datagrams.items():
        ring.deliver(name, SendDatagram(mid, data), ("192.0.2.66", 1))
    assert [(host, peer) for host, peer, _ in ring.taken] == [("mid", "before"), ("mid", "after")]
    assert counters["datagram-wrong-session"] == before + 1


def test_sealed_lane_is_empty_and_another_one_untouched(ring: Ring) -> None:
    mid = ring.nodes["mid"]
    mid.gate.out.record(Opened(1, True, 0))
    mid.shadow.out.record(Opened(2, True, 0))
    assert [len(link.lane) for link in (mid.protector, mid.shadowed)] == [1, 1]
    assert not mid.out.records
    mid.protector.seal(0)
    assert [len(link.lane) for link in (mid.protector, mid.shadowed)] == [0, 1]


def test_in_a_pair_both_sides_fill_one_lane() -> None:
    node = Node(settings(), random.Random(1).randbytes, 0, False, 100.0)
    assert node.protector is node.shadowed
    node.shadow.out.record(Opened(1, True, 0))
    node.gate.out.record(Opened(2, True, 0))
    assert node.protector.lane == [Opened(1, True, 0), Opened(2, True, 0)]


def test_membership_hears_the_host_that_protects_and_no_other(ring: Ring) -> None:
    mid = ring.nodes["mid"]
    ring.heartbeat("before")
    assert mid.shadowed.view.monitor.received == 1
    assert mid.members.peer.said is None
    ring.heartbeat("after")
    assert mid.members.peer.said is mid.protector.view.said is not None
    assert mid.members.peer.name == "after"

"""The node as a whole: what its peer says, and what it must not believe."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nfq_failover import __version__
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import (
    DatagramReceived,
    HealthChecked,
    HostChecked,
    LinkKnown,
    PublishHeartbeat,
    SendDatagram,
    TimerFired,
)
from nfq_failover.core.gate.connection import GatedConnection
from nfq_failover.core.gate.ends import ApplicationFailed
from nfq_failover.core.node import Node
from nfq_failover.core.pair.link import Link
from nfq_failover.core.pair.roles import UNHEALTHY, State
from nfq_failover.core.pair.told import MAX_KNOWN, STALE_S, TELL_EVERY_S
from nfq_failover.wire.datagram import Kind
from nfq_failover.wire.heartbeat import HeartbeatTemplate
from nfq_failover.wire.records import Closed, End, EndKind, OnLink
from tests.support import configured
from tests.support.transcript import FLOW, opening

ADDRESSES = {"a": "192.0.2.1", "b": "192.0.2.2"}


class NodePair:
    """Two nodes with a session between them."""

    def __init__(self) -> None:
        rng = random.Random(1)
        self.now = 100.0
        self.templates: dict[str, bytes] = {}
        self.nodes = {
            name: Node(
                configured.settings(name=name, peers=(configured.peer(peer, ADDRESSES[peer]),)),
                rng.randbytes,
                0,
                False,
                self.now,
            )
            for name, peer in (("a", "b"), ("b", "a"))
        }
        for _ in range(4):
            for name in self.nodes:
                self.nodes[name].handle(TimerFired(), self.now)
                self.drain(name)
            self.now += 0.05

    def link(self, name: str) -> Link:
        """The link of `name` to the other."""
        return self.nodes[name].links.by_name["b" if name == "a" else "a"]

    def drain(self, name: str) -> None:
        """Carry datagrams over; keep heartbeat templates; all else is another test's concern."""
        other = "b" if name == "a" else "a"
        while (effect := self.nodes[name].poll_effect()) is not None:
            if isinstance(effect, SendDatagram):
                self.nodes[other].handle(DatagramReceived((ADDRESSES[name], 7766), effect.data), self.now)
                self.drain(other)
            elif isinstance(effect, PublishHeartbeat):
                self.templates[name] = effect.template

    def heartbeat(self, name: str, **changes: int) -> None:
        """A heartbeat of `name` reaches the other."""
        template = HeartbeatTemplate.decode(self.templates[name])
        template = replace(template, body=replace(template.body, **changes))
        sent = int(self.now * 1000)
        other = "b" if name == "a" else "a"
        datagram = template.datagram(sent, sent, 0)
        self.nodes[other].handle(DatagramReceived((ADDRESSES[name], 7766), datagram), self.now)


def test_two_nodes_find_each_other() -> None:
    pair = NodePair()
    assert all(pair.link(name).session.established for name in pair.nodes)
    assert set(pair.templates) == {"a", "b"}


@pytest.mark.parametrize("changes", [{"role": 9}, {"state": 200}])
def test_heartbeat_of_an_unknown_role_or_state_is_counted_and_proves_nothing(changes: dict[str, int]) -> None:
    pair = NodePair()
    node = pair.nodes["a"]
    heard = pair.link("a").view.monitor.received
    pair.heartbeat("b", **changes)
    assert node.out.counters["heartbeat-unknown-state"] == 1
    assert pair.link("a").view.monitor.received == heard
    assert node.members.state is State.WAITING
    pair.now += 0.05
    pair.heartbeat("b")
    assert pair.link("a").view.monitor.received == heard + 1


def test_overtaken_heartbeat_is_counted_and_ignored() -> None:
    pair = NodePair()
    pair.heartbeat("b")
    heard = pair.link("a").view.monitor.received
    pair.now -= 0.05
    pair.heartbeat("b")
    assert pair.link("a").view.monitor.received == heard


@pytest.mark.parametrize("data", [b"", b"garbage", bytes(100), b"\x01" * 1500])
def test_garbage_is_counted(data: bytes) -> None:
    pair = NodePair()
    node = pair.nodes["a"]
    before = sum(count for name, count in node.out.counters.items() if name.startswith("datagram-"))
    node.handle(DatagramReceived(("192.0.2.66", 1), data), pair.now)
    after = sum(count for name, count in node.out.counters.items() if name.startswith("datagram-"))
    assert after == before + 1


def test_records_that_waited_through_a_pause_are_not_acted_on() -> None:
    """The news that the peer has taken over may wait behind them."""
    pair = NodePair()
    a = pair.nodes["a"]
    a.members.state = State.PROTECTED
    seen: list[object] = []
    a.gate.take = lambda record, now: seen.append(record)  # type: ignore[method-assign]

    def say(number: int) -> None:
        for data in pair.link("b").session.seal([Closed(number)], 1):
            a.handle(DatagramReceived((ADDRESSES["b"], 7766), data), pair.now)

    say(1)
    pair.now += 1.0
    say(2)
    assert seen == [Closed(1)]
    assert a.out.counters["record-after-pause"] == 1
    a.members.state = State.UNPROTECTED  # what the pause means for the protection is another test's concern
    a.handle(TimerFired(), pair.now)
    say(3)
    assert seen == [Closed(1), Closed(3)]


def test_records_of_an_older_epoch_are_counted_and_not_acted_on() -> None:
    """Held back by somebody on the way, who lets them go when the roles have changed."""
    pair = NodePair()
    a = pair.nodes["a"]
    a.members.state = State.PROTECTED
    seen: list[object] = []
    a.gate.take = lambda record, now: seen.append(record)  # type: ignore[method-assign]
    held_back = pair.link("b").session.seal([Closed(1), Closed(2)], a.members.epoch)
    a.members.epoch += 1
    for data in [*held_back, *pair.link("b").session.seal([Closed(3)], a.members.epoch)]:
        a.handle(DatagramReceived((ADDRESSES["b"], 7766), data), pair.now)
    assert seen == [Closed(3)]
    assert a.out.counters["record-of-old-epoch"] == 2


def test_refused_datagrams_and_handshakes_count_against_a_turn() -> None:
    pair = NodePair()
    a = pair.nodes["a"]
    before = pair.link("a").session.refused
    a.handle(DatagramReceived((ADDRESSES["b"], 7766), b"garbage"), pair.now)
    pair.heartbeat("b")
    assert pair.link("a").session.refused == before + 1
    pair.link("b").session._say(Kind.HELLO)
    pair.link("b").send_handshake()
    pair.drain("b")
    assert pair.link("a").session.refused == before + 2


@pytest.mark.parametrize(("epoch", "served", "may"), [(0, False, True), (3, True, True), (3, False, False)])
def test_connections_from_before_the_start_are_the_clients_only_if_this_host_served(
    epoch: int, served: bool, may: bool
) -> None:
    assert (
        Node(configured.settings(), random.Random(1).randbytes, epoch, served, 100.0).gate.opening.adopts_unknown is may
    )


def test_health_of_the_application_is_in_the_next_heartbeat() -> None:
    pair = NodePair()
    for ok, flag in ((False, 0), (False, 0), (False, UNHEALTHY), (True, 0)):
        pair.nodes["a"].handle(HealthChecked(ok, "" if ok else "refused"), pair.now)
        pair.drain("a")
        assert HeartbeatTemplate.decode(pair.templates["a"]).body.flags & UNHEALTHY == flag
    assert pair.nodes["a"].out.counters["health-check-failed"] == 3
    assert pair.nodes["a"].shadow.ends._well_at == pair.now


def test_host_whose_application_has_failed_is_silent_at_once() -> None:
    """Before anything else of the same datagram is looked at, and its heartbeat says so."""
    pair = NodePair()
    node = pair.nodes["a"]
    members = node.members
    members.state = State.PROTECTED
    shadowing = State.SHADOWING
    pair.heartbeat("b", role=int(shadowing.role), state=int(shadowing), echo_ms=int(pair.now * 1000))
    records: list[object] = []

    def fails(record: object, now: float) -> None:
        assert members.state is State.PROTECTED
        records.append(record)
        connection = GatedConnection(opening(), now)
        node.gate.findings.append(ApplicationFailed(connection, "it has failed", alone=False))

    node.gate.take = fails  # type: ignore[method-assign]
    end = End(1, 2, 3, EndKind.OPEN)
    for data in pair.link("b").session.seal([end, end], 1):
        node.handle(DatagramReceived((ADDRESSES["b"], 7766), data), pair.now)
    assert records == [end]
    pair.drain("a")
    assert HeartbeatTemplate.decode(pair.templates["a"]).body.state == State.YIELDED


def codes(node: Node) -> list[tuple[str, str]]:
    """What a node knows to be wrong, and with whom."""
    return [(each.host, each.concern.code) for each in node.out.concerns.standing()]


def test_what_is_wrong_with_a_host_is_known_to_the_other_at_once_and_until_it_is_over() -> None:
    pair = NodePair()
    full = Concern("disk-full", Weight.UNPROTECTED, "no room", "make room")

    def checked(*concerns: Concern) -> None:
        pair.now += 0.05
        pair.nodes["b"].handle(HostChecked(concerns), pair.now)
        pair.nodes["b"].handle(TimerFired(), pair.now)
        pair.drain("b")

    checked(full)
    assert codes(pair.nodes["a"]) == [("b", "disk-full")]
    assert codes(pair.nodes["b"]) == [("", "disk-full")]
    checked()
    assert codes(pair.nodes["a"]) == []
    checked(full)
    pair.now += STALE_S + 0.1
    pair.nodes["a"].handle(TimerFired(), pair.now)
    assert codes(pair.nodes["a"]) == [("", "peer-unheard")], "a peer that is silent says nothing any more"


def test_what_the_application_has_missed_is_said_in_other_words_by_a_host_that_has_taken_over() -> None:
    node = NodePair().nodes["b"]
    node.members.state = State.SHADOWING
    node.shadow.wholeness.lacks(1, FLOW, "the replica reset the connection")
    for state, weight in (
        (State.SHADOWING, Weight.DEGRADED),
        (State.UNPROTECTED, Weight.WARNING),  # nobody serves whose state it could be given
        (State.WAITING, Weight.DEGRADED),
    ):
        node.members.state = state
        node.handle(TimerFired(), 100.3)
        node.actions.carry_out(100.3)
        assert [each.weight for each in node.out.concerns.own if each.code == "input-missed"] == [weight]


def test_facts_are_told_when_a_session_begins_and_repeated() -> None:
    pair = NodePair()
    told = pair.link("a").told
    assert told.facts is not None
    assert told.facts["version"] == __version__
    told.session_started()
    pair.now += TELL_EVERY_S
    pair.nodes["b"].handle(TimerFired(), pair.now)
    pair.drain("b")
    assert told.facts is not None


def test_a_host_is_heard_in_whatever_epoch_it_is() -> None:
    """A host that was away is told of the trouble that keeps the pair from finding together."""
    pair = NodePair()
    pair.nodes["a"].members.epoch = 7
    pair.nodes["b"].handle(HostChecked((Concern("disk-full", Weight.UNPROTECTED, "no room"),)), pair.now)
    pair.now += 0.05
    pair.nodes["b"].handle(TimerFired(), pair.now)
    pair.drain("b")
    assert codes(pair.nodes["a"]) == [("b", "disk-full")]


def test_what_one_host_knows_of_the_segment_the_other_is_told_a_part_at_a_time() -> None:
    pair = NodePair()
    told = pair.link("a").told
    assert (told.hardware, told.neighbours) == (b"", {})
    neighbours = tuple((bytes((10, 0, number >> 8, number & 255)), number.to_bytes(6)) for number in range(120))
    pair.nodes["b"].handle(LinkKnown(b"mac-of", neighbours), pair.now)
    for _ in range(3):
        pair.now += TELL_EVERY_S
        pair.nodes["b"].handle(TimerFired(), pair.now)
        pair.drain("b")
    assert told.hardware == b"mac-of"
    assert told.neighbours == dict(neighbours)
    told.session_started()
    assert (told.hardware, told.neighbours) == (b"", {})


def test_of_the_neighbours_that_a_peer_tells_a_bounded_number_is_known() -> None:
    told = NodePair().link("a").told
    for number in range(MAX_KNOWN + 10):
        told.take(OnLink(b"mac", ((number.to_bytes(4), b"x"),)), 0.0)
    assert len(told.neighbours) == MAX_KNOWN
    assert (9).to_bytes(4) not in told.neighbours and (10).to_bytes(4) in told.neighbours


def test_between_two_ticks_a_timer_is_for_the_connections_alone() -> None:
    pair = NodePair()
    node = pair.nodes["a"]
    pair.now += 1.0
    node.handle(TimerFired(), pair.now)
    assert not node.tick_due(pair.now + 0.003)
    node.handle(TimerFired(), pair.now + 0.003)
    assert not node.tick_due(pair.now + 0.02)
    assert node.tick_due(pair.now + 0.025), "what came in between does not put a tick off"

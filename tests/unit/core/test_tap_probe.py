"""A tap of which clients say nothing is tried by probes, on either kind of tap, and nothing else comes of them."""

from __future__ import annotations

from random import Random
from typing import Self

import pytest

from nfq_failover.constants import ACK, RST
from nfq_failover.core.concerns import Weight
from nfq_failover.core.events import PacketQueued, Queue, SendProbe, Verdict
from nfq_failover.core.node import Node
from nfq_failover.core.pair.roles import Role, State
from nfq_failover.core.tap_probe import CODE, EVERY_S, FIRST_S, MISSED, SENDS_APART_S, WAIT_S
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.heartbeat import HeartbeatBody
from nfq_failover.wire.records import Facts, OnLink, ProbeAsked, Record, known_numbers
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.tap_probe import is_probe, tap_probe
from tests.support import configured

SERVICE = bytes((10, 77, 0, 100)), 80
BEGIN_S = FIRST_S + 0.25  # of time that passes in steps
PRIMARY_MAC = bytes((2, 0, 0, 0, 0, 1))


class Backup:
    """The node of a host that shadows a primary which protects; its timers are those of the probe alone."""

    def __init__(self, tap: str = "clone", records: str = "") -> None:
        self.node = Node(configured.settings(tap=tap), Random(1).randbytes, 0, False, 0.0)
        self.now = 10.0
        told = self.node.shadowed.told
        told.take(Facts((("records", records or known_numbers()),)), self.now)
        told.take(OnLink(PRIMARY_MAC), self.now)
        self.node.members.state = State.SHADOWING
        self.primary_is(State.PROTECTED)
        self.drain()

    def primary_is(self, state: State) -> None:
        body = HeartbeatBody(int(Role.PRIMARY), int(state), 0, 0, 0, 0, 0, 0, 1000)
        self.node.shadowed.view.heard(body, 0, self.now)

    def drain(self) -> list[object]:
        return list(iter(self.node.poll_effect, None))

    def wait(self, seconds: float) -> list[SendProbe | Record]:
        """Let time pass. Returns the probes that are sent, and those that are asked for."""
        end, found = self.now + seconds, list[SendProbe | Record]()
        while self.now < end:
            self.now += 0.25
            self.node._tap_probe.on_timer(self.now)
            found += [each for each in self.node.out.effects if isinstance(each, SendProbe)]
            found += [each for each in self.node.shadowed.lane if isinstance(each, ProbeAsked)]
            self.node.out.effects.clear()
            self.node.shadowed.lane.clear()
        return found

    def comes(self, packet: bytearray) -> Self:
        self.node._inbound(PacketQueued(Queue.IN, 7, packet), Segment(packet), self.now)
        assert [each for each in self.drain() if isinstance(each, Verdict)] == [Verdict(Queue.IN, 7, False)]
        return self

    @property
    def concern(self) -> Weight | None:
        found = [each for each in self.node.out.concerns.own if each.code == CODE]
        return found[0].weight if found else None


def back(token: int) -> bytearray:
    return tap_probe(bytes((10, 77, 0, 3)), SERVICE, token)


def test_a_probe_that_comes_back_shows_that_the_tap_works() -> None:
    backup = Backup()
    assert backup.wait(FIRST_S - 1) == []
    for wait_s in (1.25, 0.5, 0.5):
        (probe,) = backup.wait(wait_s)
        assert isinstance(probe, SendProbe) and probe.hardware == PRIMARY_MAC
        backup.comes(back(probe.token))
        assert backup.wait(EVERY_S - 0.25) == []
    counters = backup.node.out.counters
    assert counters["tap-probes-sent"] == counters["tap-probes-came"]
    assert backup.concern is None


@pytest.mark.parametrize(("tap", "weight"), [("clone", Weight.WARNING), ("multicast", Weight.DEGRADED)])
def test_some_that_do_not_come_are_a_concern_until_one_comes(tap: str, weight: Weight) -> None:
    backup = Backup(tap)
    sent = backup.wait(BEGIN_S + WAIT_S * (MISSED - 1))
    assert len(sent) == MISSED and backup.concern is None
    *_, probe = backup.wait(WAIT_S)
    assert backup.concern is weight
    assert isinstance(probe, ProbeAsked if tap == "multicast" else SendProbe)
    backup.comes(back(probe.token))
    assert backup.concern is None


def test_what_clients_send_takes_its_place() -> None:
    backup = Backup()
    backup.wait(BEGIN_S + WAIT_S * (MISSED + 1))
    assert backup.concern is not None
    tap = backup.node.shadow.repair.tap
    for second in range(40):
        tap.came(100)
        tap.on_timer(1000.0 + second)
        sent = backup.wait(1.0)
        assert second < 2 or sent == []
    assert backup.concern is None


@pytest.mark.parametrize(
    "packet",
    [
        back(1),
        build_segment((bytes((10, 77, 0, 1)), 0), SERVICE, 0, 0, ACK, 0),
        build_segment((bytes((10, 77, 0, 1)), 0), SERVICE, 0, 0, RST | ACK, 0),
        build_segment((bytes((10, 77, 0, 1)), 40000), SERVICE, 0, 0, RST, 0),
    ],
)
def test_other_packets_are_no_probe_of_ours(packet: bytearray) -> None:
    backup = Backup()
    (probe,) = backup.wait(BEGIN_S)
    assert isinstance(probe, SendProbe) and probe.token != 1
    backup.comes(packet)
    assert not backup.node.out.counters["tap-probes-came"]


@pytest.mark.parametrize("primary", [State.UNPROTECTED, State.ARMING, State.BACKUP_LOST])
def test_nothing_is_sent_while_the_primary_does_not_protect(primary: State) -> None:
    backup = Backup()
    backup.wait(BEGIN_S + WAIT_S * (MISSED + 1))
    backup.primary_is(primary)
    assert backup.wait(1.0) == []
    assert backup.concern is None
    assert backup.wait(30.0) == []


def test_a_primary_of_a_version_that_does_not_clone_probes_is_sent_none() -> None:
    assert Backup(records="1-63").wait(30.0) == []


def test_a_host_that_serves_sends_none_of_itself_and_one_for_each_that_asks() -> None:
    node = Node(configured.settings(tap="multicast"), Random(1).randbytes, 0, False, 0.0)
    node.members.state = State.PROTECTED
    for at in (1.0, 1.0 + SENDS_APART_S / 2, 1.0 + SENDS_APART_S):
        node._tap_probe.on_timer(at)
        node._tap_probe.asked(ProbeAsked(9), at)
    assert [each for each in node.out.effects if isinstance(each, SendProbe)] == [SendProbe(9, b"")] * 2


def test_with_the_clone_tap_no_peer_can_ask_for_a_frame() -> None:
    node = Node(configured.settings(), Random(1).randbytes, 0, False, 0.0)
    node.members.state = State.PROTECTED
    node._tap_probe.asked(ProbeAsked(9), 1.0)
    assert not [each for each in node.out.effects if isinstance(each, SendProbe)]


def test_a_host_that_does_not_serve_sends_none_for_anybody() -> None:
    backup = Backup("multicast")
    backup.node._tap_probe.asked(ProbeAsked(9), backup.now)
    assert not backup.drain()


def test_probe_is_known_by_its_port_and_flags() -> None:
    assert is_probe(Segment(back(5))) and Segment(back(5)).seq == 5

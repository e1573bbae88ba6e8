"""What probes through the host's rules mean: when it is said that they drop the service's packets, and of whom."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

from nfq_failover.constants import ACK, SYN
from nfq_failover.core.concerns import Concern, Part, Weight
from nfq_failover.core.events import PacketQueued, Profile, Queue
from nfq_failover.shell.firewall.path import Outcome, PathProbe, ProbeSender, Sent, Target, Way
from nfq_failover.shell.selfcheck.foreign_rules import Hint
from nfq_failover.shell.selfcheck.path import AGAIN_S, EVERY_S, TIMES, WAIT_S, Circumstances, PathCheck
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.tcp_options import SynOptions

SERVICE = bytes((192, 0, 2, 100))
SOMEBODY = bytes((192, 0, 2, 254))
FLOWS: list[FlowKey] = [(bytes((192, 0, 2, number)), 40000 + number, SERVICE, 80) for number in (5, 6)]
RULE = Hint("out", "iptables table filter: -A OUTPUT -j DROP", "iptables -I OUTPUT -j ACCEPT")


@dataclass
class Host:
    """A host with rules: what is in `dropped`, by way and client, does not get through; `lost` says nothing at all."""

    dropped: set[tuple[Way, bytes]] = field(default_factory=set)
    untried: set[Way] = field(default_factory=set)
    unqueued: bool = False
    waiting: int = 0
    flows: list[FlowKey] = field(default_factory=list)
    profile: Profile | None = Profile.BACKUP
    guarded: bool = True
    owned: bool = True
    tracked: bool = False
    asked: int = 0
    probes: list[Sent] = field(default_factory=list)

    def begin(self, wanted: Sequence[tuple[Way, Target]]) -> None:
        self.probes = [Sent(way, target) for way, target in wanted]
        for probe in self.probes:
            probe.queued = not self.unqueued
            if probe.way in self.untried:
                probe.outcome = Outcome.UNKNOWN
            elif (probe.way, probe.target.client) not in self.dropped:
                probe.outcome = Outcome.PASSED

    @property
    def under_way(self) -> bool:
        return any(probe.outcome is Outcome.UNDER_WAY for probe in self.probes)

    def collect(self) -> None:
        pass

    def end(self) -> None:
        for probe in self.probes:
            if probe.outcome is Outcome.UNDER_WAY:
                probe.outcome = Outcome.DROPPED

    def addresses(self, outward: bool, now: float) -> list[bytes]:
        return [SOMEBODY]

    def usable(self, addresses: list[bytes], outward: bool) -> list[bytes]:
        return addresses

    def doubt(self) -> Sequence[Hint]:
        self.asked += 1
        return (RULE,)

    def check(self) -> PathCheck:
        return PathCheck(
            cast(PathProbe, self),
            lambda: ((80, 80), (7000, 7099)),
            lambda: self.flows,
            self,
            lambda: Circumstances(self.profile, self.owned, self.guarded, self.tracked),
            lambda: self.waiting,
            self.doubt,
        )


def looks(check: PathCheck, times: int) -> tuple[Concern, ...]:
    """What is said after so many looks."""
    found: tuple[Concern, ...] = ()
    for number in range(times):
        said = check.run(100.0 * number)
        found = (check.run(100.0 * number + WAIT_S) if said is None else said) or ()
    return found


def ways(host: Host) -> set[tuple[Way, bool]]:
    """Which ways were tried, and whether for connections."""
    assert host.check().run(0.0) is not None
    return {(probe.way, probe.target.flow) for probe in host.probes}


def test_what_gets_through_is_no_concern() -> None:
    host = Host(flows=list(FLOWS))
    check = host.check()
    assert looks(check, 1) == ()
    assert (check.every_s, host.asked) == (EVERY_S, 0)
    assert {(probe.way, probe.target.port) for probe in host.probes} == {(way, p) for way in Way for p in (80, 7000)}


def test_what_is_dropped_again_and_again_is_said_with_the_rule_and_its_cure() -> None:
    host = Host({(Way.OUTWARD, SOMEBODY)})
    check = host.check()
    assert looks(check, TIMES - 1) == ()
    assert check.every_s == AGAIN_S
    (found,) = looks(check, 1)
    assert (found.code, found.weight, found.bears) == ("service-output-dropped", Weight.UNPROTECTED, Part.BACKUP)
    assert RULE.rule in found.what
    assert "port 80, 7000" in found.what
    command, _, remark = found.cure.partition("  # ")
    assert command == RULE.cure and "everybody" in remark
    assert check.every_s == EVERY_S
    host.dropped.clear()
    assert looks(check, 1) == ()


def test_what_is_dropped_now_and_then_is_not_said() -> None:
    host = Host({(Way.OUTWARD, SOMEBODY)})
    check = host.check()
    for _ in range(5):
        host.dropped = {(Way.OUTWARD, SOMEBODY)}
        assert looks(check, TIMES - 1) == ()
        host.dropped = set()
        assert looks(check, 1) == ()


def test_a_backup_says_what_it_can_not_try() -> None:
    def untried(host: Host, times: int = 1) -> list[str]:
        found = looks(host.check(), times)
        assert all((each.code, each.weight) == ("path-untried", Weight.WARNING) for each in found)
        return [each.what for each in found]

    assert untried(Host(untried={Way.INWARD}), TIMES - 1) == []  # a filter that is being replaced
    (turned,) = untried(Host(untried={Way.INWARD}), TIMES)
    (owned,) = untried(Host(owned=False))
    (tracked,) = untried(Host(tracked=True))  # nobody is connected: nothing is tried at all
    (connected,) = untried(Host(tracked=True, flows=list(FLOWS)))
    assert ("mirred" in turned, "xt_owner" in owned, "liberal" in tracked) == (True, True, True)
    assert tracked == connected
    assert "clients say" in turned and "clients say" not in owned
    for profile in (Profile.PRIMARY, None):
        assert untried(Host(profile=profile, owned=False, tracked=True), TIMES) == []


def test_connections_say_more_than_what_was_made_up() -> None:
    """A host may well drop what comes from a made-up address; and one client's connection is not all of them."""
    host = Host({(Way.INWARD, SOMEBODY)}, flows=list(FLOWS))
    (perhaps,) = looks(host.check(), TIMES)
    assert (perhaps.code, perhaps.weight) == ("service-input-dropped", Weight.WARNING)
    assert "port 7000" in perhaps.what and "made up" in perhaps.what and "real clients" in perhaps.cure
    host.dropped = {(Way.OUTWARD, SOMEBODY)}  # a rule by the client's address is rare there
    (out,) = looks(host.check(), TIMES)
    assert (out.code, out.weight) == ("service-output-dropped", Weight.UNPROTECTED)
    host.dropped = {(Way.INWARD, flow[0]) for flow in FLOWS}
    (closed,) = looks(host.check(), TIMES)
    assert (closed.weight, "port 80" in closed.what) == (Weight.UNPROTECTED, True)
    host.dropped = {(Way.INWARD, FLOWS[0][0])}
    (partly,) = looks(host.check(), TIMES)
    assert (partly.weight, "for some of them" in partly.what) == (Weight.DEGRADED, True)
    assert partly.clients == (FLOWS[0][0],)


def test_where_it_was_dropped_is_said() -> None:
    host = Host({(Way.INWARD, SOMEBODY)})
    assert "behind the daemon's queue" in looks(host.check(), TIMES)[0].what
    host.unqueued = True
    assert "before it is in the daemon's queue" in looks(host.check(), TIMES)[0].what


def test_what_may_still_wait_in_the_queue_is_not_taken_for_dropped() -> None:
    host = Host({(Way.INWARD, SOMEBODY)}, unqueued=True, waiting=1)
    assert looks(host.check(), TIMES + 1) == ()


def test_what_could_not_be_tried_is_no_concern() -> None:
    host = Host(set(), {Way.OUTWARD, Way.INJECTED})  # no route, no room: another check's matter
    assert looks(host.check(), TIMES) == ()


def test_what_is_tried_depends_on_the_host() -> None:
    made_up = {(way, False) for way in Way}
    assert ways(Host()) == made_up
    assert ways(Host(guarded=False)) == ways(Host(owned=False)) == made_up - {(Way.OUTWARD, False)}
    assert ways(Host(profile=Profile.PRIMARY)) == made_up - {(Way.INWARD, False)}, "the primary clones what comes in"
    assert ways(Host(tracked=True, flows=list(FLOWS))) == {(Way.OUTWARD, True)}
    for untried in (Host(profile=None), Host(profile=Profile.ALONE), Host(tracked=True)):
        assert ways(untried) == set()


def test_a_concern_is_over_when_nothing_can_be_tried_any_more() -> None:
    host = Host({(Way.INJECTED, SOMEBODY)})
    check = host.check()
    assert [each.code for each in looks(check, TIMES)] == ["injected-dropped"]
    host.profile = Profile.ALONE
    assert looks(check, 1) == ()


def test_a_connection_in_doubt_is_tried_again_among_many() -> None:
    many: list[FlowKey] = [(bytes((198, 51, 100, number)), 50000, SERVICE, 80) for number in range(200)]
    host = Host({(Way.OUTWARD, flow[0]) for flow in many}, flows=many)
    check = host.check()
    assert [each.weight for each in looks(check, 12)] == [Weight.UNPROTECTED]


def test_a_probe_that_begins_a_connection_looks_like_a_host_s() -> None:
    """There are rules that drop a SYN without options."""
    probe = PathProbe(SERVICE, cast(ProbeSender, None), print, print, _token=(500, 7))
    packet = probe._packet(1, Sent(Way.INWARD, Target(SOMEBODY, 50000, 80, False)))
    segment = Segment(bytearray(packet))
    offered = SynOptions.parse(bytes(packet[40:]))
    assert segment.flags & SYN and not segment.payload_len
    assert (offered.mss, offered.sack_permitted, offered.wscale, offered.tsval) == (1460, True, 7, 1)
    assert not segment.checksum_ok(), "no TCP takes it"
    assert len(probe._packet(1, Sent(Way.INWARD, Target(SOMEBODY, 50000, 80, True)))) == 40


def test_a_probe_in_the_output_queue_is_dropped_and_none_is_tried_outward_again() -> None:
    """The rules go by the mark there: the node would take it for what our TCP says."""
    refused: list[int] = []
    sender = cast(ProbeSender, SimpleNamespace(owned=True))
    probe = PathProbe(SERVICE, sender, print, refused.append, _token=(500, 7))
    probe._receiver = cast(socket.socket, object())
    probe.probes = [Sent(Way.OUTWARD, Target(FLOWS[0][0], FLOWS[0][1], 80, True))]
    ours = PacketQueued(Queue.OUT, 1, bytearray(probe._packet(1, probe.probes[0])))
    other = PacketQueued(Queue.OUT, 2, bytearray(build_segment((SERVICE, 80), FLOWS[0][:2], 1, 1, ACK, 500)))
    assert probe.sift_output([ours, other]) == [other]
    assert refused == [1]
    assert probe.probes[0].outcome is Outcome.UNKNOWN
    assert not sender.owned

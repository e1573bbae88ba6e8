"""What two hosts compare of each other, and what follows: nothing is protected that a difference would break."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Self

import pytest

from nfq_failover.constants import MAX_DATAGRAM, OPT_SACK_PERMITTED, OPT_TIMESTAMPS, OPT_WSCALE
from nfq_failover.core.concerns import Weight
from nfq_failover.core.events import (
    ApplyRules,
    CheckLink,
    DatagramReceived,
    EpochStored,
    Fence,
    HostFacts,
    Log,
    PublishHeartbeat,
    RulesApplied,
    SendDatagram,
    StoreEpoch,
    TimerFired,
)
from nfq_failover.core.node import Node
from nfq_failover.core.pair.agreement import RULES, WAIT_S, Host, datagram_bytes, facts_of, short
from nfq_failover.core.pair.roles import State
from nfq_failover.core.pair.sharing import Sharing
from nfq_failover.wire.heartbeat import HeartbeatTemplate
from nfq_failover.wire.records import Facts, encode_record
from tests.support import configured

ENDS = {"alpha": ("192.0.2.11", 7766), "beta": ("192.0.2.12", 7766)}
KERNEL = {
    "tap": "clone",
    "conntrack": "notrack",
    "witness": "none",
    "mtu": "1500",
    "timestamps": "1",
    "sack": "1",
    "window-scaling": "1",
    "ecn": "2",
}


def own_facts(**changes: Any) -> tuple[tuple[str, str], ...]:
    """What a host tells of its settings."""
    settings = configured.settings(**changes)
    return facts_of(settings, Sharing(settings))


def pairs(facts: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(facts.items())


class Pair:
    """The nodes of `alpha`, which is preferred, and `beta`; heartbeats, disks and rules included."""

    def __init__(
        self,
        alpha: dict[str, Any] | None = None,
        beta: dict[str, Any] | None = None,
        *,
        kernel: dict[str, dict[str, str]] | None = None,
        carry: Callable[[str, bytes], bool] = lambda name, data: True,
    ) -> None:
        self.now = 100.0
        self.carry = carry
        self.nodes: dict[str, Node] = {}
        self.templates: dict[str, HeartbeatTemplate] = {}
        self.beat_at = dict.fromkeys(ENDS, 0.0)
        self.done: list[tuple[str, object]] = []
        for name, peer, changes in (("alpha", "beta", alpha or {}), ("beta", "alpha", beta or {})):
            fields = {"name": name, "peers": (configured.peer(peer, *ENDS[peer]),), "has_fence": True, **changes}
            fields.setdefault("prefer_primary", name == "alpha")
            node = Node(configured.settings(**fields), Random(name).randbytes, 0, False, self.now)
            self.nodes[name] = node
            node.handle(HostFacts(pairs({**KERNEL, **(kernel or {}).get(name, {})})), self.now)

    def run(self, seconds: float = 2.0) -> Self:
        stop = self.now + seconds
        while self.now < stop:
            self.now += 0.005
            for name, node in self.nodes.items():
                interval = node.settings.heartbeat_interval_ms / 1000
                if name in self.templates and self.now - self.beat_at[name] >= interval:
                    self.beat(name)
                if self.now >= node.poll_timeout():
                    node.handle(TimerFired(), self.now)
                self.drain(name)
        return self

    def beat(self, name: str) -> None:
        self.beat_at[name] = self.now
        at = int(self.now * 1000)
        self.send(name, self.templates[name].datagram(int(self.now * 1_000_000), at, 0))

    def send(self, name: str, data: bytes) -> None:
        other = "beta" if name == "alpha" else "alpha"
        if self.carry(name, data):
            self.nodes[other].handle(DatagramReceived(ENDS[name], data), self.now)
            self.drain(other)

    def drain(self, name: str) -> None:
        node = self.nodes[name]
        while (effect := node.poll_effect()) is not None:
            if isinstance(effect, SendDatagram):
                self.send(name, effect.data)
            elif isinstance(effect, PublishHeartbeat):
                self.templates[name] = HeartbeatTemplate.decode(effect.template)
                self.beat(name)
            elif isinstance(effect, StoreEpoch):
                node.handle(EpochStored(effect.epoch, True), self.now)
            elif isinstance(effect, ApplyRules):
                self.apply(name, effect)
            else:
                self.done.append((name, effect))

    def apply(self, name: str, effect: ApplyRules) -> None:
        self.nodes[name].handle(RulesApplied(effect.profile, True, ports=effect.ports), self.now)

    def states(self) -> list[State]:
        return [node.members.state for node in self.nodes.values()]

    def found(self, name: str) -> dict[str, tuple[Weight, str]]:
        """What a host says of the two."""
        return {each.code: (each.weight, each.what) for each in self.nodes[name].out.concerns.own}


PROTECTED, HELD_BACK = [State.PROTECTED, State.SHADOWING], [State.UNPROTECTED, State.SHADOWING]


def test_hosts_that_agree_protect_at_once_and_say_nothing() -> None:
    pair = Pair().run(0.5)
    assert pair.states() == PROTECTED
    assert pair.found("alpha") == pair.found("beta") == {}


@pytest.mark.parametrize(
    ("code", "beta", "kernel", "values"),
    [
        ("ports", {"ports": ((80, 80), (7000, 7099))}, {}, "80 on alpha; 80, 7000-7099 on beta"),
        ("service", {"service": bytes((10, 77, 0, 101))}, {}, "10.77.0.100 on alpha; 10.77.0.101 on beta"),
        ("heartbeat", {"heartbeat_interval_ms": 500}, {}, "50 x 3 on alpha; 500 x 3 on beta"),
        ("divergence", {"divergence": "off"}, {}, "default on alpha; off on beta"),
        ("tap", {}, {"tap": "multicast 01:00:5e:4d:00:64"}, "clone on alpha; multicast 01:00:5e:4d:00:64 on beta"),
        ("witness", {}, {"witness": "192.0.2.13:7767"}, "none on alpha; 192.0.2.13:7767 on beta"),
        ("mtu-narrow", {}, {"mtu": "1300"}, "1500 on alpha; 1300 on beta"),
    ],
)
def test_what_cannot_work_is_refused_with_both_values(
    code: str, beta: dict[str, Any], kernel: dict[str, str], values: str
) -> None:
    pair = Pair(beta=beta, kernel={"beta": kernel}).run(5)
    assert pair.states() == HELD_BACK
    for name in ENDS:
        weight, what = pair.found(name)[f"differs-{code}"]
        assert weight is Weight.UNPROTECTED
        assert values in what
    assert values in pair.nodes["alpha"].members.reason
    assert values in pair.nodes["alpha"].status(pair.now).reason
    assert not [effect for _, effect in pair.done if isinstance(effect, Fence | CheckLink)], "nobody acts on that"


@pytest.mark.parametrize(
    ("code", "beta", "kernel"),
    [
        ("version", {}, {"version": "9.9"}),
        ("records", {}, {"records": "1-70"}),
        ("heartbeat-time", {"heartbeat_count": 5}, {}),
        ("divergence-policy", {"divergence": "strict"}, {}),
        ("on-failure", {"on_app_failure": "off"}, {}),
        ("state", {"service_state": "none"}, {}),
        ("alone", {"has_fence": False, "split_brain_accepted": True}, {}),
        ("health", {"health_checked": True}, {}),
        ("max-connections", {"max_connections": 10}, {}),
        ("prefer-primary", {"prefer_primary": True}, {}),
        ("conntrack", {}, {"conntrack": "liberal"}),
        ("mtu", {}, {"mtu": "1400"}),
        ("timestamps", {}, {"timestamps": "0"}),
        ("sack", {}, {"sack": "0"}),
        ("window-scaling", {}, {"window-scaling": "0"}),
    ],
)
def test_what_can_work_does_and_is_told(code: str, beta: dict[str, Any], kernel: dict[str, str]) -> None:
    pair = Pair(beta=beta, kernel={"beta": kernel}).run(1)
    assert pair.states() == PROTECTED
    for name in ENDS:
        assert list(pair.found(name)) == [f"differs-{code}"]
        assert pair.found(name)[f"differs-{code}"][0] < Weight.UNPROTECTED
    assert len(pair.nodes["alpha"].out.concerns.standing()) == 1, "what both say is shown once"


def test_explicit_congestion_notification_may_differ() -> None:
    pair = Pair(kernel={"beta": {"ecn": "0", "congestion-control": "bbr"}}).run(1)
    assert pair.states() == PROTECTED
    assert pair.found("alpha") == {}


def test_two_addresses_of_a_witness_are_told_and_no_more() -> None:
    both = {"alpha": {"witness": "192.0.2.13:7767"}, "beta": {"witness": "192.0.2.14:7767"}}
    pair = Pair(kernel=both).run(1)
    assert pair.found("beta")["differs-witnesses"][0] is Weight.DEGRADED


def test_each_rule_asks_for_facts_that_hosts_tell() -> None:
    told = dict(own_facts()) | KERNEL
    assert {name for rule in RULES for name in rule.facts} <= told.keys()
    assert len({rule.code for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.judge(Host("a", {}), Host("b", told)) is None, "what is not told is no difference"
        assert rule.judge(Host("a", told), Host("b", told)) is None


def test_whole_list_fits_into_one_record() -> None:
    many = tuple((port, port) for port in range(1, 5000, 2))
    facts = own_facts(ports=many) + pairs(KERNEL)
    assert len(encode_record(Facts(facts))) < 1300
    assert dict(facts)["ports"] == short(", ".join(str(low) for low, _ in many))
    other = dict(own_facts(ports=(*many[:-1], (6000, 6000))))
    assert other["ports"] != dict(facts)["ports"]


def test_a_difference_that_is_mended_is_over_and_protection_begins() -> None:
    pair = Pair(kernel={"beta": {"tap": "multicast"}}).run(2)
    assert pair.states() == HELD_BACK
    pair.nodes["beta"].handle(HostFacts(pairs(KERNEL)), pair.now)
    pair.run(0.5)
    assert pair.states() == PROTECTED
    assert pair.found("alpha") == pair.found("beta") == {}


def test_a_peer_that_tells_nothing_is_served_and_that_is_said() -> None:
    """An older version skips the record; here what `beta` tells gets lost."""
    pair = Pair()
    pair.nodes["alpha"].links.protector.told.take = lambda record, now: None  # type: ignore[method-assign]
    pair.run(WAIT_S)
    assert pair.states() == HELD_BACK
    pair.run(0.5)
    assert pair.states() == PROTECTED
    assert pair.found("alpha")["peer-tells-nothing"][0] is Weight.WARNING


def test_a_peer_with_rarer_heartbeats_is_not_taken_for_lost() -> None:
    pair = Pair(alpha={"heartbeat_interval_ms": 500}).run(20)
    assert pair.states() == HELD_BACK
    changes = [effect for _, effect in pair.done if isinstance(effect, Log) and effect.event == "state"]
    assert not [change for change in changes if change.fields["after"] in ("checking", "fencing")]


def test_what_the_peers_kernel_lacks_clients_are_not_granted() -> None:
    kernel = {"timestamps": "0", "sack": "0", "window-scaling": "0", "mtu": "1400"}
    common = Pair(kernel={"beta": kernel}).run(1).nodes["alpha"].agreement.common
    assert common.without == {OPT_TIMESTAMPS, OPT_SACK_PERMITTED, OPT_WSCALE}
    assert common.mss == 1360


@pytest.mark.parametrize(
    ("mtus", "size"),
    [
        ((1500, 1500), MAX_DATAGRAM),
        ((1500, 1400), 1372),
        ((1400, 9000), 1372),
        ((1500, None), 1352),
        ((1300, 1300), 1352),
    ],
)
def test_sync_datagrams_fit_into_both_mtus(mtus: tuple[int | None, ...], size: int) -> None:
    assert datagram_bytes(*mtus) == size


def test_sync_datagrams_are_cut_to_the_peers_mtu() -> None:
    pair = Pair(kernel={"beta": {"mtu": "1400"}}).run(1)
    assert pair.nodes["alpha"].links.protector.session.datagram_bytes == 1372
    assert pair.nodes["beta"].links.protector.session.datagram_bytes == 1372

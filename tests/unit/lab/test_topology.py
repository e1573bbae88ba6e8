"""A topology as a value: what it answers, what it refuses, and that it survives the disk."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from nfq_failover.lab.cables import ruleset
from nfq_failover.lab.nodes import scramble_plan
from nfq_failover.lab.state import Cut, LabState, Options
from nfq_failover.lab.topology import SWITCH, TWO_HOSTS, Interface, Node, Topology
from tests.support.topologies import ROUTED, THREE_HOSTS


def test_the_labs_own_topology() -> None:
    assert (TWO_HOSTS.client, TWO_HOSTS.hosts, TWO_HOSTS.service) == ("client", ("a", "b"), "10.77.0.100")
    assert {name: (TWO_HOSTS.address(name), TWO_HOSTS.hardware(name)) for name in TWO_HOSTS.names} == {
        "client": ("10.77.0.1", "02:77:00:00:00:01"),
        "a": ("10.77.0.2", "02:77:00:00:00:02"),
        "b": ("10.77.0.3", "02:77:00:00:00:03"),
    }
    assert TWO_HOSTS.address(SWITCH) == TWO_HOSTS.address(TWO_HOSTS.fence_agent) == "10.77.0.254"
    assert TWO_HOSTS.multicast_hardware == "01:00:5e:4d:00:64"
    assert TWO_HOSTS.namespaces("x") == ["x-client", "x-a", "x-b", "x-switch"]


def test_who_the_others_are() -> None:
    assert (TWO_HOSTS.other("a"), TWO_HOSTS.other("b")) == ("b", "a")
    assert THREE_HOSTS.others("b") == ("a", "c")
    with pytest.raises(ValueError, match="unpack"):
        THREE_HOSTS.other("a")


def test_clients_enter_by_their_own_cable_or_by_a_routers() -> None:
    assert TWO_HOSTS.entrance == ("p-client", TWO_HOSTS.node("client").interfaces[0])
    assert ROUTED.entrance == ("p-router-1", ROUTED.node("router").interfaces[1])
    apart = replace(ROUTED, nodes=tuple(replace(node, forwards=False) for node in ROUTED.nodes))
    with pytest.raises(ValueError, match="no way"):
        _ = apart.entrance


@pytest.mark.parametrize("topology", [TWO_HOSTS, THREE_HOSTS, ROUTED])
def test_it_survives_the_disk(topology: Topology) -> None:
    assert Topology.from_json(json.loads(json.dumps(asdict(topology)))) == topology


A_HOST = Node("a", (Interface("br0", "10.77.0.9", "02:77:00:00:00:09"),))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"client": "c"}, "no node c"),
        ({"hosts": ("a", "z")}, "no node z"),
        ({"hosts": ()}, "needs a host"),
        ({"witness": "w"}, "no node w"),
        ({"segments": ()}, "no segment br0"),
        ({"service": "10.77.0.254"}, "address 10.77.0.254 is there twice"),
        ({"nodes": (*TWO_HOSTS.nodes, A_HOST)}, "node a is there twice"),
        ({"nodes": (*TWO_HOSTS.nodes, replace(A_HOST, name=SWITCH))}, "can't name a node"),
        ({"nodes": (*TWO_HOSTS.nodes, replace(A_HOST, name="a-b"))}, "can't name a node"),
        ({"nodes": (*TWO_HOSTS.nodes, Node("c", ()))}, "each node an interface"),
    ],
)
def test_a_topology_that_contradicts_itself_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(TWO_HOSTS, **change)  # type: ignore[arg-type]


def test_cuts_and_losses_follow_the_topology() -> None:
    text = ruleset(LabState(Options(tap_loss=10), 1, ROUTED, cuts=[Cut("c", "client"), Cut("router")]))
    assert "passing iifname p-c oifname p-router-1 drop" in text
    assert "leaving oifname p-c ip saddr 10.78.0.1 drop" in text
    assert "arriving iifname p-router drop" in text
    assert "arriving iifname p-router-1 drop" in text
    for host in ROUTED.hosts:
        assert f"leaving oifname p-{host} ether saddr != 02:77:00:00:00:09 ip daddr 10.77.0.100" in text


def test_no_two_of_many_hosts_wrap_alike() -> None:
    wrapped = 0
    for seed in range(50):
        plans = [scramble_plan(THREE_HOSTS, seed, host, 1) for host in THREE_HOSTS.hosts]
        for key in ("wrap-after-bytes", "wrap-after-ms"):
            values = [plan[key] for plan in plans if key in plan]
            wrapped += len(values)
            assert len(set(values)) == len(values)
    assert wrapped > 60

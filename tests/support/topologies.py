"""Topologies beside the lab's own: three hosts; and three hosts behind a router, one with a tunnel to the client."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nfq_failover.lab.topology import TWO_HOSTS, Interface, Node, Route, Segment, Topology, Tunnel, TunnelEnd

THREE_HOSTS: Final = replace(
    TWO_HOSTS,
    nodes=(*TWO_HOSTS.nodes, Node("c", (Interface("br0", "10.77.0.4", "02:77:00:00:00:04"),))),
    hosts=(*TWO_HOSTS.hosts, "c"),
)

_HOME: Final = (Route("10.78.0.0/24", "10.77.0.9"),)
ROUTED: Final = Topology(
    segments=(Segment("br0", "02:77:00:00:00:fe", "10.77.0.254"), Segment("br1", "02:78:00:00:00:fe")),
    nodes=(
        Node("client", (Interface("br1", "10.78.0.1", "02:78:00:00:00:01"),), (Route("default", "10.78.0.9"),)),
        Node(
            "router",
            (
                Interface("br1", "10.78.0.9", "02:78:00:00:00:09"),
                Interface("br0", "10.77.0.9", "02:77:00:00:00:09", "eth1"),
            ),
            forwards=True,
        ),
        *(
            Node(name, (Interface("br0", f"10.77.0.{number}", f"02:77:00:00:00:0{number}"),), _HOME)
            for number, name in enumerate("abc", 2)
        ),
    ),
    client="client",
    hosts=("a", "b", "c"),
    service="10.77.0.100",
    tunnels=(
        Tunnel(
            "tunnel",
            77,
            (
                TunnelEnd("client", "10.79.0.1", "02:79:00:00:00:01"),
                TunnelEnd("b", "10.79.0.2", "02:79:00:00:00:02"),
            ),
        ),
    ),
)

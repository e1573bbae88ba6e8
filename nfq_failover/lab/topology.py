"""A lab's topology as a value: segments, nodes, routers, tunnels, addresses, and who runs what.

Nothing here acts: wires.py builds a topology, and all else in the lab asks it for names and addresses. `TWO_HOSTS` is
the lab of `nfq-failover lab up`:

    N-client eth0 --- p-client \\
    N-a      eth0 --- p-a       br0 10.77.0.254 in N-switch (the fence agent listens there)
    N-b      eth0 --- p-b      /

Every interface has a fixed hardware address, so a host that boots again is the same host to its neighbours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from nfq_failover.errors import CommandError

SWITCH: Final = "switch"  # the node that holds all segments; every cable ends there

# An interface has 15 characters at most, and a port's name is made of a node's: `p-NODE-1`.
_NODE: Final = re.compile(r"[a-z][a-z0-9]{0,9}")
_LAB: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,9}")


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment is a bridge of this name in the switch. `address`: the switch's own address on it."""

    name: str
    hardware: str
    address: str | None = None
    prefix_bits: int = 24


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of a node, with its cable to the switch. `cpus`: who receives at the node, and at its port."""

    segment: str
    address: str
    hardware: str
    name: str = "eth0"
    cpus: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Route:
    """A route of a node. `to`: a network like `10.77.0.0/24`, or `default`."""

    to: str
    via: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node is a namespace. `forwards`: it is a router; `receive_buffers`: its `net.ipv4.tcp_rmem`."""

    name: str
    interfaces: tuple[Interface, ...]
    routes: tuple[Route, ...] = ()
    forwards: bool = False
    receive_buffers: str | None = None

    @property
    def ports(self) -> tuple[str, ...]:
        """The ports of its cables at the switch, in the order of its interfaces."""
        return tuple(port(self.name, number) for number in range(len(self.interfaces)))


@dataclass(frozen=True, slots=True)
class TunnelEnd:
    """An end of a tunnel: a node, and its addresses inside of the tunnel."""

    node: str
    address: str
    hardware: str


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A VXLAN (RFC 7348) between two nodes, over their first interfaces. `name`: of the interface at both ends."""

    name: str
    number: int
    ends: tuple[TunnelEnd, TunnelEnd]
    prefix_bits: int = 30


@dataclass(frozen=True)
class Topology:
    """A topology is all that a lab is made of, and who runs what in it.

    `hosts` run the service and its daemons; the first one starts as the primary, and in a plain lab it alone has the
    address `service`. `client` is where the clients run and are captured. `fence_agent` and `witness` are the nodes
    where these programs run. A topology that contradicts itself is a ValueError.
    """

    segments: tuple[Segment, ...]
    nodes: tuple[Node, ...]
    client: str
    hosts: tuple[str, ...]
    service: str
    tunnels: tuple[Tunnel, ...] = ()
    fence_agent: str = SWITCH
    witness: str = SWITCH

    def __post_init__(self) -> None:
        names = self.names
        for name in names:
            if not _NODE.fullmatch(name) or name == SWITCH:
                raise ValueError(f"{name!r} can't name a node")
        interfaces = [interface for node in self.nodes for interface in node.interfaces]
        tunnelled = [end for tunnel in self.tunnels for end in tunnel.ends]
        ends: list[Interface | Segment | TunnelEnd] = [*interfaces, *self.segments, *tunnelled]
        _unique("node", names)
        _unique("segment", [segment.name for segment in self.segments])
        _unique("address", [*(end.address for end in ends), self.service])
        _unique("hardware address", [end.hardware for end in ends])
        _known("segment", [interface.segment for interface in interfaces], [one.name for one in self.segments])
        _known("node", [self.client, *self.hosts, *(end.node for end in tunnelled)], names)
        _known("node", [self.fence_agent, self.witness], [*names, SWITCH])
        if not self.hosts or not all(node.interfaces for node in self.nodes):
            raise ValueError("a topology needs a host, and each node an interface")

    @property
    def names(self) -> tuple[str, ...]:
        """All nodes but the switch, in the order in which they are built."""
        return tuple(node.name for node in self.nodes)

    def node(self, name: str) -> Node:
        """The node of that name. KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def others(self, host: str) -> tuple[str, ...]:
        """The hosts that are not `host`."""
        return tuple(one for one in self.hosts if one != host)

    def other(self, host: str) -> str:
        """The host that is not `host`, where there are two. ValueError where there are not."""
        (one,) = self.others(host)
        return one

    def address(self, name: str) -> str:
        """The address by which others reach the node: its first one, or the switch's. KeyError if it has none."""
        if name != SWITCH:
            return self.node(name).interfaces[0].address
        for segment in self.segments:
            if segment.address is not None:
                return segment.address
        raise KeyError(name)

    def hardware(self, name: str) -> str:
        """The hardware address of the node's first interface."""
        return self.node(name).interfaces[0].hardware

    def segment(self, name: str) -> Segment:
        """The segment of that name. KeyError if there is none."""
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise KeyError(name)

    @property
    def service_segment(self) -> str:
        """The segment that the hosts serve on: where the first host's first cable ends."""
        return self.node(self.hosts[0]).interfaces[0].segment

    @property
    def entrance(self) -> tuple[str, Interface]:
        """The port and the interface by which clients enter the hosts' segment: the client's own, or a router's.

        ValueError if there is no way in.
        """
        client = self.node(self.client)
        for node in (client, *(node for node in self.nodes if node.forwards)):
            for cable, interface in zip(node.ports, node.interfaces, strict=True):
                if interface.segment == self.service_segment:
                    return cable, interface
        raise ValueError("no way leads from the client to the hosts")

    @property
    def multicast_hardware(self) -> str:
        """The service's hardware address with the multicast tap."""
        return multicast_hardware(self.service)

    def namespaces(self, lab: str) -> list[str]:
        """All namespaces that the lab of that name may have."""
        return [namespace(lab, name) for name in (*self.names, SWITCH)]

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Topology:
        """The topology of which `dataclasses.asdict` has made `raw`, by way of JSON."""
        return cls(
            segments=tuple(Segment(**row) for row in raw["segments"]),
            nodes=tuple(_node(row) for row in raw["nodes"]),
            client=raw["client"],
            hosts=tuple(raw["hosts"]),
            service=raw["service"],
            tunnels=tuple(_tunnel(row) for row in raw["tunnels"]),
            fence_agent=raw["fence_agent"],
            witness=raw["witness"],
        )


def check_name(name: str) -> str:
    """The lab's name; CommandError if interface and namespace names can't be made of it."""
    if not _LAB.fullmatch(name):
        raise CommandError(
            f"{name!r} can't name a lab. Use 1 to 10 letters, digits, '-' or '_', the first a letter or digit."
        )
    return name


def namespace(lab: str, node: str) -> str:
    """The namespace of a node of lab `lab`."""
    return f"{lab}-{node}"


def port(node: str, number: int = 0) -> str:
    """The port at the switch where the cable of the node's interface `number` ends."""
    return f"p-{node}-{number}" if number else f"p-{node}"


def multicast_hardware(address: str) -> str:
    """The IPv4 multicast mapping (RFC 1112 section 6.4) of the address's low 23 bits."""
    _, b, c, d = (int(part) for part in address.split("."))
    return f"01:00:5e:{b & 127:02x}:{c:02x}:{d:02x}"


def _unique(what: str, values: Iterable[str | None]) -> None:
    twice = [value for value, count in Counter(value for value in values if value is not None).items() if count > 1]
    if twice:
        raise ValueError(f"the {what} {twice[0]} is there twice")


def _known(what: str, values: Iterable[str], known: Iterable[str]) -> None:
    strangers = set(values) - set(known)
    if strangers:
        raise ValueError(f"there is no {what} {min(strangers)}")


def _node(raw: dict[str, Any]) -> Node:
    interfaces = tuple(Interface(**{**row, "cpus": tuple(row["cpus"])}) for row in raw["interfaces"])
    return Node(**{**raw, "interfaces": interfaces, "routes": tuple(Route(**row) for row in raw["routes"])})


def _tunnel(raw: dict[str, Any]) -> Tunnel:
    first, second = raw["ends"]
    return Tunnel(**{**raw, "ends": (TunnelEnd(**first), TunnelEnd(**second))})


def _on_br0(number: int, *cpus: int) -> tuple[Interface, ...]:
    return (Interface("br0", f"10.77.0.{number}", f"02:77:00:00:00:{number:02x}", cpus=(cpus[0], cpus[1])),)


# Different receive buffers give different window scales: 7 on a, 9 on b (tcp_select_initial_window).
TWO_HOSTS: Final = Topology(
    segments=(Segment("br0", "02:77:00:00:00:fe", "10.77.0.254"),),
    nodes=(
        Node("client", _on_br0(1, 1, 1)),
        Node("a", _on_br0(2, 0, 0), receive_buffers="4096 131072 6291456"),
        Node("b", _on_br0(3, 1, 0), receive_buffers="4096 131072 16777216"),
    ),
    client="client",
    hosts=("a", "b"),
    service="10.77.0.100",
)

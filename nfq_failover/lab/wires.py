"""A topology's wires: a namespace for each node, a switch with a bridge for each segment, and the client's link.

The rate is a token bucket (tc-tbf) on both ends of the client's link. The bucket passes a whole 64 KiB super-segment,
or it would cut each to pieces; the queue before it holds 40 ms, the buffer of a well-kept router: deep enough for one
window at full rate, not so deep that the silence of a crash hides behind data that still sits in the queue.

A veth delivers on whichever CPU its sender runs, so two CPUs reorder a flow (1 % of a fast download's segments are
then retransmitted for nothing). Receive packet steering keeps each interface on one CPU. Steering by flow would not do:
the kernel's hash of a packet that our daemon injects differs from that of its connection's other packets.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nfq_failover.errors import CommandError
from nfq_failover.lab import netns
from nfq_failover.lab.topology import SWITCH, Node, Topology, namespace, port

DEFAULT_RATE: Final = "1gbit"
UNLIMITED: Final = "unlimited"

_RULES_RECORDS: Final = Path("/run/nfq-failover")
_QUEUE_S: Final = 0.040
_SMALLEST_QUEUE: Final = 262_144  # four super-segments
_BUCKET: Final = 131_072
_SLOW_BUCKET: Final = 16_384
_SLOW: Final = 50_000_000  # below this rate 128 KiB would be more than 20 ms of traffic in one burst
# tc(8), "RATES": bits per second, or with "bps" bytes per second; k, m, g, t are powers of 1000, with "i" of 1024.
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)(?:([kmgt])(i)?)?(bit|bps)?", re.IGNORECASE)
_VXLAN_PORT: Final = 4789  # RFC 7348 section 8


@dataclass(frozen=True)
class Wires:
    """What the wires and the nodes' kernels are like."""

    rate: str = DEFAULT_RATE  # of the client's link, tc syntax, each direction, or "unlimited"
    cut_segments: bool = False  # nothing longer than an MTU crosses a wire
    multicast: bool = False  # who sends to the service holds a static ARP entry with a multicast hardware address
    plain: bool = False  # no daemon: the first host simply has the service address
    odd_host: str | None = None  # the host with other timestamps and SYN cookies


def bits_per_second(rate: str) -> float:
    """A rate in tc's syntax as bits per second; CommandError if tc would not take it."""
    match = _RATE.fullmatch(rate)
    if not match:
        raise CommandError(f"{rate!r} is not a rate. Write it as tc does: 200mbit, 1gbit, 2500kbit; or {UNLIMITED}.")
    number, prefix, binary, unit = match.groups()
    step = 1024 if binary else 1000
    value = float(number) * float(step ** (" kmgt".index(prefix.lower()) if prefix else 0))
    value *= 8 if unit and unit.lower() == "bps" else 1
    if not 8_000 <= value <= 100e9:
        raise CommandError(f"A rate of {rate} is out of range. Use 8kbit to 100gbit, or {UNLIMITED}.")
    return value


def build_all(lab: str, topology: Topology, wires: Wires) -> None:
    """Build all nodes and the switch. The namespaces must not exist."""
    _add_namespaces(topology.namespaces(lab))
    switch = namespace(lab, SWITCH)
    _quiet(switch)
    lines = ["link set lo up"]
    for segment in topology.segments:
        kind = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        lines.append(f"link add {segment.name} address {segment.hardware} {kind}")
        if segment.address is not None:
            lines.append(f"address add {segment.address}/{segment.prefix_bits} dev {segment.name}")
        lines.append(f"link set {segment.name} up")
    _batch(switch, *lines)
    for node in topology.nodes:
        _build_links(lab, topology, node, wires)


def build_node(lab: str, topology: Topology, name: str, wires: Wires) -> None:
    """Build one node, cabled to the switch that is there."""
    _add_namespaces([namespace(lab, name)])
    _build_links(lab, topology, topology.node(name), wires)


def clear_node(lab: str, node: Node) -> None:
    """Take the node's cables and namespace away. No error if they are not there."""
    switch = namespace(lab, SWITCH)
    if netns.exists(switch):
        script = "".join(f"link set {cable} down\nlink delete {cable}\n" for cable in node.ports)
        netns.tool(["ip", "-force", "-batch", "-"], script, switch, check=False)
    clear_namespace(namespace(lab, node.name))


def clear_namespace(target: str) -> None:
    """Delete a namespace, with what its host had in /run. No error if it is not there."""
    if netns.exists(target):
        # The rules script keeps its record by the number of the namespace, and the kernel gives numbers out again.
        record = _RULES_RECORDS / f"netns-{netns.number(target)}"
        netns.tool(["ip", "netns", "delete", target])
        shutil.rmtree(record, ignore_errors=True)


def _add_namespaces(names: list[str]) -> None:
    netns.tool(["ip", "-batch", "-"], "".join(f"netns add {name}\n" for name in names))


def _build_links(lab: str, topology: Topology, node: Node, wires: Wires) -> None:
    inside, switch = namespace(lab, node.name), namespace(lab, SWITCH)
    _quiet(inside)
    for cable, interface in zip(node.ports, node.interfaces, strict=True):
        peer = f"name {interface.name} address {interface.hardware} netns {inside}"
        _batch(
            switch,
            f"link add {cable} type veth peer {peer}",
            f"link set {cable} master {interface.segment} up",
        )
    _batch(inside, "link set lo up", *_addresses(topology, node, wires))
    if wires.cut_segments:
        with netns.control_socket(inside) as control:
            for interface in node.interfaces:
                netns.cut_segments_before_the_wire(control, interface.name)
    _tune(inside, topology, node, wires)
    for cable, interface in zip(node.ports, node.interfaces, strict=True):
        _steer(inside, interface.name, interface.cpus[0])
        _steer(switch, cable, interface.cpus[1])
    if node.name == topology.client and wires.rate != UNLIMITED:
        _shape(switch, port(node.name), wires.rate)
        _shape(inside, node.interfaces[0].name, wires.rate)


def _addresses(topology: Topology, node: Node, wires: Wires) -> list[str]:
    """What `ip -batch` does inside of the node: addresses, tunnels, routes, neighbours."""
    lines, first = [], node.interfaces[0]
    for interface in node.interfaces:
        prefix_bits = topology.segment(interface.segment).prefix_bits
        lines += [
            f"address add {interface.address}/{prefix_bits} dev {interface.name}",
            f"link set {interface.name} up",
        ]
    if wires.plain and node.name == topology.hosts[0]:
        prefix_bits = topology.segment(first.segment).prefix_bits
        lines.append(f"address add {topology.service}/{prefix_bits} dev {first.name}")
    for tunnel in topology.tunnels:
        for end, far in (tunnel.ends, tunnel.ends[::-1]):
            if end.node == node.name:
                over = f"local {first.address} remote {topology.address(far.node)} dev {first.name}"
                kind = f"vxlan id {tunnel.number} dstport {_VXLAN_PORT} {over}"
                lines.append(f"link add {tunnel.name} address {end.hardware} type {kind}")
                lines.append(f"address add {end.address}/{tunnel.prefix_bits} dev {tunnel.name}")
                lines.append(f"link set {tunnel.name} up")
    lines += [f"route add {route.to} via {route.via}" for route in node.routes]
    if wires.multicast and not wires.plain and node.name not in topology.hosts:
        lines += [
            f"neighbour replace {topology.service} lladdr {topology.multicast_hardware} dev {one.name} nud permanent"
            for one in node.interfaces
            if one.segment == topology.service_segment
        ]
    return lines


def _quiet(target: str) -> None:
    # IPv6 would add router solicitations and duplicate address detection to every capture. A bridge must not send
    # what it forwards through iptables.
    off = {f"net.ipv6.conf.{which}.disable_ipv6": "1" for which in ("all", "default")}
    netns.write_sysctls(target, {**off, "net.bridge.bridge-nf-call-iptables": "0", "net.ipv4.ip_forward": "0"})


def _tune(inside: str, topology: Topology, node: Node, wires: Wires) -> None:
    values = {}
    if node.receive_buffers is not None:
        values["net.ipv4.tcp_rmem"] = node.receive_buffers
    if node.forwards:
        values["net.ipv4.ip_forward"] = "1"
    if node.name == wires.odd_host:
        # Timestamps without the random offset per connection, and every SYN answered by a cookie: other numbers, and
        # a SYN-ACK whose options the kernel forgets.
        values |= {"net.ipv4.tcp_timestamps": "2", "net.ipv4.tcp_syncookies": "2"}
    if wires.plain and node.name in topology.hosts[1:]:
        # An application may bind the service address that only the first host has.
        values["net.ipv4.ip_nonlocal_bind"] = "1"
    netns.write_sysctls(inside, values)


def _steer(target: str, interface: str, cpu: int) -> None:
    # Only sysfs has this, and it shows the interfaces of the namespace that mounted it: `ip netns exec` does that.
    mask = 1 << cpu % (os.cpu_count() or 1)
    setting = f"echo {mask:x} >/sys/class/net/{interface}/queues/rx-0/rps_cpus"
    netns.tool(["ip", "netns", "exec", target, "sh", "-c", setting])


def _shape(target: str, interface: str, rate: str) -> None:
    bits = bits_per_second(rate)
    bucket = _BUCKET if bits >= _SLOW else _SLOW_BUCKET
    queue = max(_SMALLEST_QUEUE, int(bits / 8 * _QUEUE_S))
    words = f"qdisc replace dev {interface} root tbf rate {rate} burst {bucket} limit {queue}"
    netns.tool(["tc", *words.split()], namespace=target)


def _batch(target: str, *lines: str) -> None:
    netns.tool(["ip", "-batch", "-"], "".join(f"{line}\n" for line in lines), target)

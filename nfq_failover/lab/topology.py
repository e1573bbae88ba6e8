"""The lab's wires: four namespaces, a switch, and the client's link with its rate.

    N-client eth0 --- p-client \
    N-a      eth0 --- p-a       br0 10.77.0.254 in N-switch (the fence agent listens there)
    N-b      eth0 --- p-b      /

Every interface has a fixed hardware address, so a host that boots again is the same host to its neighbours.

The rate is a token bucket (tc-tbf) on both ends of the client's link. The bucket passes a whole 64 KiB super-segment,
or it would cut each to pieces; the queue before it holds 40 ms, the buffer of a well-kept router: deep enough for one
window at full rate, not so deep that the silence of a crash hides behind data that still sits in the queue.

A veth delivers on whichever CPU its sender runs, so two CPUs reorder a flow (1 % of a fast download's segments are
then retransmitted for nothing). Receive packet steering keeps each interface on one CPU. Steering by flow would not do:
the kernel's hash of a packet that our daemon injects is another than that of its connection's other packets.
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

CLIENT: Final = "client"
SWITCH: Final = "switch"
SERVERS: Final = ("a", "b")
NODES: Final = (CLIENT, *SERVERS)

SERVICE_ADDRESS: Final = "10.77.0.100"
AGENT_ADDRESS: Final = "10.77.0.254"
AGENT_PORT: Final = 7767
ADDRESSES: Final = {"client": "10.77.0.1", "a": "10.77.0.2", "b": "10.77.0.3"}
HARDWARE: Final = {"client": "02:77:00:00:00:01", "a": "02:77:00:00:00:02", "b": "02:77:00:00:00:03"}
SWITCH_HARDWARE: Final = "02:77:00:00:00:fe"
# The IPv4 multicast mapping (RFC 1112 section 6.4) of the service address's low 23 bits.
MULTICAST_HARDWARE: Final = "01:00:5e:4d:00:64"

DEFAULT_RATE: Final = "1gbit"
UNLIMITED: Final = "unlimited"

# Different receive buffers give different window scales: 7 on a, 9 on b (tcp_select_initial_window).
_RECEIVE_BUFFERS: Final = {"a": "4096 131072 6291456", "b": "4096 131072 16777216"}
_RULES_RECORDS: Final = Path("/run/nfq-failover")
_QUEUE_S: Final = 0.040
_SMALLEST_QUEUE: Final = 262_144  # four super-segments
_BUCKET: Final = 131_072
_SLOW_BUCKET: Final = 16_384
_SLOW: Final = 50_000_000  # below this rate 128 KiB would be more than 20 ms of traffic in one burst
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,9}")
# tc(8), "RATES": bits per second, or with "bps" bytes per second; k, m, g, t are powers of 1000, with "i" of 1024.
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)(?:([kmgt])(i)?)?(bit|bps)?", re.IGNORECASE)


@dataclass(frozen=True)
class Wires:
    """What the client's link is like."""

    rate: str = DEFAULT_RATE  # tc syntax, each direction, or "unlimited"
    cut_segments: bool = False  # nothing longer than an MTU crosses a wire
    multicast: bool = False  # the client holds a static ARP entry with a multicast hardware address
    plain: bool = False  # no daemon: `a` simply has the service address
    odd_host: str | None = None  # the host with other timestamps and SYN cookies


def check_name(name: str) -> str:
    """The lab's name; CommandError if interface and namespace names can't be made of it."""
    if not _NAME.fullmatch(name):
        raise CommandError(
            f"{name!r} can't name a lab. Use 1 to 10 letters, digits, '-' or '_', the first a letter or digit."
        )
    return name


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


def namespace(name: str, node: str) -> str:
    """The namespace of a node of lab `name`."""
    return f"{name}-{node}"


def port(node: str) -> str:
    """The node's port at the switch."""
    return f"p-{node}"


def namespaces(name: str) -> list[str]:
    """All namespaces that lab `name` may have."""
    return [namespace(name, node) for node in (*NODES, SWITCH)]


def build_all(name: str, wires: Wires) -> None:
    """All nodes and the switch. The namespaces must not exist."""
    _add_namespaces([namespace(name, node) for node in (*NODES, SWITCH)])
    switch = namespace(name, SWITCH)
    _quiet(switch)
    _batch(
        switch,
        "link set lo up",
        f"link add br0 address {SWITCH_HARDWARE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        f"address add {AGENT_ADDRESS}/24 dev br0",
        "link set br0 up",
    )
    for node in NODES:
        _build_links(name, node, wires)


def build_node(name: str, node: str, wires: Wires) -> None:
    """One server, cabled to the switch that is there."""
    _add_namespaces([namespace(name, node)])
    _build_links(name, node, wires)


def clear_node(name: str, node: str) -> None:
    """Take the node's cable and namespace away. No error if they are not there."""
    switch = namespace(name, SWITCH)
    if netns.exists(switch):
        netns.tool(
            ["ip", "-force", "-batch", "-"],
            f"link set {port(node)} down\nlink delete {port(node)}\n",
            switch,
            check=False,
        )
    clear_namespace(namespace(name, node))


def clear_namespace(target: str) -> None:
    """Delete a namespace, with what its host had in /run. No error if it is not there."""
    if netns.exists(target):
        # The rules script keeps its record by the number of the namespace, and the kernel gives numbers out again.
        record = _RULES_RECORDS / f"netns-{netns.number(target)}"
        netns.tool(["ip", "netns", "delete", target])
        shutil.rmtree(record, ignore_errors=True)


def _add_namespaces(names: list[str]) -> None:
    netns.tool(["ip", "-batch", "-"], "".join(f"netns add {name}\n" for name in names))


def _build_links(name: str, node: str, wires: Wires) -> None:
    inside, switch = namespace(name, node), namespace(name, SWITCH)
    _quiet(inside)
    _batch(
        switch,
        f"link add {port(node)} type veth peer name eth0 address {HARDWARE[node]} netns {inside}",
        f"link set {port(node)} master br0 up",
    )
    lines = ["link set lo up", f"address add {ADDRESSES[node]}/24 dev eth0", "link set eth0 up"]
    if node == "a" and wires.plain:
        lines.append(f"address add {SERVICE_ADDRESS}/24 dev eth0")
    if node == CLIENT and wires.multicast and not wires.plain:
        lines.append(f"neighbour replace {SERVICE_ADDRESS} lladdr {MULTICAST_HARDWARE} dev eth0 nud permanent")
    _batch(inside, *lines)
    if wires.cut_segments:
        with netns.control_socket(inside) as control:
            netns.cut_segments_before_the_wire(control, "eth0")
    _tune(inside, node, wires)
    _steer(inside, "eth0", 0 if node == "a" else 1)
    _steer(switch, port(node), 1 if node == CLIENT else 0)
    if node == CLIENT and wires.rate != UNLIMITED:
        _shape(switch, port(node), wires.rate)
        _shape(inside, "eth0", wires.rate)


def _quiet(target: str) -> None:
    # IPv6 would add router solicitations and duplicate address detection to every capture. A bridge must not send
    # what it forwards through iptables.
    off = {f"net.ipv6.conf.{which}.disable_ipv6": "1" for which in ("all", "default")}
    netns.write_sysctls(target, {**off, "net.bridge.bridge-nf-call-iptables": "0", "net.ipv4.ip_forward": "0"})


def _tune(inside: str, node: str, wires: Wires) -> None:
    values = {}
    if node in SERVERS:
        values["net.ipv4.tcp_rmem"] = _RECEIVE_BUFFERS[node]
    if node == wires.odd_host:
        # Timestamps without the random offset per connection, and every SYN answered by a cookie: other numbers, and
        # a SYN-ACK whose options the kernel forgets.
        values |= {"net.ipv4.tcp_timestamps": "2", "net.ipv4.tcp_syncookies": "2"}
    if wires.plain and node == "b":
        values["net.ipv4.ip_nonlocal_bind"] = "1"  # an application may bind the service address that only `a` has
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
    netns.tool(
        [
            "tc",
            "qdisc",
            "replace",
            "dev",
            interface,
            "root",
            "tbf",
            "rate",
            rate,
            "burst",
            f"{bucket}",
            "limit",
            f"{queue}",
        ],
        namespace=target,
    )


def _batch(target: str, *lines: str) -> None:
    netns.tool(["ip", "-batch", "-"], "".join(f"{line}\n" for line in lines), target)

"""What can be seen of a host by looking at it alone, whether its daemon runs or not. Nothing is sent or changed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from nfq_failover.config import Config, advice
from nfq_failover.core import presence
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.operator.doctor.report import Subject
from nfq_failover.shell.fencing import metadata
from nfq_failover.shell.fencing.check import fault
from nfq_failover.shell.host.link import link_up
from nfq_failover.shell.host.listeners import look
from nfq_failover.shell.host.rtnetlink import Questions
from nfq_failover.shell.privileged.account import DEFAULT_USER, account
from nfq_failover.shell.selfcheck.disk import full
from nfq_failover.shell.selfcheck.facts import mtu

_CONF: Final = Path("/proc/sys/net/ipv4/conf")
_STRICT: Final = 1  # of rp_filter: RFC 3704 section 2.2
_ARP_TOO_STRICT: Final = 3  # of arp_ignore for all interfaces: none can have less
_ELSEWHERE: Final = "198.51.100.1"  # RFC 5737: where packets for the rest of the world would go; nothing is sent
_PORTS_SHOWN: Final = 64


def subjects(config: Config) -> list[Subject]:
    """Everything of this module, in the order in which it is mended."""
    peer, *_ = config.settings.peers
    return [
        Subject("advice", "the file is allowed, but probably not what was meant", lambda: _advice(config)),
        Subject("user", "a daemon that was broken into must not be root, nor anybody else", lambda: _user(config)),
        Subject(
            "interface", "clients and the peer reach this host by it", lambda: _interface(config.interface, config.tap)
        ),
        Subject(
            *("filters", "the kernel must take what clients send, and answer ARP only where it is told to"),
            lambda: _filters(config.interface),
        ),
        Subject(
            *("application", "a replica that does not run has no state to go on with"),
            lambda: _application(config),
        ),
        Subject(
            *("disk", "a takeover stores its epoch before this host is heard"),
            lambda: _disk(config.state_dir),
        ),
        Subject("fence", f"without it this host can't be sure that {peer.name} is off", lambda: _fence(config)),
    ]


def _advice(config: Config) -> tuple[str, list[Concern]]:
    said = [*advice(config), *metadata.advice(config.fence)]
    cure = "see 'nfq-failover check-config' and docs/operate/configuration.md"
    return "nothing to say", [Concern("advice", Weight.WARNING, sentence, cure) for sentence in said]


def _user(config: Config) -> tuple[str, list[Concern]]:
    who = account(config)
    if who is None:
        return "root, as [privileges] says", []
    if not who.fallback:
        return f"{who.name}, uid {who.uid}", []
    what = f"there is no user '{DEFAULT_USER}', so the daemon will be '{who.name}', like other programs"
    cure = f"useradd --system --no-create-home --shell /usr/sbin/nologin {DEFAULT_USER}"
    return "", [Concern("no-user", Weight.WARNING, what, cure)]


def _interface(name: str, tap: str) -> tuple[str, list[Concern]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        up, why = link_up(name, asking)
    if not up:
        cure = f"ip link set {name} up; look at the cable and the switch"
        if "No such device" in why:
            names = ", ".join(other for _, other in socket.if_nameindex() if other != "lo")
            why, cure = f"there is no interface '{name}'", f"set 'interface' to one of: {names}"
        return "", [Concern("link-down", Weight.UNPROTECTED, why, cure)]
    return f"{name} is up, MTU {mtu(name)}, tap {tap}", []


def _filters(interface: str) -> tuple[str, list[Concern]]:
    found = list(_arp_settings())
    value = max(_read("all", "rp_filter"), _read(interface, "rp_filter"))
    if value == _STRICT and (other := _leaves_elsewhere(interface)):
        what = f"rp_filter is strict on {interface}, and what goes to other networks leaves by {other}: the kernel "
        what += "drops what clients from there send"
        cure = f"sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{interface}.rp_filter=2, or let their route "
        cure += f"leave by {interface}"
        found.append(Concern("reverse-path", Weight.WARNING, what, cure))
    return f"rp_filter {value}, arp_ignore {_read('all', 'arp_ignore')}", found


def _arp_settings() -> Iterator[Concern]:
    value = _read("all", "arp_ignore")
    if value >= _ARP_TOO_STRICT:
        what = (
            f"net.ipv4.conf.all.arp_ignore is {value}: whoever serves could not be answered for; the daemon refuses it"
        )
        yield Concern("arp-settings", Weight.UNPROTECTED, what, "sysctl -w net.ipv4.conf.all.arp_ignore=1")


def _read(interface: str, name: str) -> int:
    try:
        return int((_CONF / interface / name).read_text())
    except (OSError, ValueError):
        return 0


def _leaves_elsewhere(interface: str) -> str:
    """The interface by which packets leave for other networks, '' if it is `interface`, or there is none."""
    asking = Questions()
    try:
        name = socket.if_indextoname(asking.route(ip_address(_ELSEWHERE).packed).index)
    except OSError:
        return ""
    finally:
        asking.close()
    return "" if name == interface else name


def _application(config: Config) -> tuple[str, list[Concern]]:
    service = ip_address(config.service).packed
    found = look(service, config.settings.serves)
    concerns = [
        Concern(presence.CODE, Weight.WARNING, what, presence.UNBOUND) for what in presence.binds(dict(found.bound))
    ]
    missing = []
    for low, high in config.settings.ports:
        if not any(low <= port <= high for port, _ in found.sockets):
            missing.append(f"{low}" if low == high else f"{low}-{high}")
    if missing:
        what = f"no program listens at {config.service} or at all addresses on: {', '.join(missing[:_PORTS_SHOWN])}"
        concerns.append(Concern(presence.CODE, Weight.WARNING, what, presence.CURE))
    return "it listens at the service's ports", concerns


def _disk(directory: Path) -> tuple[str, Sequence[Concern]]:
    there = directory
    while not there.exists():  # Ends: each parent is shorter, and the root exists.
        there = there.parent
    fd = os.open(there, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = full(fd, str(directory))
    finally:
        os.close(fd)
    if not found and not os.access(there, os.W_OK):
        cure = f"run as root, or look at the rights of {there}"
        found = [Concern("state-disk-fails", Weight.UNPROTECTED, f"{there} can't be written to", cure)]
    return f"{directory} has room", found


def _fence(config: Config) -> tuple[str, list[Concern]]:
    if not config.fence:
        return "none", []  # `advice` says what that means
    why = fault(config.fence)
    if why:
        return "", [Concern("fence-fails", Weight.UNPROTECTED, f"the fence would fail: {why}", "correct 'fence'")]
    return f"{config.fence.command[0]} can be started", []

"""Where on this host the service address is, and whether it may be there.

It belongs on `lo`, as a /32, where no neighbour is answered for it. The host that serves with the clone tap has it on
the service's interface as well: as a /32 of host scope, so that the kernel never chooses it as a source, under a label
of its own. Anywhere else this host would be heard for it whether it serves or not.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nfq_failover.errors import CommandError
from nfq_failover.shell.host.rtnetlink import IFF_LOOPBACK, IFF_UP, SCOPE_HOST, Address, Link, addresses, links

_LABEL: Final = ":nfqf"
_LABEL_CHARACTERS: Final = 15  # IFNAMSIZ, less the final zero
# Where distributions configure addresses: netplan, systemd-networkd, ifupdown, NetworkManager, RHEL's older scripts.
_CONFIGURATION: Final = (
    "etc/netplan/*.yaml",
    "etc/systemd/network/*.network",
    "run/systemd/network/*.network",
    "etc/network/interfaces",
    "etc/network/interfaces.d/*",
    "etc/NetworkManager/system-connections/*",
    "etc/sysconfig/network-scripts/ifcfg-*",
    "etc/sysconfig/network/ifcfg-*",
)
_MAX_FILE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Presence:
    """Where the address is. `heard`: the service's interface has it as we put it there; `elsewhere`: interfaces where
    neighbours can ask for it, and which must not have it; `odd`: as it is on lo, if that is not a /32."""

    interface: Link | None
    lo_up: bool
    on_lo: bool
    odd: Address | None
    heard: bool
    elsewhere: tuple[tuple[str, Address], ...]

    @property
    def anywhere(self) -> bool:
        """Whether this host has it at all, so that its TCP takes packets for it."""
        return self.on_lo or self.odd is not None or self.heard or bool(self.elsewhere)


def heard_address(interface: Link, service: bytes) -> Address:
    """The service address as the host that serves has it on the service's interface."""
    label = interface.name[: _LABEL_CHARACTERS - len(_LABEL)] + _LABEL
    return Address(interface.index, service, 8 * len(service), SCOPE_HOST, label)


def find(service: bytes, interface: str, present: Iterable[Address], by_index: Mapping[int, Link]) -> Presence:
    """Where `service` is, by the kernel's tables."""
    named = next((link for link in by_index.values() if link.name == interface), None)
    lo = next((link for link in by_index.values() if link.flags & IFF_LOOPBACK), None)
    ours = heard_address(named, service) if named is not None else None
    on_lo, odd, heard, elsewhere = False, None, False, []
    for address in present:
        link = by_index.get(address.index)
        if address.local != service or link is None:
            continue
        if address == ours:
            heard = True
        elif link.answers_arp:
            elsewhere.append((link.name, address))
        elif address.prefix_bits == 8 * len(service):
            on_lo = True  # or on a dummy interface: nobody is answered there, either
        else:
            odd = address
    return Presence(named, lo is not None and bool(lo.flags & IFF_UP), on_lo, odd, heard, tuple(elsewhere))


def refuse_elsewhere(service: str, interface: str) -> None:
    """Raises `CommandError` if the address is where this host would be heard for it although the other one serves.

    A host that an earlier daemon has left serving is spared: it goes on, and the self-check says the same.
    """
    try:
        found = find(socket.inet_aton(service), interface, addresses(), links())
    except OSError:
        return  # the kernel can't be asked: the self-check does so again
    if found.elsewhere and not found.on_lo:
        places = ", ".join(f"{name} ({address})" for name, address in found.elsewhere)
        raise CommandError(
            f"the service address is configured on {places}: both hosts would be heard for it at once. The daemon puts "
            f"it where it belongs by itself; {how_to_remove(service, found.elsewhere)}, then start again"
        )


def configured_in(service: str, root: Path = Path("/")) -> list[str]:
    """The files of the host's network configuration that name the address."""
    found = []
    for pattern in _CONFIGURATION:
        for path in sorted(root.glob(pattern)):
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_size <= _MAX_FILE and _names(path, service):
                    found.append(f"/{path.relative_to(root)}")
    return found


def _names(path: Path, service: str) -> bool:
    whole = rf"(?<![\d.]){re.escape(service)}(?![\d.])"
    return re.search(whole, path.read_text(errors="replace")) is not None


def how_to_remove(service: str, elsewhere: Iterable[tuple[str, Address]], root: Path = Path("/")) -> str:
    """The cure for an address that is on interfaces where it must not be."""
    commands = "; ".join(f"ip addr del {address} dev {name}" for name, address in elsewhere)
    files = configured_in(service, root)
    where = ", ".join(files) if files else "what configures it at boot (netplan, systemd-networkd, ifupdown, ...)"
    return f"remove it ({commands}), also from {where}"

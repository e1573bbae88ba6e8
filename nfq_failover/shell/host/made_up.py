"""Clients as they could be, for as long as none is there; and who of them can be tried."""

from __future__ import annotations

import socket
from typing import Final

from nfq_failover.shell.host import rtnetlink

_ELSEWHERE: Final = socket.inet_aton("198.51.100.77")  # RFC 5737: somebody in another network
_MOST_NEIGHBOURS: Final = 2
_KEPT_S: Final = 60.0


class MadeUpClients:
    """`service` and `peer`: packed addresses. The peer counts as a client only where there is nobody else: rules that
    are meant for it may let it pass."""

    def __init__(self, interface: str, service: bytes, peer: bytes) -> None:
        """Raises OSError."""
        self._interface, self._service, self._peer = interface, service, peer
        self._found: list[bytes] = []
        self._until = float("-inf")
        self._kernel = rtnetlink.Questions()

    def addresses(self, outward: bool, now: float) -> list[bytes]:
        """Some that a probe may show (see `usable`). Raises OSError."""
        if now >= self._until:
            self._found, self._until = self._candidates(), now + _KEPT_S
        return self.usable(self._found, outward) or self.usable([self._peer], outward)

    def _candidates(self) -> list[bytes]:
        index = socket.if_nametoindex(self._interface)
        own = {each.local: each for each in rtnetlink.addresses()}
        known = [each for each in sorted(rtnetlink.neighbours(index)) if each not in (self._peer, self._service)]
        here = [_other_in(each) for each in own.values() if each.index == index and each.prefix_bits < 31]
        found = dict.fromkeys([*known[:_MOST_NEIGHBOURS], _ELSEWHERE, *here])
        return [each for each in found if each not in own and each != self._peer]

    def usable(self, addresses: list[bytes], outward: bool) -> list[bytes]:
        """Those of them to which packets leave by the interface. `outward`: and of whose next hop the kernel knows the
        hardware address, so that nobody is asked for it. Raises OSError."""
        index = socket.if_nametoindex(self._interface)
        found = []
        for address in addresses:
            try:
                route = self._kernel.route(address, self._service)
            except OSError:  # no route
                continue
            if route.index != index or route.kind != rtnetlink.RTN_UNICAST:
                continue
            if not outward or self._kernel.neighbour(index, route.gateway or address) & rtnetlink.NUD_USABLE:
                found.append(address)
        return found

    def close(self) -> None:
        """Ask no more."""
        self._kernel.close()


def _other_in(own: rtnetlink.Address) -> bytes:
    """Another address of the same network, the last but one or two."""
    hosts = (1 << 32 - own.prefix_bits) - 1
    number = int.from_bytes(own.local, "big")
    last = (number | hosts) - 1
    return (last if number != last else last - 1).to_bytes(4, "big")

"""The ways by which this host would answer clients, asked of the kernel before a takeover needs them.

While a host shadows, nothing that its replicas say leaves, so that nobody notices if it could not. After a takeover two
things take the kernel's routes from the service address: our TCP's segments, which are routed without a mark, and have
the daemon's once it has seen them; and what the daemon sends itself, with its mark. So both are asked for.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Final

from nfq_failover.shell.host.rtnetlink import (
    NUD_FAILED,
    NUD_INCOMPLETE,
    RTN_LOCAL,
    RTN_UNICAST,
    Questions,
    Route,
    resolve,
)
from nfq_failover.wire.segment import FlowKey

Target = tuple[bytes, int]
"""A client's address (packed), and a port of the service that it has a connection to: rules may go by either."""

REFRESH_S: Final = 60.0  # what no change has told of is looked at again after as long
_AT_ONCE: Final = 64  # some 3 ms
_HOPS_AT_ONCE: Final = 16
_NOWHERE: Final = {
    errno.ENETUNREACH: "there is no route",
    errno.EHOSTUNREACH: "its route is 'unreachable'",
    errno.EACCES: "its route is 'prohibit'",
    errno.EINVAL: "its route is 'blackhole'",
}


class WaysOut:
    """The ways from the service address to its clients.

    `interfaces`: names of those by which answers may leave. Nothing here waits. `changed` says that routes, rules or
    interfaces are others now; `look` does a bounded part of what is to be looked at, `pending` says whether there is
    more.
    """

    def __init__(
        self,
        service: bytes,
        mark: int,
        interfaces: Iterable[str],
        questions: Questions,
        find: Callable[[int, bytes], object] = resolve,
    ) -> None:
        """`find` has the kernel find the hardware address of a neighbour: (index of the interface, packed address)."""
        self._service = service
        self._marks = (0, mark)
        self.interfaces = tuple(interfaces)
        self._questions = questions
        self._find = find
        self._client_ports: dict[Target, int] = {}  # of one connection each
        self._wrong: dict[Target, str] = {}  # "" for those that are as they should be
        self._looked_at: dict[Target, float] = {}
        self._due: dict[Target, None] = {}
        self._gateways: dict[tuple[int, bytes], set[Target]] = {}
        self._silent: dict[tuple[int, bytes], int] = {}  # gateways that don't answer, and for how many looks

    def serve_by(self, interfaces: Iterable[str]) -> None:
        """Answers may leave by these interfaces now."""
        self.interfaces = tuple(interfaces)
        self.changed()

    def follow(self, flows: Iterable[FlowKey], now: float) -> None:
        """Know the clients of these connections, and no others."""
        wanted = {(flow[0], flow[3]): flow[1] for flow in flows}
        for target in self._client_ports.keys() - wanted.keys():
            self._wrong.pop(target, None)
            self._looked_at.pop(target, None)
            self._due.pop(target, None)
            self._leave(target)
        self._client_ports = wanted
        for target in wanted:
            if now >= self._looked_at.get(target, float("-inf")) + REFRESH_S:
                self._due[target] = None

    def changed(self) -> None:
        """Look at all of them again; what is known counts until then."""
        self._due.update(dict.fromkeys(self._client_ports))

    @property
    def pending(self) -> bool:
        """Whether there is something to look at."""
        return bool(self._due)

    def look(self, now: float) -> None:
        """Look at some of those that are due."""
        for target in list(self._due)[:_AT_ONCE]:
            del self._due[target]
            self._looked_at[target] = now
            self._leave(target)
            self._wrong[target] = self._judge(target)
        self._ask_gateways()

    def wrong(self) -> dict[bytes, str]:
        """What is wrong with the way to a client, for those where something is."""
        found = {}
        for target, reason in self._wrong.items():
            if reason:
                found[target[0]] = reason
        for hop, looks in self._silent.items():
            if looks > 1:
                what = f"its gateway {ip_address(hop[1])} at {_name(hop[0])} does not answer ARP"
                found.update({target[0]: what for target in self._gateways.get(hop, ()) if target[0] not in found})
        return found

    @property
    def known(self) -> set[bytes]:
        """The clients whose ways have been looked at."""
        return {client for client, _ in self._wrong}

    # ------------------------------------------------------------------------------------ one way

    def local(self) -> bool:
        """Whether what is sent to the service address ends at this host. Raises OSError."""
        try:
            return self._questions.route(self._service).kind == RTN_LOCAL
        except OSError as problem:
            if problem.errno in _NOWHERE:
                return False
            raise

    def probe(self, address: bytes) -> str:
        """What is wrong with the way to an address that is no client, '' for nothing."""
        for mark in self._marks:
            wrong = self._of(address, mark, None)[1]
            if wrong:
                return wrong
        return ""

    def _judge(self, target: Target) -> str:
        client, port = target
        for mark in self._marks:
            route, wrong = self._of(client, mark, (port, self._client_ports[target]))
            if wrong:
                return wrong
            if route is not None and route.gateway:
                self._gateways.setdefault((route.index, route.gateway), set()).add(target)
        return ""

    def _of(self, client: bytes, mark: int, ports: tuple[int, int] | None) -> tuple[Route | None, str]:
        """The route, and what is wrong with it. Raises OSError if the kernel can't be asked."""
        try:
            route = self._questions.route(client, self._service, mark, ports)
        except OSError as problem:
            if problem.errno not in _NOWHERE:
                raise
            return None, _NOWHERE[problem.errno]
        if route.kind == RTN_LOCAL:
            return route, "its address counts as this host's own"
        if route.kind != RTN_UNICAST:
            return route, "its route leads nowhere"
        name = _name(route.index)
        if name not in self.interfaces:
            via = f"{name} via {ip_address(route.gateway)}" if route.gateway else name
            return route, f"answers would leave by {via}, not by {self.interfaces[0]}"
        return route, ""

    # ------------------------------------------------------------------------------------ gateways

    def _leave(self, target: Target) -> None:
        """A target's way does not lead by the gateways that it has led by."""
        for hop in [hop for hop, targets in self._gateways.items() if target in targets]:
            self._gateways[hop].discard(target)
            if not self._gateways[hop]:
                del self._gateways[hop]

    def _ask_gateways(self) -> None:
        """See which gateways the kernel has asked for their hardware address in vain; it is to ask again each time."""
        for hop in self._silent.keys() - self._gateways.keys():
            del self._silent[hop]
        for hop in list(self._gateways)[:_HOPS_AT_ONCE]:
            with contextlib.suppress(OSError):
                state = self._questions.neighbour(*hop)
                if state == NUD_FAILED:
                    self._silent[hop] = self._silent.get(hop, 0) + 1
                if state in (0, NUD_FAILED):
                    self._find(*hop)
                elif state != NUD_INCOMPLETE:  # while it is asked, what was found before counts
                    self._silent.pop(hop, None)


def _name(index: int) -> str:
    with contextlib.suppress(OSError):
        return socket.if_indextoname(index)
    return f"interface {index}"

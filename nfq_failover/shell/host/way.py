"""The way to the peer, as far as this host alone can see it: link, own address, route, neighbour, sends that succeed.

It is looked at all the time, so that a host which was cut off for half a second knows that when it wonders why it has
heard nothing. What a dead peer causes by itself must not count: its silence, and a neighbour that no longer answers. So
the route and the neighbour are compared with what they were while the peer was heard.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.shell.host.link import link_up
from nfq_failover.shell.host.rtnetlink import NUD_FAILED, NUD_INCOMPLETE, RTN_LOCAL, RTN_UNICAST, Questions, Route

NEIGHBOUR_S: Final = 1.0  # a question to a neighbour may be lost; the kernel repeats it after a second
ADOPT_S: Final = 1.0  # another route by which the peer is heard for so long is the route from then on

_REMEDIES: Final = {
    errno.EPERM: "let the sync channel's UDP out: look at the OUTPUT rules (iptables -L OUTPUT -nv, nft list ruleset)",
    errno.ENETUNREACH: "restore the route to the peer (ip route get)",
    errno.EHOSTUNREACH: "restore the route to the peer (ip route get)",
    errno.EINVAL: "restore this host's own address",
    errno.EADDRNOTAVAIL: "restore this host's own address",
}


class Way:
    """The way from `own` to `peer`. `interface`: where the clients are, which may be another one than the peer's.

    `failing()` returns the number of the error with which what we send to the peer fails now or has failed since the
    last call, 0 if it goes out.
    """

    def __init__(self, interface: str, own: str, peer: str, failing: Callable[[], int] = lambda: 0) -> None:
        """Raises OSError."""
        self._interface = interface
        self._own = own
        self._peer = peer
        self._packed = ip_address(own).packed, ip_address(peer).packed
        self._failing = failing
        self._netlink = Questions()
        self._ioctl = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._usual: Route | None = None
        self._other: tuple[Route, float] | None = None  # another route than usual, and since when
        self._name = ""  # of the usual route's interface
        self._unresolved_at: float | None = None

    def look(self, now: float, heard: bool = True) -> Concern | None:
        """Look at all of it, without waiting for anything. `heard`: the peer is heard now. Returns what is wrong."""
        error = self._failing()  # always, since it forgets what it has told
        found = self._link() or self._address() or self._route(now, heard) or self._sends(error)
        return found or self._neighbour(now, heard)

    def _link(self) -> Concern | None:
        for name in {self._interface, self._name or self._interface}:
            up, why = link_up(name, self._ioctl)
            if not up:
                cure = f"bring {name} up, and look at the cable and the switch"
                if "No such device" in why:
                    cure = f"name the interface '{name}' again, or set 'interface' to its new name and restart"
                return self._cut_off("link-down", why, cure)
        return None

    def _address(self) -> Concern | None:
        try:
            there = self._netlink.route(self._packed[0]).kind == RTN_LOCAL
        except OSError:
            there = False
        if there:
            return None
        what = f"this host's own address {self._own} is gone"
        return self._cut_off("own-address-missing", what, f"put {self._own} back (ip address add)")

    def _route(self, now: float, heard: bool) -> Concern | None:
        cure = f"restore the route to {self._peer} (ip route get {self._peer} from {self._own})"
        try:
            route = self._netlink.route(self._packed[1], self._packed[0])
        except OSError as error:
            return self._cut_off("route-missing", f"there is no route to the peer {self._peer}: {error}", cure)
        if route.kind not in (RTN_LOCAL, RTN_UNICAST):
            return self._cut_off("route-missing", f"the route to the peer {self._peer} leads nowhere", cure)
        if self._usual is None:
            self._adopt(route)
        if route == self._usual:
            self._other = None
            return None
        if self._other is None or self._other[0] != route or not heard:
            self._other = (route, now)
        if heard:
            if now - self._other[1] >= ADOPT_S:
                self._adopt(route)
            return None
        return self._cut_off("route-changed", f"the route to the peer {self._peer} is not the one that it was", cure)

    def _adopt(self, route: Route) -> None:
        self._usual, self._other, self._name = route, None, ""
        with contextlib.suppress(OSError):
            self._name = "" if route.kind == RTN_LOCAL else socket.if_indextoname(route.index)

    def _sends(self, error: int) -> Concern | None:
        if not error:
            return None
        what = f"nothing can be sent to the peer {self._peer}: {os.strerror(error)}"
        return self._cut_off("sends-fail", what, _REMEDIES.get(error, ""))

    def _neighbour(self, now: float, heard: bool) -> Concern | None:
        """A peer that is heard can answer ARP. While it is silent, what was known before goes on to count."""
        route = self._usual
        if heard and route is not None and route.kind == RTN_UNICAST:
            try:
                state = self._netlink.neighbour(route.index, route.gateway or self._packed[1])
            except OSError:
                return None
            if state not in (NUD_FAILED, NUD_INCOMPLETE):
                self._unresolved_at = None
            elif self._unresolved_at is None:
                self._unresolved_at = now
        if self._unresolved_at is None or now - self._unresolved_at < NEIGHBOUR_S:
            return None
        name = f"the peer {self._peer}"
        if route is not None and route.gateway:
            name = f"the gateway {ip_address(route.gateway)}"
        cure = "let ARP pass in both directions (ip neighbour, arptables, the switch)"
        return self._cut_off("neighbour-unresolved", f"{name} does not answer ARP, though the peer is heard", cure)

    @staticmethod
    def _cut_off(code: str, what: str, cure: str) -> Concern:
        return Concern(code, Weight.UNPROTECTED, what, cure)

    def close(self) -> None:
        """Look no more."""
        self._netlink.close()
        self._ioctl.close()

"""The ways to clients: which count as none, in bounded steps, and again when something has changed."""

from __future__ import annotations

import errno
import os
import socket
from typing import cast

import pytest

from nfq_failover.shell.host import ways_out
from nfq_failover.shell.host.rtnetlink import NUD_FAILED, NUD_INCOMPLETE, RTN_LOCAL, RTN_UNICAST, Questions, Route
from nfq_failover.shell.host.ways_out import REFRESH_S, WaysOut

SERVICE = socket.inet_aton("192.0.2.100")
ROUTER = socket.inet_aton("192.0.2.1")
NAMES = {1: "lo", 2: "eth0", 3: "eth1"}
WELL = Route(RTN_UNICAST, 2)
MARK = 0x40
REACHABLE = 0x02


def client(number: int) -> bytes:
    return b"\xc6\x33" + number.to_bytes(2)


def flow(number: int, port: int = 80) -> tuple[bytes, int, bytes, int]:
    return client(number), 40000 + number, SERVICE, port


class Kernel:
    """Routes by client, or by client and mark, or by client and port of the service."""

    def __init__(self) -> None:
        self.routes: dict[object, Route | int] = {}
        self.asked = 0
        self.neighbours: dict[bytes, int] = {}
        self.sought: list[bytes] = []

    def route(
        self, destination: bytes, source: bytes = b"", mark: int = 0, ports: tuple[int, int] | None = None
    ) -> Route:
        assert not source or source == SERVICE
        self.asked += 1
        port = None if ports is None else ports[0]
        keys: tuple[object, ...] = ((destination, mark), (destination, port), destination)
        found = next((self.routes[key] for key in keys if key in self.routes), WELL)
        if isinstance(found, int):
            raise OSError(found, os.strerror(found))
        return found

    def neighbour(self, index: int, address: bytes) -> int:
        assert index == 2
        return self.neighbours.get(address, REACHABLE)

    def find(self, index: int, address: bytes) -> None:
        assert index == 2
        self.sought.append(address)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(ways_out, "_name", lambda index: NAMES[index])
    return Kernel()


def ways_of(kernel: Kernel, *more: str) -> WaysOut:
    return WaysOut(SERVICE, MARK, ("eth0", *more), cast(Questions, kernel), kernel.find)


def looked(ways: WaysOut, now: float, *flows: tuple[bytes, int, bytes, int]) -> dict[bytes, str]:
    ways.follow(flows, now)
    ways.look(now)
    return ways.wrong()


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (errno.ENETUNREACH, "there is no route"),
        (errno.EHOSTUNREACH, "its route is 'unreachable'"),
        (errno.EACCES, "its route is 'prohibit'"),
        (errno.EINVAL, "its route is 'blackhole'"),
        (Route(RTN_LOCAL, 1), "its address counts as this host's own"),
        (Route(3, 2), "its route leads nowhere"),
        (Route(RTN_UNICAST, 3), "answers would leave by eth1, not by eth0"),
        (Route(RTN_UNICAST, 3, ROUTER), "answers would leave by eth1 via 192.0.2.1, not by eth0"),
    ],
)
def test_what_is_no_way(kernel: Kernel, route: Route | int, reason: str) -> None:
    kernel.routes[client(1)] = route
    ways = ways_of(kernel)
    assert looked(ways, 0.0, flow(1), flow(2)) == {client(1): reason}
    assert ways.known == {client(1), client(2)}


@pytest.mark.parametrize("key", [(client(1), MARK), (client(1), 0), (client(1), 81)])
def test_rules_may_go_by_the_mark_or_by_the_port(kernel: Kernel, key: object) -> None:
    """What the daemon sends has its mark; what our TCP sends is routed without one before it has."""
    kernel.routes[key] = Route(RTN_UNICAST, 3)
    assert set(looked(ways_of(kernel), 0.0, flow(1, 80), flow(1, 81))) == {client(1)}


def test_an_interface_that_the_operator_has_named_is_a_way(kernel: Kernel) -> None:
    kernel.routes[client(1)] = Route(RTN_UNICAST, 3)
    ways = ways_of(kernel, "eth1")
    assert looked(ways, 0.0, flow(1)) == {}
    ways.serve_by(("eth0",))
    assert set(looked(ways, 1.0, flow(1))) == {client(1)}


def test_an_error_that_says_nothing_of_the_route_is_raised(kernel: Kernel) -> None:
    kernel.routes[client(1)] = errno.ENOBUFS
    with pytest.raises(OSError, match="No buffer"):
        looked(ways_of(kernel), 0.0, flow(1))


def test_they_are_looked_at_in_steps_and_again_after_a_change_or_a_minute(kernel: Kernel) -> None:
    ways, flows = ways_of(kernel), [flow(n) for n in range(150)]
    for step, pending in enumerate((True, True, False)):
        looked(ways, step / 100, *flows)
        assert ways.pending is pending
    assert kernel.asked == 300
    looked(ways, 5.0, *flows)
    assert kernel.asked == 300, "nothing has changed"
    kernel.routes[client(7)] = errno.EINVAL
    ways.changed()
    assert ways.wrong() == {}, "what is known counts until it is looked at"
    for step in range(3):
        looked(ways, 6.0 + step / 100, *flows)
    assert set(ways.wrong()) == {client(7)}
    del kernel.routes[client(7)]
    looked(ways, 7.0 + REFRESH_S, *flows)
    assert ways.wrong() == {}


def test_a_client_that_has_gone_is_forgotten(kernel: Kernel) -> None:
    kernel.routes[client(1)] = errno.EINVAL
    ways = ways_of(kernel)
    assert looked(ways, 0.0, flow(1), flow(2))
    assert looked(ways, 1.0, flow(2)) == {}
    assert ways.known == {client(2)}


def test_a_gateway_that_does_not_answer_is_no_way_until_it_does(kernel: Kernel) -> None:
    kernel.routes[client(1)] = kernel.routes[client(2)] = Route(RTN_UNICAST, 2, ROUTER)
    kernel.neighbours[ROUTER] = NUD_FAILED
    ways, flows = ways_of(kernel), (flow(1), flow(2), flow(3))
    assert looked(ways, 0.0, *flows) == {}, "once is no proof"
    assert set(looked(ways, 1.0, *flows)) == {client(1), client(2)}
    assert kernel.sought == [ROUTER] * 2, "the kernel is to ask it again"
    kernel.neighbours[ROUTER] = NUD_INCOMPLETE
    ways.changed()
    assert looked(ways, 2.0, *flows)[client(1)] == "its gateway 192.0.2.1 at eth0 does not answer ARP"
    kernel.neighbours[ROUTER] = REACHABLE
    assert looked(ways, 3.0, *flows) == {}


def test_where_the_service_ends(kernel: Kernel) -> None:
    ways = ways_of(kernel)
    assert not ways.local(), "it leads to the segment"
    kernel.routes[SERVICE] = errno.EHOSTUNREACH
    assert not ways.local()
    kernel.routes[SERVICE] = Route(RTN_LOCAL, 1)
    assert ways.local()

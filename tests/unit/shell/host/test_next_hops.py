"""After a takeover each neighbour is asked for its address, until it answers, in bounded steps."""

from __future__ import annotations

import socket

import pytest

from nfq_failover.shell.host.next_hops import AFTER_S, NextHops

ROUTER = socket.inet_aton("192.0.2.1")


def address(number: int) -> bytes:
    return b"\xc6\x33" + number.to_bytes(2)  # 198.51.x.y: behind the router


def local(number: int) -> bytes:
    return b"\xc0\x00" + number.to_bytes(2)


class World:
    """Routes and neighbours. Clients in 198.51/16 are behind the router, those in 203/8 at another interface."""

    def __init__(self, known: dict[bytes, bytes] | None = None) -> None:
        self.known = known or {}
        self.looked_up: list[bytes] = []
        self.resolved: list[bytes] = []
        self.hops = NextHops(self.next_hop, lambda: self.known, self.resolved.append)

    def next_hop(self, client: bytes) -> bytes | None:
        self.looked_up.append(client)
        return ROUTER if client[0] == 198 else None if client[0] == 203 else client

    def run(self, begin: float, end: float) -> list[tuple[float, bytes, bytes | None]]:
        """(time, neighbour, hardware address) of each request; a tick every 25 ms."""
        sent, at = [], begin
        while at <= end:
            sent += [(round(at - begin, 2), *request) for request in self.hops.tick(at)]
            at += 0.025
        return sent


def test_many_connections_behind_a_router_cost_one_request() -> None:
    world = World({ROUTER: b"router"})
    world.hops.tell([address(n) for n in range(200)], 10.0)
    assert world.hops.tick(10.0) == [(ROUTER, b"router")]
    world.hops.heard(ROUTER)
    assert world.run(10.025, 20.0) == []
    assert (world.hops.asked, world.hops.answered) == (1, 1)
    assert len(world.looked_up) == 200


def test_a_neighbour_that_does_not_answer_is_asked_again_also_by_broadcast_and_not_for_ever() -> None:
    client = local(7)
    world = World({client: b"client"})
    world.hops.tell([client], 0.0)
    sent = world.run(0.0, 30.0)
    assert [at for at, _, _ in sent] == pytest.approx(AFTER_S, abs=0.03)
    assert [mac for _, _, mac in sent] == [b"client", None, b"client", None, b"client"]
    world.hops.heard(client)  # late, and still good to know
    assert world.hops.answered == 1
    world.hops.heard(client)
    assert world.hops.answered == 1


def test_one_that_is_not_known_is_asked_by_broadcast() -> None:
    world = World()
    world.hops.tell([local(7)], 0.0)
    assert world.hops.tick(0.0) == [(local(7), None)]


def test_clients_at_another_interface_are_nobody_s_neighbours_here() -> None:
    world = World()
    world.hops.tell([b"\xcb\0\0\1"], 0.0)
    assert world.run(0.0, 5.0) == []


def test_the_rate_is_bounded_and_all_are_told() -> None:
    world = World()
    world.hops.tell([local(n) for n in range(1000)], 0.0)
    most = 0
    told: set[bytes] = set()
    for step in range(80):
        requests = world.hops.tick(step * 0.025)
        most = max(most, len(requests))
        for hop, _ in requests:
            told.add(hop)
            world.hops.heard(hop)
    assert most <= 32 and len(told) == 1000 and world.hops.answered == 1000


def test_before_a_takeover_neighbours_are_looked_up_and_resolved_and_then_told_at_once() -> None:
    world = World({local(1): b"one"})
    world.hops.prepare([local(1), address(5)])
    assert world.run(0.0, 1.0) == []  # nothing is said before
    assert set(world.resolved) == {local(1), ROUTER}
    world.hops.prepare([local(1), address(5)])
    world.run(1.0, 30.0)
    assert len(world.resolved) == 2 and len(world.looked_up) == 2, "once is enough for a while"
    world.run(30.0, 70.0)
    assert len(world.resolved) == 4  # the kernel may have forgotten
    world.hops.tell([local(1), address(5)], 100.0)
    assert dict(world.hops.tick(100.0)) == {local(1): b"one", ROUTER: None}
    assert len(world.looked_up) == 2


def test_clients_that_have_gone_are_forgotten() -> None:
    world = World()
    world.hops.prepare([local(1), local(2)])
    world.run(0.0, 0.1)
    world.hops.prepare([local(2)])
    world.hops.tell([local(2)], 1.0)
    assert [hop for hop, _ in world.hops.tick(1.0)] == [local(2)]


def test_many_neighbours_are_not_resolved_beforehand_since_the_kernel_s_table_is_small() -> None:
    world = World()
    world.hops.prepare([local(n) for n in range(300)])
    world.run(0.0, 20.0)
    few = len(world.resolved)
    assert few <= 256


def test_the_next_takeover_tells_again() -> None:
    world = World()
    world.hops.tell([local(1)], 0.0)
    world.hops.tick(0.0)
    world.hops.heard(local(1))
    world.hops.stop()
    assert world.run(1.0, 5.0) == []
    world.hops.tell([local(1)], 10.0)
    assert world.hops.tick(10.0) == [(local(1), None)]


def test_while_neighbours_are_told_nothing_is_prepared() -> None:
    world = World()
    world.hops.tell([local(1)], 0.0)
    world.hops.tick(0.0)
    world.hops.prepare([local(2)])
    assert [hop for _, hop, _ in world.run(0.025, 1.0)] == [local(1)] * 2
    world.hops.heard(local(1))
    world.hops.prepare([local(2)])
    assert world.run(1.0, 5.0) == [] and world.resolved == [local(2)]
    assert world.hops.known == [local(2)]

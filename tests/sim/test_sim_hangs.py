"""An application that hangs: what its kernel keeps for it, in the model as in Linux; and who waits for whom."""

from __future__ import annotations

import socket
from struct import pack

import pytest

from nfq_failover.constants import ACK
from nfq_failover.wire.build import build_segment

from .apps import Client
from .checks import Checks
from .host import SimHost
from .runner import run
from .scenario import DOWNLOAD, Connection, HostPlan, Incident, Limits, Scenario, from_json, named
from .stalls import EVERY_S
from .world import CLIENT, SERVICE, SimWorld

HOSTS = {"a": HostPlan(), "b": HostPlan(boot=0.1)}
FLOW = (CLIENT, 40_000, SERVICE, DOWNLOAD)
ABORTED = Connection(0.1, 40_000, DOWNLOAD, salt=1, abort_at=1)


def test_linux_keeps_what_came_before_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            server.settimeout(5)
            client.sendall(b"before")
            assert server.recv(6, socket.MSG_PEEK) == b"before"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
            client.close()  # a reset
            assert server.recv(3) == b"bef"
            assert server.recv(3) == b"ore"
            with pytest.raises(ConnectionResetError):
                server.recv(1)


def test_application_that_hung_reads_what_came_before_a_reset() -> None:
    world = SimWorld(from_json(named()["read-after-its-reset"].read_text()))
    world.run()
    assert world.clients[FLOW].aborted
    assert [bytes(app.read) for app in world.host("b").apps[FLOW]] == [world.clients[FLOW].out]


def test_application_that_is_killed_while_it_hangs_has_failed_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had not read what came before the reset."""
    broken: list[frozenset[object]] = []
    fail = Checks.application_failed

    def failed(checks: Checks, host: SimHost, how: str, alone: object = None) -> None:
        fail(checks, host, how, None)
        if how == "die":
            host.later(0.0, lambda: broken.append(frozenset(host.application.broken)))

    monkeypatch.setattr(Checks, "application_failed", failed)
    hangs = Incident(0.05, "app_hang", "backup")
    assert not run(Scenario(seed=1, kind="app-crash", hosts=HOSTS, connections=(ABORTED,), incidents=(hangs,))).failure
    assert [FLOW in each for each in broken] == [True]


def _waiting() -> tuple[SimWorld, float]:
    """A pair that is well, and a client that waits. Returns how long it may."""
    world = SimWorld(Scenario(seed=1, kind="replica-hangs", hosts=HOSTS, limits=Limits(replica_patience_ms=100)))
    for host in world.hosts:
        host.boot(0.0)
    world.clock.run(world.clock.now + 3.0)
    tcp = world.client.connect((CLIENT, 40_000), (SERVICE, DOWNLOAD))
    world.clients[FLOW] = Client(world.clock, tcp, ABORTED)  # it never begins
    tcp.state = "open"
    assert world.stalls.bound_s is not None
    world.stalls.start()
    return world, world.stalls.bound_s


def _complains_within(world: SimWorld, seconds: float) -> None:
    with pytest.raises(AssertionError, match="has stood still"):
        world.clock.run(world.clock.now + seconds)


@pytest.mark.parametrize("owner_hangs", [False, True])
def test_client_that_waits_for_its_own_server_is_not_held_by_a_replica(owner_hangs: bool) -> None:
    world, bound_s = _waiting()
    if owner_hangs:
        assert world.owner is not None
        world.owner.application.hang(0.0)
        world.clock.run(world.clock.now + 2 * bound_s)
        world.owner.application.start()
        world.clock.run(world.clock.now + bound_s - EVERY_S)
    _complains_within(world, bound_s + 2 * EVERY_S)


@pytest.mark.parametrize("data", [b"", b"news"])
def test_client_whose_network_has_lost_news_is_not_held_by_a_replica(data: bytes) -> None:
    world, bound_s = _waiting()
    world.clock.run(world.clock.now + bound_s - 1.0)
    world.stalls.lost(bytes(build_segment((SERVICE, DOWNLOAD), (CLIENT, 40_000), 0, 0, ACK, 0, b"", data)))
    if data:
        world.clock.run(world.clock.now + bound_s - EVERY_S)
    _complains_within(world, 1.0 + 2 * EVERY_S)

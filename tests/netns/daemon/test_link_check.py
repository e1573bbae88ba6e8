"""Is it we who are cut off? Targets that answer, that don't, and that refuse, in a pair of namespaces."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator

import pytest

from nfq_failover.core.events import LinkChecked
from nfq_failover.shell.host.link import LinkChecker
from nfq_failover.shell.host.way import Way
from nfq_failover.shell.peer.delivery import Delivery
from nfq_failover.shell.peer.heartbeat_process import HeartbeatProcess
from nfq_failover.wire.heartbeat import HeartbeatBody, HeartbeatTemplate
from tests.support.namespaces import CLIENT, Namespace, pair

pytestmark = pytest.mark.netns

SERVER = "10.77.0.2"


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Namespace, Namespace]]:
    with pair(server_address=SERVER) as (client, server):
        stop = time.monotonic() + 10
        while " UP " not in server.run("ip", "-br", "link", "show", "dev", "eth0"):
            assert time.monotonic() < stop, "no carrier"
            time.sleep(0.01)
        yield client, server


def template() -> bytes:
    return HeartbeatTemplate(1, bytes(32), False, 1, HeartbeatBody(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)).encode()


def trouble(way: Way) -> str:
    found = way.look(0.0)
    return "" if found is None else found.what


def check(
    server: Namespace, *targets: tuple[str, int], deadline_ms: int = 3000, interface: str = "eth0"
) -> LinkChecked:
    """One check, to its end."""
    with server.entered():
        way = Way(interface, SERVER, CLIENT)
        checker = LinkChecker(lambda: trouble(way), SERVER, targets, deadline_ms)
        answer = checker.start()
        give_up = time.monotonic() + 15
        while answer is None:
            assert time.monotonic() < give_up
            time.sleep(0.01)
            answer = checker.tick(time.monotonic())
        assert checker.tick(time.monotonic()) is None
        checker.close()
        way.close()
    return answer


def test_an_echo(world: tuple[Namespace, Namespace]) -> None:
    assert check(world[1], (CLIENT, 0)) == LinkChecked(True, f"{CLIENT} answers")


def test_one_of_several_is_enough(world: tuple[Namespace, Namespace]) -> None:
    assert check(world[1], ("10.77.0.77", 0), (CLIENT, 0)).ok


def test_nobody_answers(world: tuple[Namespace, Namespace]) -> None:
    began = time.monotonic()
    answer = check(world[1], ("10.77.0.77", 0), ("10.77.0.78", 80), deadline_ms=400)
    assert answer == LinkChecked(False, "10.77.0.77, 10.77.0.78:80: no answer")
    assert time.monotonic() - began >= 0.39


def test_no_route_to_any(world: tuple[Namespace, Namespace]) -> None:
    assert not check(world[1], ("198.51.100.1", 80), ("198.51.100.1", 0), deadline_ms=300).ok


def test_a_connection_accepted_or_refused_proves_the_way(world: tuple[Namespace, Namespace]) -> None:
    client, server = world
    assert check(server, (CLIENT, 9)) == LinkChecked(True, f"{CLIENT}:9 answers"), "refused, by that machine"
    with client.entered():
        listener = socket.create_server((CLIENT, 7009))
    with listener:
        assert check(server, (CLIENT, 7009)).ok


def test_a_link_that_is_down_is_not_asked_further(world: tuple[Namespace, Namespace]) -> None:
    assert check(world[1], (CLIENT, 0), interface="eth9") == LinkChecked(False, "eth9: No such device")


def test_a_new_check_replaces_the_old_one(world: tuple[Namespace, Namespace]) -> None:
    answers: list[LinkChecked] = []
    with world[1].entered():
        checker = LinkChecker(str, SERVER, (("10.77.0.77", 0),), 200)
        assert checker.start() is None
        assert checker.start() is None
        give_up = time.monotonic() + 2
        while time.monotonic() < give_up:
            if (answer := checker.tick(time.monotonic())) is not None:
                answers.append(answer)
            time.sleep(0.02)
    assert len(answers) == 1


# ---------------------------------------------------------------------------------------- the way to the peer


@pytest.fixture
def hosts() -> Iterator[tuple[Namespace, Namespace]]:
    with pair(server_address=SERVER) as (client, server):
        yield client, server


def test_what_can_be_missing_on_the_way_to_the_peer(hosts: tuple[Namespace, Namespace]) -> None:
    """A host that is cut off knows it, whatever it is that has gone, and that it is over."""
    peer, server = hosts
    cases = (
        ("own-address-missing", ("addr", "del", f"{SERVER}/24"), ("addr", "add", f"{SERVER}/24")),
        ("route-missing", ("route", "del", "10.77.0.0/24"), ("route", "add", "10.77.0.0/24", "src", SERVER)),
        ("route-missing", ("route", "add", "unreachable", CLIENT), ("route", "del", "unreachable", CLIENT)),
        ("link-down", ("link", "set", "eth0", "down"), ("link", "set", "eth0", "up")),
    )
    with server.entered():
        way = Way("eth0", SERVER, CLIENT)
        now = 0.0

        def code(heard: bool = True) -> str:
            nonlocal now
            now += 0.05
            found = way.look(now, heard)
            return "" if found is None else found.code

        def becomes(wanted: str) -> None:
            give_up = time.monotonic() + 5
            while code() != wanted:
                assert time.monotonic() < give_up, f"never {wanted!r}"
                time.sleep(0.01)

        becomes("")
        for wanted, break_it, mend_it in cases:
            device = ("dev", "eth0") if break_it[0] in ("addr", "route") and break_it[2] != "unreachable" else ()
            server.run("ip", *break_it, *device)
            becomes(wanted)
            server.run("ip", *mend_it, *device)
            becomes("")
        # Another route is one more only as long as the peer is heard by it.
        server.run("ip", "route", "add", CLIENT, "via", "10.77.0.9", "dev", "eth0")
        assert code() == "" and code(heard=False) == "route-changed"
        for _ in range(30):
            code()
        assert code(heard=False) == "", "it is the usual one now"
        server.run("ip", "route", "del", CLIENT)
        for _ in range(30):
            code()
        server.run("ip", "neigh", "replace", CLIENT, "lladdr", "02:00:00:00:00:01", "nud", "failed", "dev", "eth0")
        assert code(heard=False) == "", "a peer that is dead does not answer ARP"
        for _ in range(30):
            server.run("ip", "neigh", "replace", CLIENT, "lladdr", "02:00:00:00:00:01", "nud", "failed", "dev", "eth0")
            found = code()
        assert found == "neighbour-unresolved" == code(heard=False), "it was so while the peer was heard"
        server.run("ip", "link", "set", "eth0", "down")
        server.run("ip", "link", "set", "eth0", "name", "lan0")
        becomes("link-down")
        way.close()
    assert peer.run("ip", "-br", "link")


def test_what_can_not_be_sent_is_noticed_and_a_neighbour_that_is_gone_is_no_error_of_ours(
    hosts: tuple[Namespace, Namespace],
) -> None:
    peer, server = hosts
    with server.entered():
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setblocking(False)
        udp.bind((SERVER, 7766))
        heartbeats = HeartbeatProcess(20, udp)
        to = (CLIENT, 7766)
        sender = Delivery(udp, (SERVER, 7766), [to])
        heartbeats.publish(to, template())

        def becomes(fails: bool) -> None:
            give_up = time.monotonic() + 5
            while bool(heartbeats.failing(to)) is not fails:
                assert time.monotonic() < give_up
                time.sleep(0.02)

        try:
            becomes(False)
            server.run("iptables", "-A", "OUTPUT", "-p", "udp", "--dport", "7766", "-j", "DROP")
            becomes(True)
            sender.send(b"x", to)
            assert sender.failing() == errno.EPERM
            server.run("iptables", "-F", "OUTPUT")
            becomes(False)
            sender.send(b"x", to)
            assert sender.failing() == 0
            peer.run("ip", "link", "set", "eth0", "arp", "off")
            server.run("ip", "neigh", "flush", "all")
            for _ in range(3000):
                sender.send(bytes(1000), to)
            time.sleep(0.1)
            assert sender.failing() == 0 == heartbeats.failing(to)
        finally:
            heartbeats.close()
            sender.close()
            udp.close()

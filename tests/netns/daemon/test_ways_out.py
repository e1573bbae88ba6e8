"""The ways to clients, as the kernel has them: policy rules, routes of every kind, a gateway that is silent."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from nfq_failover.config import Config
from nfq_failover.constants import DEFAULT_MARK
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.shell.selfcheck.routes import NO_WAY, NOT_LOCAL, RULED, RoutesCheck
from tests.support.lab_world import eventually
from tests.support.namespaces import CLIENT, SERVICE, Namespace, pair

pytestmark = pytest.mark.netns

OTHER = "10.77.0.9"  # another client of the segment
FAR = "198.51.100.7"  # a client behind a gateway
PORT = 7000
CONFIG = cast(Config, SimpleNamespace(service=SERVICE, interface="eth0", mark=DEFAULT_MARK, answer_interfaces=()))


class Backup:
    """A host with the service address and a second interface, whose check sees these clients."""

    def __init__(self, server: Namespace) -> None:
        self.server = server
        for line in (
            f"address add {SERVICE}/32 dev lo",
            "link add mgmt0 type veth peer name mgmt1",
            "address add 192.168.9.2/24 dev mgmt0",
            "link set mgmt0 up",
            "link set mgmt1 up",
        ):
            self.ip(line)
        self.clients: tuple[str, ...] = (CLIENT, OTHER)
        self.check = self.checking(CONFIG)

    def checking(self, config: Config) -> RoutesCheck:
        """A check of its own."""
        with self.server.entered():
            return RoutesCheck(config, lambda: [self._flow(client) for client in self.clients])

    @staticmethod
    def _flow(client: str) -> tuple[bytes, int, bytes, int]:
        return socket.inet_aton(client), 40000, socket.inet_aton(SERVICE), PORT

    def ip(self, line: str) -> None:
        self.server.run("ip", *line.split())

    def found(self) -> dict[str, Concern]:
        with self.server.entered():
            return {each.code: each for each in self.check.run(time.monotonic())}

    def hindered(self) -> set[str]:
        """The clients that a concern is about: all of them if it is the host's."""
        found = self.found().get(NO_WAY)
        if found is None:
            return set()
        if found.weight is Weight.UNPROTECTED:
            assert not found.clients
            return set(self.clients)
        return {socket.inet_ntoa(client) for client in found.clients}


@pytest.fixture
def backup() -> Iterator[Backup]:
    with pair(server_address="10.77.0.2") as (_, server):
        made = Backup(server)
        assert not made.found()
        yield made
        made.check.close()


def test_each_kind_is_found_and_over_when_it_is_mended(backup: Backup) -> None:
    both, one = {CLIENT, OTHER}, {CLIENT}
    backup.ip("route add default via 192.168.9.1 dev mgmt0 onlink table 100")
    for line, whose in (
        (f"rule add pref 100 from {SERVICE} lookup 100", both),
        (f"rule add pref 100 fwmark {DEFAULT_MARK:#x}/{DEFAULT_MARK:#x} lookup 100", both),
        (f"rule add pref 100 ipproto tcp sport {PORT} lookup 100", both),
        (f"rule add pref 100 to {CLIENT} lookup 100", one),
        (f"rule add pref 100 from {SERVICE} blackhole", both),
        (f"rule add pref 100 from {SERVICE} prohibit", both),
        (f"route add {CLIENT}/32 via 192.168.9.1 dev mgmt0 onlink", one),
        (f"route add blackhole {CLIENT}/32", one),
        (f"route add unreachable {CLIENT}/32", one),
        (f"route add prohibit {CLIENT}/32", one),
        (f"route add blackhole {CLIENT}/32 table local", one),
        (f"address add {CLIENT}/32 dev lo", one),
        ("route del 10.77.0.0/24 dev eth0", both),
    ):
        backup.ip(line)
        assert backup.hindered() == whose, line
        undone = line.replace(" add ", " del ") if " add " in line else line.replace("del", "add") + " src 10.77.0.2"
        backup.ip(undone)
        assert not backup.found(), undone


def test_a_route_by_an_interface_that_the_operator_has_named(backup: Backup) -> None:
    named = SimpleNamespace(**vars(CONFIG) | {"answer_interfaces": ("mgmt0",)})
    backup.ip(f"route add {CLIENT}/32 dev mgmt0")
    assert backup.hindered() == {CLIENT}
    backup.check.follow(cast(Config, named))
    assert not backup.found()


def test_a_default_route_that_goes_away_and_a_gateway_that_is_silent(backup: Backup) -> None:
    backup.clients = (CLIENT, FAR)
    assert backup.hindered() == {FAR}
    backup.ip(f"route add default via {CLIENT} dev eth0")
    assert not backup.found()
    backup.server.run("sysctl", "-qw", "net.ipv4.neigh.eth0.retrans_time_ms=100")
    backup.ip("route change default via 10.77.0.200 dev eth0")
    assert eventually(lambda: backup.hindered() == {FAR}, 8.0)
    assert "10.77.0.200 at eth0 does not answer ARP" in backup.found()[NO_WAY].what
    backup.ip(f"route change default via {CLIENT} dev eth0")
    assert not backup.found()
    backup.ip("route del default")
    assert backup.hindered() == {FAR}


def test_an_interface_in_a_bridge_and_a_service_address_that_leads_elsewhere(backup: Backup) -> None:
    backup.ip("link add br0 type bridge")
    backup.ip("link set br0 up")
    backup.ip("link set eth0 master br0")
    backup.ip("address del 10.77.0.2/24 dev eth0")
    assert backup.hindered() == {CLIENT, OTHER}
    backup.ip("address add 10.77.0.2/24 dev br0")
    assert "would leave by br0, not by eth0" in backup.found()[NO_WAY].what
    backup.ip("link del br0")
    backup.ip("address add 10.77.0.2/24 dev eth0")
    assert not backup.found()
    backup.ip(f"route del local {SERVICE} table local")
    assert backup.found()[NOT_LOCAL].weight is Weight.UNPROTECTED
    backup.ip(f"route add local {SERVICE} dev lo table local")
    assert not backup.found()


def test_without_any_client_and_without_a_daemon(backup: Backup) -> None:
    backup.clients = ()
    backup.ip("route add default via 192.168.9.1 dev mgmt0 onlink table 100")
    backup.ip(f"rule add pref 100 from {SERVICE} lookup 100")
    assert "other machines of its network" in backup.found()[NO_WAY].what
    backup.ip(f"address del {SERVICE}/32 dev lo")
    assert not backup.found(), "that it is missing another check says"
    with backup.server.entered():
        (ruled,) = backup.check.before_start(0.0)
    assert (ruled.code, ruled.weight) == (RULED, Weight.WARNING) and "table 100" in ruled.what
    backup.ip(f"rule del pref 100 from {SERVICE} lookup 100")
    backup.ip("rule add pref 100 from 10.77.1.0/24 lookup 100")
    with backup.server.entered():
        assert not backup.check.before_start(0.0)
    backup.ip("route del 10.77.0.0/24 dev eth0")
    with backup.server.entered():
        (lost,) = backup.check.before_start(0.0)
    assert (lost.code, lost.weight) == (NO_WAY, Weight.UNPROTECTED)

"""The service address on hosts as they are: others take it away, have it too, or would answer for it elsewhere."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_failover.core.concerns import Concerns
from nfq_failover.core.pair.told import Told
from nfq_failover.errors import CommandError
from nfq_failover.shell.control import ask
from nfq_failover.shell.host import rtnetlink
from nfq_failover.shell.host.address import ServiceAddress
from nfq_failover.shell.host.presence import refuse_elsewhere
from nfq_failover.shell.selfcheck.address import AddressCheck
from nfq_failover.shell.selfcheck.conflict import ConflictCheck
from nfq_failover.wire.records import OnLink
from tests.netns.daemon.test_host import SERVER, Ears, make, service_address, snapshot, socket_mac, world
from tests.support.daemon_world import daemon_world
from tests.support.namespaces import CLIENT, SERVICE, Namespace

pytestmark = pytest.mark.netns

__all__ = ["world"]  # a fixture

World = tuple[Namespace, Namespace, Ears]
STRANGER = "02:00:00:00:00:66"


def until(fact: Callable[[], bool], seconds: float = 5.0) -> None:
    stop = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < stop
        time.sleep(0.01)


def codes(host: ServiceAddress) -> set[str]:
    """What the self-check says."""
    now = time.monotonic()
    return {concern.code for concern in AddressCheck(host).run(now)}


def end(host: ServiceAddress) -> None:
    host.remove_address()
    host.restore()


# ---------------------------------------------------------------------------------------------- who is answered


def test_no_other_interface_answers_whenever_it_appears_and_in_either_role(world: World, tmp_path: Path) -> None:
    client, server, ears = world
    before = snapshot(server)
    with server.entered():
        host = make(server, tmp_path / "host.json")
        server.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", client.name)
        server.run("ip", "link", "set", "eth1", "up")
        server.run("ip", "address", "add", "10.77.0.13/24", "dev", "eth1")
        client.run("ip", "link", "set", "eth1", "up")
        second = Ears(client, "eth1")
        second.answers("10.77.0.13")  # the link is up
        assert second.answers("10.77.0.13") and not second.answers(SERVICE)
        host.own_address(True, 0, time.monotonic())
        assert ears.answers(SERVICE) and not second.answers(SERVICE)
        server.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=0")  # sysctl --system, say
        assert second.answers(SERVICE)
        assert "arp-settings-changed" in codes(host)
        assert not second.answers(SERVICE) and ears.answers(SERVICE)
        second.socket.close()
        server.run("ip", "link", "delete", "eth1")
        end(host)
    assert snapshot(server) == before


def test_a_host_without_a_free_descriptor_is_heard_all_the_same(world: World, tmp_path: Path) -> None:
    _, server, ears = world
    with server.entered():
        host = make(server, tmp_path / "host.json")
        held = []
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, limits[1]))  # noqa: PTH208
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.dup(0))
            host.own_address(True, 1, time.monotonic())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in held:
                os.close(fd)
        assert ears.answers(SERVICE)
        end(host)


def test_two_services_of_one_host_in_opposite_roles(world: World, tmp_path: Path) -> None:
    _, server, ears = world
    before = snapshot(server)
    with server.entered():
        serving, silent = (service_address(tmp_path / f"{user}.json", user=user) for user in ("one", "two"))
        silent.service, silent._packed = "10.77.0.200", socket.inet_aton("10.77.0.200")
        silent._change = lambda add: ""
        for host in (serving, silent):
            host.prepare()
        server.run("ip", "address", "add", "10.77.0.200/32", "dev", "lo")
        serving.add_address()
        serving.own_address(True, 0, time.monotonic())
        silent.own_address(False, 0, time.monotonic())
        assert ears.answers(SERVICE) and not ears.answers("10.77.0.200")
        end(serving)
        assert not ears.answers("10.77.0.200"), "what the other one needs was put back"
        server.run("ip", "address", "delete", "10.77.0.200/32", "dev", "lo")
        end(silent)
    assert snapshot(server) == before


# ---------------------------------------------------------------------------------------------- taken away


def test_what_is_taken_away_is_put_back_at_once_and_said(world: World, tmp_path: Path) -> None:
    _, server, ears = world
    with server.entered():
        host = make(server, tmp_path / "host.json")
        changes = rtnetlink.Changes()
        try:
            host.own_address(True, 0, time.monotonic())
            assert codes(host) == set()
            for command in (
                f"ip address delete {SERVICE}/32 dev lo",
                f"ip address delete {SERVICE}/32 dev eth0",
                f"ip address flush dev lo to {SERVICE}; ip address flush dev eth0 to {SERVICE}",
                "ip link set lo down",
            ):
                changes.read()
                server.run("sh", "-c", command)
                assert changes.read(), "the kernel has said nothing"
                host.repair(time.monotonic())
                assert ears.answers(SERVICE), command
                assert {place.label for place in _places(host)} == {"lo", "eth0:nfqf"}
            assert codes(host) == {"address-taken-away"}
        finally:
            changes.close()
            end(host)


def _places(host: ServiceAddress) -> list[rtnetlink.Address]:
    return [address for address in rtnetlink.addresses() if address.local == socket.inet_aton(host.service)]


def test_one_that_is_not_ours_to_manage_is_missed_aloud_and_left_alone(world: World, tmp_path: Path) -> None:
    _, server, _ = world
    server.run("ip", "address", "add", f"{SERVICE}/32", "dev", "lo")
    with server.entered():
        host = service_address(tmp_path / "host.json")
        host.prepare()
        try:
            assert codes(host) == set()
            server.run("ip", "address", "delete", f"{SERVICE}/32", "dev", "lo")
            assert codes(host) == {"address-missing"}
            assert not host.has_address()
        finally:
            end(host)


def test_somebody_who_takes_it_away_each_time_is_not_fought_without_end(world: World, tmp_path: Path) -> None:
    _, server, _ = world
    with server.entered():
        host = make(server, tmp_path / "host.json")
        try:
            now = time.monotonic()
            for _ in range(40):
                server.run("ip", "address", "flush", "dev", "lo", "to", SERVICE)
                host.repair(now)
            assert len(host.repairs) == 5
            assert {concern.code for concern in AddressCheck(host).run(now)} == {
                "address-missing",
                "address-taken-away",
            }
            host.repair(now + 1.0)
            assert host.has_address()
        finally:
            end(host)


def test_a_host_that_changes_all_the_time_is_looked_at_now_and_then(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, server, _ = world
    with server.entered():
        host = make(server, tmp_path / "host.json")
        try:
            looks: list[float] = []
            monkeypatch.setattr(host, "repair", looks.append)
            for tick in range(1000):
                host.changed(100.0 + tick / 1000)
            assert looks[:3] == [100.0, 100.001, 100.002], "at once"
            assert 10 <= len(looks) <= 20
        finally:
            end(host)


def test_an_interface_that_is_made_anew_is_followed(world: World, tmp_path: Path) -> None:
    client, server, ears = world
    with server.entered():
        host = make(server, tmp_path / "host.json")
        try:
            host.own_address(True, 1, time.monotonic())
            server.run("ip", "link", "delete", "eth0")
            assert "interface-missing" in codes(host)
            server.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", client.name)
            for namespace, address in ((server, SERVER), (client, CLIENT)):
                namespace.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
                namespace.run("ip", "link", "set", "eth0", "up")
            host.repair(time.monotonic())
            assert host.reopened == 1 and host.announcer.sent == 1, (
                "its MAC address is a new one: clients must learn it"
            )
            ears.socket.close()
            anew = Ears(client)
            until(lambda: anew.answers(SERVICE))
            host.neighbourhood.announce()
            assert [frame for frame in anew.heard(0.1) if frame[3] == SERVICE], "it speaks on the new one"
            anew.socket.close()
        finally:
            end(host)


# ---------------------------------------------------------------------------------------------- somebody else has it


def test_a_host_that_has_it_on_its_interface_is_refused_with_the_cure(world: World, tmp_path: Path) -> None:
    _, server, _ = world
    server.run("ip", "address", "add", f"{SERVICE}/24", "dev", "eth0")
    with server.entered():
        with pytest.raises(CommandError, match=rf"ip addr del {SERVICE}/24 dev eth0"):
            refuse_elsewhere(SERVICE, "eth0")
        server.run("ip", "address", "delete", f"{SERVICE}/24", "dev", "eth0")
        refuse_elsewhere(SERVICE, "eth0")
        host = make(server, tmp_path / "host.json")
        try:
            host.own_address(True, 0, time.monotonic())
            refuse_elsewhere(SERVICE, "eth0")  # what we have put there ourselves
            server.run("ip", "address", "add", f"{SERVICE}/24", "dev", "eth0")
            assert codes(host) == {"address-elsewhere"}
            server.run("ip", "address", "delete", f"{SERVICE}/24", "dev", "eth0")
            assert codes(host) == set()
        finally:
            end(host)


def test_a_third_machine_is_found_before_the_start_and_while_we_serve(world: World, tmp_path: Path) -> None:
    client, server, ears = world
    client.run("ip", "address", "add", "10.77.0.3/24", "dev", "eth0")  # the peer, whose MAC is the client's
    client.run("ip", "link", "add", "m0", "link", "eth0", "address", STRANGER, "type", "macvlan", "mode", "bridge")
    client.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
    client.run("ip", "link", "set", "m0", "up")
    with server.entered():
        host = service_address(tmp_path / "host.json")
        host.neighbourhood._peers.add(socket.inet_aton("10.77.0.3"))
        host.prepare()
        check = ConflictCheck(host.neighbourhood, SERVICE)
        try:
            host.refuse_if_taken()  # nobody has it
            client.run("ip", "address", "add", f"{SERVICE}/32", "dev", "eth0")
            host.refuse_if_taken()  # the peer has it
            client.run("ip", "address", "delete", f"{SERVICE}/32", "dev", "eth0")
            client.run("ip", "address", "add", f"{SERVICE}/32", "dev", "m0")
            with pytest.raises(CommandError, match=STRANGER):
                host.refuse_if_taken()
            host.own_address(True, 0, time.monotonic())
            ears.heard(0.05)
            stop = time.monotonic() + 10
            while not check.run(time.monotonic()):
                assert time.monotonic() < stop
                host.tick(time.monotonic())
                time.sleep(0.02)
            (concern,) = check.run(time.monotonic())
            assert concern.code == "address-conflict" and STRANGER in concern.what
            announced = [frame for frame in ears.heard(0.1) if frame[3:] == (SERVICE, SERVICE, b"\xff" * 6)]
            assert len(announced) == 2, "the address is defended: a request and a reply"
        finally:
            end(host)


# ---------------------------------------------------------------------------------------------- clients learn


@pytest.mark.parametrize("tell", [True, False])
def test_a_client_that_ignores_announcements_learns_by_an_ordinary_request(
    world: World, tmp_path: Path, tell: bool
) -> None:
    client, server, _ = world
    client.run("ip", "neighbour", "replace", SERVICE, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "reachable")
    client.run("nft", "add table arp deaf { chain in { type filter hook input priority 0; }; }")
    client.run("nft", "add rule arp deaf in arp saddr ip", SERVICE, "arp daddr ip", SERVICE, "drop")
    with server.entered():
        host = make(server, tmp_path / "host.json")
        try:
            began = time.monotonic()
            host.own_address(True, 5, began)
            if tell:
                host.neighbourhood.tell([socket.inet_aton(CLIENT)], began)
            while time.monotonic() < began + 0.3:
                host.tick(time.monotonic())
                time.sleep(0.005)
            mac = server.run("cat", "/sys/class/net/eth0/address").strip()
            assert (mac in client.run("ip", "neighbour", "show", SERVICE)) is tell
            described = host.neighbourhood.describe()
            assert described == {"neighbours_asked": int(tell), "neighbours_answered": int(tell)}
        finally:
            end(host)


def test_a_client_that_is_deaf_to_broadcasts_is_known_from_its_own_question_or_from_the_peer(
    world: World, tmp_path: Path
) -> None:
    client, server, ears = world
    clients = [socket.inet_aton(CLIENT)]
    server.run("ip", "neighbour", "flush", "dev", "eth0")  # what the test's wires have set
    server.run("ip", "neighbour", "delete", CLIENT, "dev", "eth0")
    client.run("ip", "neighbour", "replace", SERVICE, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "reachable")
    client.run("nft", "add table netdev deaf { chain in { type filter hook ingress device eth0 priority 0; }; }")
    client.run("nft", "add rule netdev deaf in ether daddr ff:ff:ff:ff:ff:ff ether type arp drop")
    known = Concerns(lambda *_, **__: None)
    with server.entered():
        mac = socket_mac().hex(":")
        for told in (False, True):
            host = make(server, tmp_path / "host.json")
            peer = Told("b", known)
            try:
                if told:
                    peer.take(OnLink(bytes(6), ((clients[0], ears.mac),)), 0.0)
                else:
                    ears.ask(SERVICE)  # to the primary; we hear it, too
                    time.sleep(0.05)
                began = time.monotonic()
                host.tick(began)
                host.neighbourhood.follow(clients, [peer])
                host.tick(began + 0.3)
                assert ears.mac.hex(":") in server.run("ip", "neighbour", "show", CLIENT)
                found = host.neighbourhood.follow(clients, [peer])
                assert found is not None and found.neighbours == ((clients[0], ears.mac),)
                host.own_address(True, 5, began)
                host.neighbourhood.tell(clients, began)
                host.tick(began + 0.6)
                until(lambda: mac in client.run("ip", "neighbour", "show", SERVICE))
            finally:
                end(host)
            server.run("ip", "neighbour", "delete", CLIENT, "dev", "eth0")
            client.run(
                *("ip", "neighbour", "replace", SERVICE, "lladdr", "02:00:00:00:00:99", "dev", "eth0"),
                *("nud", "reachable"),
            )


def test_a_claim_is_refused_while_another_machine_answers(tmp_path: Path) -> None:
    with daemon_world(tmp_path) as world:
        client = world.client
        client.run("ip", "link", "add", "m0", "link", "eth0", "address", STRANGER, "type", "macvlan", "mode", "bridge")
        client.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
        client.run("ip", "link", "set", "m0", "up")
        client.run("ip", "address", "add", f"{SERVICE}/32", "dev", "m0")
        _, log = world.ready(world.config())  # it may be the peer, which does not answer for its own address
        assert "somebody has the service address" in log.read_text()
        with pytest.raises(CommandError, match=rf"{STRANGER} still answers for {SERVICE}"):
            ask(world.state / "control.sock", "claim")
        assert world.status()["membership"] == "waiting"
        client.run("ip", "link", "delete", "m0")
        assert ask(world.state / "control.sock", "claim")["before"] == "waiting"
        until(lambda: world.status()["role"] == "primary")

"""The service address on a real kernel: who answers ARP, what is announced, and that everything is put back."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.shell.host.address import ServiceAddress
from nfq_failover.shell.host.arp_settings import ArpSettings
from nfq_failover.shell.host.link import link_up
from tests.support.namespaces import CLIENT, SERVICE, Namespace, pair

pytestmark = pytest.mark.netns

SERVER = "10.77.0.2"
TAP_MAC = "01:00:5e:4d:00:64"
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ETH_P_ARP, _ETH_P_ALL = 0x0806, 0x0003


class Ears:
    """ARP as the client's interface hears it."""

    def __init__(self, client: Namespace, interface: str = "eth0") -> None:
        with client.entered():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP))
            self.socket.bind((interface, _ETH_P_ARP))
        self.mac = self.socket.getsockname()[4]

    def ask(self, address: str) -> None:
        """Who has it?"""
        body = _ARP.pack(1, 0x0800, 6, 4, 1, self.mac, socket.inet_aton(CLIENT), bytes(6), socket.inet_aton(address))
        self.socket.send(b"\xff" * 6 + self.mac + struct.pack("!H", _ETH_P_ARP) + body)

    def heard(self, seconds: float) -> list[tuple[float, int, bytes, str, str, bytes]]:
        """(time, operation, sender's MAC, sender, target, frame's destination) of all ARP frames of a while."""
        frames = []
        stop = time.monotonic() + seconds
        while (left := stop - time.monotonic()) > 0:
            self.socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                data = self.socket.recv(2000)
                _, _, _, _, operation, mac, sender, _, target = _ARP.unpack_from(data, 14)
                frames.append(
                    (time.monotonic(), operation, mac, socket.inet_ntoa(sender), socket.inet_ntoa(target), data[:6])
                )
        return frames

    def answers(self, address: str) -> bool:
        """Whether anybody answers for the address; unlike a wait for nothing, fast if somebody does."""
        self.ask(address)
        stop = time.monotonic() + 1.0
        while time.monotonic() < stop:
            if any(operation == 2 and sender == address for _, operation, _, sender, _, _ in self.heard(0.05)):
                return True
        return False


@pytest.fixture
def world() -> Iterator[tuple[Namespace, Namespace, Ears]]:
    with pair(server_address=SERVER) as (client, server):
        server.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")  # its addresses come and settle late
        stop = time.monotonic() + 10
        while " UP " not in server.run("ip", "-br", "link", "show", "dev", "eth0"):
            assert time.monotonic() < stop, "no carrier"
            time.sleep(0.01)
        ears = Ears(client)
        try:
            yield client, server, ears
        finally:
            ears.socket.close()


def snapshot(server: Namespace) -> dict[str, str]:
    """What a daemon must leave as it was."""
    settings = server.run("sh", "-c", "grep -H . /proc/sys/net/ipv4/conf/*/arp_*")
    return {
        "sysctls": settings,
        "addresses": server.run("ip", "-br", "address"),
        "memberships": server.run("ip", "maddress", "show", "dev", "eth0"),
        "packet sockets": server.run("cat", "/proc/net/packet").splitlines()[0],
    }


def service_address(record: Path, tap: str = "clone", interface: str = "eth0", user: str = "one") -> ServiceAddress:
    shared = os.open(record.with_name("arp.json"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    settings = ArpSettings(shared, user, interface)
    return ServiceAddress(SERVICE, interface, tap, TAP_MAC if tap == "multicast" else None, record, settings)


def make(server: Namespace, record: Path, tap: str = "clone") -> ServiceAddress:
    del server
    host = service_address(record, tap)
    host.prepare()
    host.add_address()
    return host


def test_clone_tap_only_the_one_that_serves_answers_and_all_is_put_back(
    world: tuple[Namespace, Namespace, Ears], tmp_path: Path
) -> None:
    _, server, ears = world
    before = snapshot(server)
    with server.entered():
        host = make(server, tmp_path / "host.json")
        assert host.has_address()
        assert not ears.answers(SERVICE)
        assert ears.answers(SERVER)  # the host's own address stays reachable
        host.own_address(True, 0, time.monotonic())
        assert ears.answers(SERVICE)
        host.own_address(False, 0, time.monotonic())
        assert not ears.answers(SERVICE)
        host.remove_address()
        host.restore()
    assert snapshot(server) == before
    assert not (tmp_path / "host.json").exists()


def test_the_announcement_is_both_forms_broadcast_and_repeated(
    world: tuple[Namespace, Namespace, Ears], tmp_path: Path
) -> None:
    _, server, ears = world
    with server.entered():
        mac = socket_mac()
        host = make(server, tmp_path / "host.json")
        try:
            began = time.monotonic()
            host.own_address(True, 4, began)
            frames = []
            while time.monotonic() < began + 0.8:
                host.tick(time.monotonic())
                frames += ears.heard(0.01)
        finally:
            host.remove_address()
            host.restore()
    announcements = [frame for frame in frames if frame[3] == SERVICE]
    assert [operation for _, operation, *_ in announcements] == [1, 2] * 4
    assert all(frame[2:] == (mac, SERVICE, SERVICE, b"\xff" * 6) for frame in announcements)
    assert announcements[0][0] - began < 0.2
    assert announcements[-1][0] - began > 0.45  # the last ones are late on purpose


def socket_mac() -> bytes:
    """The MAC address of eth0 in the namespace of this thread."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as probe:
        probe.bind(("eth0", 0))
        mac: bytes = probe.getsockname()[4]
        return mac


def test_an_announcement_moves_a_client_from_the_dead_host_to_us(
    world: tuple[Namespace, Namespace, Ears], tmp_path: Path
) -> None:
    client, server, _ = world
    client.run("ip", "neighbour", "replace", SERVICE, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "stale")
    with server.entered():
        mac = ":".join(f"{byte:02x}" for byte in socket_mac())
        host = make(server, tmp_path / "host.json")
        try:
            host.own_address(True, 5, time.monotonic())
            stop = time.monotonic() + 5
            while mac not in client.run("ip", "neighbour", "show", SERVICE):
                assert time.monotonic() < stop, client.run("ip", "neighbour", "show", SERVICE)
                host.tick(time.monotonic())
        finally:
            host.remove_address()
            host.restore()


def test_a_client_that_has_missed_all_the_first_announcements_learns_later(
    world: tuple[Namespace, Namespace, Ears], tmp_path: Path
) -> None:
    """It hears no ARP for longer than they last, and goes on sending to the dead host; a later one reaches it."""
    client, server, _ = world
    # Permanent but for announcements: no probe of its own may help it.
    client.run("ip", "neighbour", "replace", SERVICE, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "reachable")
    client.run("sh", "-c", "echo 600000 >/proc/sys/net/ipv4/neigh/eth0/base_reachable_time_ms")
    client.run("nft", "add table arp deaf { chain in { type filter hook input priority 0; policy drop; }; }")
    with server.entered():
        mac = ":".join(f"{byte:02x}" for byte in socket_mac())
        host = make(server, tmp_path / "host.json")
        try:
            began = time.monotonic()
            host.own_address(True, 5, began)
            while host.announcer.sent < 5:
                assert time.monotonic() < began + 10
                host.tick(time.monotonic())
                time.sleep(0.005)
            assert mac not in client.run("ip", "neighbour", "show", SERVICE)
            client.run("nft", "delete table arp deaf")
            while mac not in client.run("ip", "neighbour", "show", SERVICE):
                assert time.monotonic() < began + 20, client.run("ip", "neighbour", "show", SERVICE)
                host.tick(time.monotonic())
                time.sleep(0.01)
            assert host.announcer.sent > 5 and host.announcer.waiting
            host.heard(time.monotonic())
            assert not host.announcer.waiting
        finally:
            host.remove_address()
            host.restore()


def test_multicast_tap_nobody_ever_answers_and_the_group_is_joined(
    world: tuple[Namespace, Namespace, Ears], tmp_path: Path
) -> None:
    _, server, ears = world
    before = snapshot(server)
    with server.entered():
        host = make(server, tmp_path / "host.json", "multicast")
        assert TAP_MAC in server.run("ip", "maddress", "show", "dev", "eth0")
        host.own_address(True, 5, time.monotonic())
        host.tick(time.monotonic() + 10)
        assert not ears.answers(SERVICE)
        assert not [frame for frame in ears.heard(0.2) if frame[3] == SERVICE]
        host.remove_address()
        host.restore()
    assert snapshot(server) == before


def test_the_next_life_puts_back_what_a_killed_one_left(
    world: tuple[Namespace, Namespace, Ears], tmp_path: Path
) -> None:
    _, server, ears = world
    before = snapshot(server)
    record = tmp_path / "host.json"
    with server.entered():
        killed = make(server, record)
        killed.own_address(True, 0, time.monotonic())  # it was serving, and dies without a word
        killed._close()
        killed.settings.close()
        assert snapshot(server) != before
        host = make(server, record)
        assert not ears.answers(SERVICE)
        host.remove_address()
        host.restore()
    assert snapshot(server) == before


def test_a_record_of_an_earlier_boot_counts_for_nothing(
    world: tuple[Namespace, Namespace, Ears], tmp_path: Path
) -> None:
    _, server, _ = world
    record = tmp_path / "host.json"
    record.write_text('{"life": ["another", "boot"], "sysctls": {}, "address": true}')
    server.run("ip", "address", "add", f"{SERVICE}/32", "dev", "lo")
    before = snapshot(server)
    with server.entered():
        host = make(server, record)
        host.remove_address()
        host.restore()
    assert snapshot(server) == before, "the operator's address was taken away"


def test_a_host_that_could_never_answer_is_refused(world: tuple[Namespace, Namespace, Ears], tmp_path: Path) -> None:
    _, server, _ = world
    server.run("sh", "-c", "echo 8 >/proc/sys/net/ipv4/conf/all/arp_ignore")
    with server.entered():
        host = service_address(tmp_path / "host.json")
        with pytest.raises(CommandError, match=r"all\.arp_ignore"):
            host.prepare()
        host.restore()


def test_an_unknown_interface_is_refused_with_advice(world: tuple[Namespace, Namespace, Ears], tmp_path: Path) -> None:
    _, server, _ = world
    with server.entered(), pytest.raises(CommandError, match="no interface 'eth7'"):
        service_address(tmp_path / "host.json", interface="eth7").prepare()


def test_the_interface_may_vanish_while_we_own_the_address(
    world: tuple[Namespace, Namespace, Ears], tmp_path: Path
) -> None:
    _, server, _ = world
    with server.entered():
        host = make(server, tmp_path / "host.json")
        host.own_address(True, 3, time.monotonic())
        server.run("ip", "link", "delete", "eth0")
        host.tick(time.monotonic() + 10)
        host.remove_address()
        host.restore()
        assert not host.has_address()


def test_own_link(world: tuple[Namespace, Namespace, Ears]) -> None:
    client, server, _ = world
    with server.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        assert link_up("eth0", s) == (True, "")
        client.run("ip", "link", "set", "eth0", "down")
        assert link_up("eth0", s) == (False, "eth0 has no carrier")
        server.run("ip", "link", "set", "eth0", "down")
        assert link_up("eth0", s) == (False, "eth0 is down")
        ok, why = link_up("eth7", s)
        assert (ok, os.strerror(19) in why) == (False, True)

"""What the rules do to packets, with nobody at the queues: who is silent, who is heard, who is cloned to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.constants import ACK, PSH, SYN
from nfq_failover.core.events import SendProbe
from nfq_failover.shell.host.tap_probe import TapProbes
from nfq_failover.shell.packets.inject import Injector
from nfq_failover.shell.selfcheck.disk import room_bytes
from nfq_failover.wire.build import build_segment
from tests.support.namespaces import CLIENT, SERVICE, Namespace
from tests.support.rules_world import MARK, MULTICAST_MAC, VARIANTS, RulesHost, RulesWorld, Sniffer, segment, world

pytestmark = pytest.mark.netns

SO_RCVBUFFORCE = 33  # linux/asm-generic/socket.h


@pytest.fixture(params=VARIANTS)
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RulesWorld]:
    with world(request.param, tmp_path) as built:
        yield built


def test_a_backup_is_never_heard(net: RulesWorld) -> None:
    net.b.install("backup")
    net.b.serve()
    net.point_to(net.b.mac)
    with Sniffer(net.client) as heard, net.b.listener():
        net.provoke()
        assert heard.from_service() == []


@pytest.mark.parametrize("guard", ["tc", "nft"])
def test_a_backup_without_rules_is_kept_silent_by_the_guard(net: RulesWorld, guard: str) -> None:
    net.b.install("backup", "--guard", guard)
    net.b.serve()
    net.point_to(net.b.mac)
    with Sniffer(net.client) as heard, net.b.listener():
        for table in ("raw", "mangle", "filter"):
            net.b.iptables("-t", table, "-F")
        net.provoke()
        assert heard.from_service() == []
        net.b.flush()
        net.provoke()
        assert (heard.from_service() == []) == (guard == "tc"), "nft's guard goes with 'nft flush ruleset', tc's stays"
        assert "the silence guard" in net.b.rules("check").stderr or guard == "tc"
        if guard == "tc":
            net.b.namespace.run("tc", "qdisc", "del", "dev", "eth0", "clsact")
            net.provoke()
            assert heard.from_service() != [], "without rules and guard the host must be audible, or this test is deaf"


@pytest.mark.parametrize("role", ["backup", "primary", "alone"])
def test_the_daemons_packets_pass_whatever_their_mark_and_nobody_elses_do(net: RulesWorld, role: str) -> None:
    """Here another program marks all that the service says: with its own mark, or with ours."""
    net.b.install(role, peer=net.a if role == "primary" else None)
    net.b.serve()
    for value in ("1", f"{MARK:#x}", "0xffffffff"):
        net.b.iptables("-t", "mangle", "-I", "OUTPUT", "-p", "tcp", "-j", "MARK", "--set-mark", value)
        with Sniffer(net.client) as heard:
            with net.b.namespace.entered(), contextlib.closing(Injector(0)) as daemon:
                daemon.send(bytearray(segment_of_the_daemon()))
            assert len(heard.from_service()) == 1, value
            with net.b.namespace.entered(), contextlib.closing(foreign_socket()) as other:
                other.sendto(segment_of_the_daemon(), (CLIENT, 0))  # as the server would
            assert len(heard.from_service()) == int(role == "alone"), value
        net.b.iptables("-t", "mangle", "-D", "OUTPUT", "1")


def segment_of_the_daemon() -> bytes:
    """A packet of the service to the client, with its IP header."""
    ends = (socket.inet_aton(SERVICE), 80), (socket.inet_aton(CLIENT), 30000)
    return bytes(build_segment(*ends, 1, 1, ACK, 100))


def foreign_socket() -> socket.socket:
    """A raw socket of another program, which sets our mark itself."""
    made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    return made


def test_the_guard_lets_marked_packets_and_arp_out(net: RulesWorld) -> None:
    net.b.install("backup")
    net.b.iptables("-t", "mangle", "-F")
    net.b.serve()
    with Sniffer(net.client) as heard, net.b.namespace.entered():
        for mark, count in ((0, 0), (MARK, 1), (MARK | 5, 1)):
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as out:
                out.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                out.bind((SERVICE, 0))
                out.sendto(segment(SERVICE, CLIENT, 80, 30000, 1, ACK), (CLIENT, 0))
            assert len(heard.from_service()) == count
    with net.client.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as arp:
        arp.bind(("eth0", 0x0806))
        arp.settimeout(2)
        with net.b.namespace.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind(("eth0", 0))
            service, source = socket.inet_aton(SERVICE), bytes.fromhex(net.b.mac.replace(":", ""))
            body = bytes.fromhex("0001080006040001") + source + service + bytes(6) + service
            out.send(b"\xff" * 6 + source + b"\x08\x06" + body)
        assert arp.recv(100)[28:32] == service


def test_a_protected_primary_is_silent_without_its_daemon(net: RulesWorld) -> None:
    net.a.serve()
    net.a.install("primary", peer=net.b)
    net.point_to(net.a.mac)
    with Sniffer(net.client) as heard, net.a.listener():
        net.send(SYN, 80, count=3)
        net.send(ACK | PSH, 7050, count=3)
        assert heard.from_service() == []
        net.a.flush()
        net.send(SYN, 80, count=3)
        net.send(ACK | PSH, 7050, count=3)
        assert heard.from_service() == [], "the guard stands when the rules are flushed"
        net.ping()
        net.send(SYN, 5000)
        kinds = {packet[9] for packet in heard.from_service()}
        assert kinds == {1, 6}, "the rest of the host is free: a ping's answer, a RST from another port"


def test_only_syns_go_to_the_primarys_in_queue(net: RulesWorld) -> None:
    net.a.serve()
    net.point_to(net.a.mac)
    with net.a.listener() as server, net.client.entered():
        with socket.create_connection((SERVICE, 80), timeout=2) as client:
            accepted, _ = server.accept()
            with accepted:
                net.a.install("primary", peer=net.b)
                client.sendall(b"open before the rules")
                accepted.settimeout(2)
                assert accepted.recv(100) == b"open before the rules", "data goes straight to the server"
                net.send(SYN, 80, count=2, source_port=31000)
                server.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    server.accept()
                lines = net.a.rules("show").stdout.splitlines()
                queued = [line for line in lines if "--queue-num 7760" in line and "icmp" not in line]
                assert [int(line.split()[0]) for line in queued] == [2]
                net.a.flush()
        with pytest.raises(TimeoutError):
            socket.create_connection((SERVICE, 80), timeout=0.2)


def test_alone_serves_without_its_daemon_except_for_inherited_connections(net: RulesWorld, tmp_path: Path) -> None:
    inherited = tmp_path / "inherited"
    inherited.write_text(f"{CLIENT} 40001 80\n")
    net.a.serve()
    net.a.install("alone", "--inherited", str(inherited), peer=net.b)
    net.point_to(net.a.mac)
    with net.a.listener(), net.a.listener(7050), Sniffer(net.client) as heard:
        assert net.connects(80)
        assert net.connects(7050)
        assert net.connects(80, source_port=40002)
        heard.packets()
        assert not net.connects(80, source_port=40001)
        assert heard.from_service() == []
        assert net.connects(7050, source_port=40001), "another port of the same client is another connection"


def test_many_inherited_connections(net: RulesWorld, tmp_path: Path) -> None:
    inherited = tmp_path / "inherited"
    inherited.write_text("".join(f"{CLIENT} {port} 80\n" for port in range(33000, 33000 + 400 * 61, 61)))
    net.a.serve()
    net.a.install("alone", "--inherited", str(inherited), peer=net.b)
    net.point_to(net.a.mac)
    with net.a.listener():
        for port in (33000, 33000 + 200 * 61, 33000 + 399 * 61):
            assert not net.connects(80, source_port=port, timeout=0.1)
            assert net.connects(80, source_port=port + 1)
    assert record_bytes(net.a) <= room_bytes(400), "the self-check asks for less room than the record takes"
    net.a.install("alone", peer=net.b)
    assert not [line for line in net.a.saved() if "-I6" in line], "chains no longer needed are gone"


def test_there_is_room_for_the_record_of_many_ports(net: RulesWorld) -> None:
    for role in ("backup", "primary", "alone"):
        net.a.install(role, "--ports", ",".join(str(port) for port in range(8000, 8200, 2)), peer=net.b)
        assert 16384 < record_bytes(net.a) <= room_bytes(0), role


def record_bytes(host: RulesHost) -> int:
    """How much room a disk must have for the record of the rules, beside the one that is there."""
    files = list((host.directory / "default").iterdir())
    assert {file.name for file in files} >= {"state", "wanted", "list", "guard"}
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in files)


def test_no_role_change_lets_a_packet_slip(net: RulesWorld) -> None:
    """Without the guard, so that the queue rules alone must be exchanged without a gap."""
    net.b.install("backup", "--guard", "none")
    net.b.serve()
    net.point_to(net.b.mac)
    with Sniffer(net.client) as heard, net.b.listener():
        with net.client.entered():
            out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        probe = segment(CLIENT, SERVICE, 30000, 80, 1, ACK | PSH)
        with out:
            for role in ("primary", "backup") * 3:
                peer = net.a if role == "primary" else None
                base = ["--service", SERVICE, "--ports", "80,7000:7099", "--interface", "eth0", "--guard", "none"]
                if peer is not None:
                    base += ["--peer", peer.address, "--peer-mac", peer.mac]
                with net.b.start("install", "--role", role, *base) as process:
                    while process.poll() is None:
                        out.sendto(probe, (SERVICE, 0))
                        time.sleep(0.0005)
                assert process.returncode == 0
        time.sleep(0.1)
        assert heard.from_service() == []
        net.b.flush()
        net.send(ACK | PSH, 80)
        assert len(heard.from_service()) == 1, "without rules the host answers (RST), or this test is deaf"


def test_no_role_change_costs_the_host_a_packet_of_its_own(net: RulesWorld) -> None:
    """To make or to delete a clsact qdisc stops the interface's transmit queue: what leaves then is lost."""
    net.b.install("backup")
    with numbered(net.b, net.client) as nothing:
        time.sleep(0.2)
    with numbered(net.b, net.client) as lost:
        for role in ("alone", "primary", "alone", "backup", "alone", "primary", "backup"):
            net.b.install(role, peer=net.a)
            time.sleep(0.02)
    assert (nothing, lost) == ([], [])
    # With what is lost otherwise, or this test is deaf.
    net.b.namespace.run("tc", "qdisc", "del", "dev", "eth0", "clsact")
    with numbered(net.b, net.client) as lost:
        for what in ("add", "del") * 8:
            net.b.namespace.run("tc", "qdisc", what, "dev", "eth0", "clsact")
            time.sleep(0.02)
    assert lost


@contextlib.contextmanager
def numbered(source: RulesHost, to: Namespace) -> Iterator[list[int]]:
    """The host sends a datagram every 0.2 ms. The list has the numbers of those that were lost, at the end."""
    lost: list[int] = []
    with to.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with source.namespace.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        receiver.bind((CLIENT, 0))
        receiver.setblocking(False)
        sender.bind((source.address, 0))
        sender.connect(receiver.getsockname())
        done = threading.Event()
        sent = 0

        def send() -> None:
            nonlocal sent
            while not done.wait(0.0002):
                sender.send(sent.to_bytes(8, "big"))
                sent += 1

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield lost
        finally:
            done.set()
            thread.join()
        time.sleep(0.1)
        came = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                came.add(int.from_bytes(receiver.recv(8), "big"))
        assert sent > 500
        lost += sorted(set(range(sent)) - came)


def test_each_packet_is_cloned_once_and_never_back(net: RulesWorld) -> None:
    net.a.serve()
    net.b.serve()
    net.a.install("primary", peer=net.b)
    net.b.install("primary", peer=net.a)
    net.point_to(net.a.mac)
    with Sniffer(net.a.namespace) as at_a, Sniffer(net.b.namespace) as at_b:
        net.send(ACK | PSH, 80, count=20)
        net.send(ACK | PSH, 7099, count=20)
        net.send(ACK | PSH, 5000, count=20)
        time.sleep(0.1)
        clones = [packet for packet in at_b.to_service() if packet[8] == 63]  # TEE counts as a hop; the switch floods
        assert len(clones) == 40, "one clone of each packet for the service's ports"
        assert len(at_a.to_service()) == 60, "and none comes back, although b clones too"
        rule = ("-m", "mac", "--mac-source", net.a.mac, "-j", "RETURN")
        net.b.iptables("-t", "mangle", "-D", "NFQF-default-TAP", *rule)
        net.send(ACK | PSH, 80)
        assert len(at_a.to_service()) == 2, "without its MAC rule b clones back (and a, which has its own, ends it)"


def test_a_probe_of_the_tap_comes_back_to_its_sender_once_and_nobody_answers_it(net: RulesWorld) -> None:
    net.a.serve()
    net.b.serve()
    net.a.install("primary", peer=net.b)
    net.b.install("primary", peer=net.a)  # the worst case: both clone
    probes = TapProbes("eth0", net.b.address, (socket.inet_aton(SERVICE), 80), None)
    hardware = bytes.fromhex(net.a.mac.replace(":", ""))
    with Sniffer(net.a.namespace) as at_a, Sniffer(net.b.namespace) as at_b, net.a.listener():
        with net.b.namespace.entered():
            for token in range(5):
                probes.send(SendProbe(token, hardware))
        time.sleep(0.2)
        assert [packet[8] for packet in at_a.to_service()] == [2] * 5
        assert [packet[8] for packet in at_b.to_service()] == [1] * 5
        assert at_a.from_service() == at_b.from_service() == []


def test_no_complaint_about_clones_for_a_dead_backup(net: RulesWorld) -> None:
    for setting in ("retrans_time_ms=50", "mcast_solicit=1"):
        net.a.namespace.run("sysctl", "-qw", f"net.ipv4.neigh.eth0.{setting}")
    net.a.serve()
    net.a.install("primary", "--peer", "10.77.0.9", "--peer-mac", "02:77:00:00:00:09")
    net.point_to(net.a.mac)
    with Sniffer(net.client) as heard:

        def complaints() -> int:
            net.send(ACK | PSH, 80, count=3)
            time.sleep(0.4)
            return len([packet for packet in heard.packets() if packet[9] == 1])

        assert complaints() == 0
        chain = "NFQF-default-OUT"
        text = [line.split() for line in net.a.saved() if line.startswith(f"-A {chain}") and "icmp" in line]
        assert len(text) == 2
        for words in text:
            net.a.iptables("-t", "mangle", "-D", *[word.strip('"') for word in words[1:]])
        assert complaints() > 0, "without those rules the kernel complains to the client, or this test is deaf"


@pytest.mark.parametrize("conntrack", ["notrack", "liberal"])
def test_multicast_tap(net: RulesWorld, conntrack: str) -> None:
    for host in (net.a, net.b):
        host.serve()
        host.ip("maddress", "add", MULTICAST_MAC, "dev", "eth0")
    net.point_to(MULTICAST_MAC)
    net.b.install("backup", "--tap", "multicast", "--conntrack", conntrack)
    with net.a.listener(), net.b.listener(), Sniffer(net.b.namespace) as at_b:
        assert not net.connects(80), "TCP refuses what came to a multicast MAC"
        net.a.install("alone", "--tap", "multicast", "--conntrack", conntrack)
        assert net.connects(80)
        assert len(at_b.to_service()) > 3, "the backup has seen it too"
        lines = net.b.rules("show").stdout.splitlines()
        queued = [line for line in lines if "--queue-num 7760" in line and "icmp" not in line]
        assert int(queued[0].split()[0]) > 3, "and it has gone to the queue"
        net.a.flush()
        assert not net.connects(80)


def test_notrack_keeps_the_service_out_of_connection_tracking(net: RulesWorld) -> None:
    net.a.serve()
    net.point_to(net.a.mac)
    net.a.iptables("-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
    with net.a.listener(), net.a.listener(5000):
        net.a.install("alone", peer=net.b)
        assert net.connects(80)
        assert net.connects(5000)
        tracked = net.a.namespace.run("cat", "/proc/net/nf_conntrack")
        assert "dport=5000" in tracked
        assert "dport=80 " not in tracked
        net.a.install("alone", "--conntrack", "liberal", peer=net.b)
        assert net.connects(80)
        assert "dport=80 " in net.a.namespace.run("cat", "/proc/net/nf_conntrack")


def test_the_hosts_own_traffic_and_rules_are_left_alone(net: RulesWorld) -> None:
    net.a.serve()
    net.point_to(net.a.mac)
    net.a.iptables("-A", "INPUT", "-p", "tcp", "--dport", "7001", "-j", "DROP")
    with net.a.listener(80), net.a.listener(7001), net.a.listener(5000):
        net.a.install("alone", peer=net.b)
        assert net.connects(80)
        assert not net.connects(7001), "the host's own DROP stays in force, also for a port of the service"
        net.a.install("primary", peer=net.b)
        assert not net.connects(80)
        assert net.connects(5000), "a port that is not the service's"
        with net.a.namespace.entered(), socket.create_connection((SERVICE, 80), timeout=1, source_address=(SERVICE, 0)):
            pass  # the host to its own service, over lo
        with net.client.entered():
            other = socket.create_server((CLIENT, 9000))
        with other, net.a.namespace.entered():
            socket.create_connection((CLIENT, 9000), timeout=1, source_address=(SERVICE, 0)).close()

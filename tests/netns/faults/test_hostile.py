"""Trouble from outside, through a crash: firewall rules flushed on the backup, and garbage at the sync ports."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.constants import DEFAULT_SYNC_PORT
from nfq_failover.lab import netns
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import SWITCH, TWO_HOSTS, namespace, port
from nfq_failover.wire.datagram import Header, Kind, read_header, seal
from tests.support.fault_world import CALM_MS, FaultWorld, ended_well, faultless, heard, speakers, talk
from tests.support.lab_world import eventually
from tests.support.shared_lab import each_world, shared_lab

pytestmark = [pytest.mark.netns, pytest.mark.slow]

FLUSH = "for t in raw mangle nat filter; do iptables -w -t $t -F && iptables -w -t $t -X || exit 1; done"
ROUNDS = 400
PAUSE_S = 0.005


# Without rules a replica backs its retransmissions off: by default its connection would be let go, unprotected.
PATIENT = ("replica_patience_ms = 20000",)


shared = shared_lab(
    *(Options(tap=tap, rate="100mbit", heartbeat_ms=CALM_MS, settings=PATIENT) for tap in ("clone", "multicast"))
)
world = each_world()


def our_rules(world: FaultWorld, node: str) -> int:
    """How many iptables rules of ours there are."""
    saved = world.lab.run(node, ["iptables-save"])
    return sum(line.startswith("-A") and "NFQF" in line for line in saved.stdout.splitlines())


def test_rules_flushed_on_the_backup_are_noticed_and_nothing_of_it_is_heard(world: FaultWorld, tmp_path: Path) -> None:
    primary, backup = world.lab.resolve("primary"), world.lab.resolve("backup")
    rules, said = our_rules(world, backup), len(world.log(backup))
    lost = world.ask(backup)["counters"].get("rules-lost", 0)
    with (
        talk(world) as idle,
        world.capture(tmp_path / "client.pcap") as running,
        world.start("upload", "--size", "45M") as upload,
        world.start("bulk", "--size", "45M") as bulk,
    ):
        time.sleep(0.4)
        flushed = world.lab.run(backup, ["sh", "-c", FLUSH])
        assert flushed.returncode == 0, flushed.stderr
        idle.exchange()
        assert eventually(lambda: world.ask(backup)["counters"].get("rules-lost", 0) > lost)
        assert eventually(lambda: bool(world.said(backup, said, "error", "firewall rules lost")))
        assert eventually(lambda: our_rules(world, backup) == rules)
        # What did not get through meanwhile makes the pair degraded for some seconds, and costs no protection.
        assert world.membership() == {primary: "protected", backup: "shadowing"}
        time.sleep(0.5)
        crash = world.lab.crash(primary)
        ended_well(upload)
        ended_well(bulk)
        idle.exchange()
    faultless(running)
    assert speakers(running.path) == [primary, backup]
    assert [p for p in heard(running.path) if p.node == backup and p.time < crash["time_s"]] == []


# ---------------------------------------------------------------------------------------------------------- garbage


def recorded(world: FaultWorld, node: str, count: int) -> list[bytes]:
    """Genuine datagrams of the sync channel, as they arrive at the node."""
    with netns.entered(namespace(world.lab.name, SWITCH)):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    with tap:
        tap.bind((port(node), 0))
        tap.settimeout(5)
        datagrams: list[bytes] = []
        target = socket.inet_aton(TWO_HOSTS.address(node))
        while len(datagrams) < count:
            frame = tap.recv(2048)
            if frame[12:14] != b"\x08\0" or frame[23] != socket.IPPROTO_UDP or frame[30:34] != target:
                continue
            to, length = struct.unpack_from("!HH", frame, 36)
            if to == DEFAULT_SYNC_PORT:
                datagrams.append(frame[42 : 34 + length])
    return datagrams


class Garbage:
    """Datagrams that no daemon may believe, from a third host under the peer's address."""

    def __init__(self, world: FaultWorld, genuine: dict[str, list[bytes]], seed: int) -> None:
        self._genuine = genuine
        self._draw = random.Random(seed)
        self.sent = 0
        with netns.entered(namespace(world.lab.name, TWO_HOSTS.client)):
            self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Garbage:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._raw.close()

    def _run(self) -> None:
        for _ in range(ROUNDS):
            for node in TWO_HOSTS.hosts:
                for data in self._samples(node):
                    self._send(node, data)
            self.sent += 1
            time.sleep(PAUSE_S)

    def _samples(self, node: str) -> Iterator[bytes]:
        draw, genuine = self._draw, self._draw.choice(self._genuine[node])
        yield draw.randbytes(draw.randrange(1, 1400))
        yield genuine  # recorded, said again
        yield genuine[: draw.randrange(len(genuine))]
        at = draw.randrange(len(genuine))
        yield genuine[:at] + bytes([genuine[at] ^ 1 << draw.randrange(8)]) + genuine[at + 1 :]
        header = read_header(genuine)
        forged = Header(draw.choice(list(Kind)), header.direction, header.session, header.epoch + 1, 1 << 40)
        yield seal(forged, genuine[22:-16], draw.randbytes(32))
        yield draw.choice(self._genuine[TWO_HOSTS.other(node)])  # its own words

    def _send(self, node: str, data: bytes) -> None:
        udp = struct.pack("!HHHH", DEFAULT_SYNC_PORT, DEFAULT_SYNC_PORT, 8 + len(data), 0) + data
        source, target = (socket.inet_aton(TWO_HOSTS.address(name)) for name in (TWO_HOSTS.other(node), node))
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0, source, target)
        self._raw.sendto(ip + udp, (TWO_HOSTS.address(node), 0))


def rejected(world: FaultWorld, node: str) -> dict[str, int]:
    """Rejected datagrams by reason."""
    counters: dict[str, int] = world.ask(node)["counters"]
    return {name.removeprefix("datagram-"): count for name, count in counters.items() if name.startswith("datagram-")}


def test_garbage_at_the_sync_ports_changes_nothing_but_counters(world: FaultWorld, tmp_path: Path) -> None:
    primary, backup = world.lab.resolve("primary"), world.lab.resolve("backup")
    epoch = world.epoch()
    genuine = {node: recorded(world, node, 10) for node in TWO_HOSTS.hosts}
    with (
        world.capture(tmp_path / "client.pcap") as running,
        world.start("upload", "--size", "25M") as upload,
        world.start("bulk", "--size", "25M") as bulk,
        Garbage(world, genuine, 1) as garbage,
    ):
        assert eventually(lambda: garbage.sent >= ROUNDS // 3)
        assert world.is_protected()
        reasons = {node: rejected(world, node) for node in TWO_HOSTS.hosts}
        assert sum(row["protected"] for row in world.lab.status()["connections"]) == 2
        world.lab.crash(primary)
        ended_well(upload)
        ended_well(bulk)
    faultless(running)
    assert speakers(running.path) == [primary, backup]
    assert world.epoch() == epoch + 1
    for counts in reasons.values():
        assert {"bad-mac", "truncated", "reflected"} <= set(counts)
        assert counts.get("replayed", 0) + counts.get("too-old", 0) >= 100
        assert sum(counts.values()) >= 5 * 100
    # All of it was for nothing, and all of it was counted (of a datagram cut at its end, nothing may be left).
    assert sum(rejected(world, backup).values()) >= 0.9 * 6 * ROUNDS

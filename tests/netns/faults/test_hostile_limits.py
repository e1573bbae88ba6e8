"""Queues and sockets that overflow on real kernels: never silently, and nothing is lost but packets."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from nfq_failover.constants import DEFAULT_QUEUE_IN, DEFAULT_SYNC_PORT
from nfq_failover.lab import netns
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import SWITCH, TWO_HOSTS, namespace
from nfq_failover.shell.packets.nfqueue import queue_row
from nfq_failover.wire.datagram import Header, Kind, seal
from tests.support.fault_world import CALM_MS, FaultWorld, Talk, ended_well, talk, world
from tests.support.lab_world import eventually

pytestmark = pytest.mark.netns

TINY = ("queue_max_packets = 16", "sync_buffer_bytes = 65536")
EXCHANGES = 150
FLOOD_PER_S = 4000
GENEROUS = 30  # what an exchange may take during the flood, by the median, in multiples of what it takes without


@pytest.fixture(scope="module")
def tiny() -> Iterator[FaultWorld]:
    with world(Options(rate="100mbit", heartbeat_ms=CALM_MS, settings=TINY)) as made:
        yield made


class Flood:
    """Datagrams for a host's sync port under its peer's name, from the switch, some thousands a second."""

    def __init__(self, made: FaultWorld, node: str, per_s: int = FLOOD_PER_S) -> None:
        self._node = node
        self._pause = 20 / per_s
        self._stop = threading.Event()
        self.sent = 0
        with netns.entered(namespace(made.lab.name, SWITCH)):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind(("br0", 0))
        self._frames = [self._frame(data) for data in self._datagrams()]
        self._thread = threading.Thread(target=self._run)

    def _datagrams(self) -> list[bytes]:
        draw = random.Random(1)
        forged = [seal(Header(kind, bool(bit), 1, 1, 1), bytes(50), b"wrong" * 5) for kind in Kind for bit in (0, 1)]
        return [*forged, draw.randbytes(10), draw.randbytes(100), draw.randbytes(1400), b"\1\1" + bytes(1455)]

    def _frame(self, data: bytes) -> bytes:
        (peer,) = [each for each in TWO_HOSTS.hosts if each != self._node]
        ends = [TWO_HOSTS.hardware(self._node), TWO_HOSTS.hardware(peer)]
        ethernet = b"".join(bytes.fromhex(each.replace(":", "")) for each in ends) + b"\x08\0"
        udp = struct.pack("!HHHH", DEFAULT_SYNC_PORT, DEFAULT_SYNC_PORT, 8 + len(data), 0) + data
        addresses = [socket.inet_aton(TWO_HOSTS.address(each)) for each in (peer, self._node)]
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0, *addresses)
        total = sum(struct.unpack("!10H", head))
        total = (total & 0xFFFF) + (total >> 16)
        head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
        return ethernet + head + udp

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for _ in range(20):
                with contextlib.suppress(BlockingIOError):
                    self._socket.send(self._frames[self.sent % len(self._frames)])
                self.sent += 1
            time.sleep(self._pause)


def latency(connection: Talk) -> float:
    """The median time of an exchange."""
    times = []
    for _ in range(EXCHANGES):
        began = time.monotonic()
        connection.exchange()
        times.append(time.monotonic() - began)
    return median(times)


def refused(made: FaultWorld, node: str) -> dict[str, int]:
    counters: dict[str, int] = made.ask(node)["counters"]
    return {name: count for name, count in counters.items() if name.startswith("datagram-")}


def test_flood_at_the_sync_ports_delays_little_and_costs_no_protection(tiny: FaultWorld) -> None:
    assert eventually(tiny.is_protected)
    with talk(tiny) as connection:
        assert tiny.protects(connection.connection)
        before = {node: refused(tiny, node) for node in TWO_HOSTS.hosts}
        calm = latency(connection)
        said = {node: len(tiny.log(node)) for node in TWO_HOSTS.hosts}
        with Flood(tiny, "a") as one, Flood(tiny, "b") as two:
            flooded = latency(connection)
            assert eventually(lambda: min(one.sent, two.sent) > 1000)
            connection.exchange()
        assert flooded < GENEROUS * calm + 0.002, f"{flooded * 1000:.2f} ms instead of {calm * 1000:.2f} ms"
        assert tiny.is_protected()
        assert (tiny.row(connection.connection) or {})["protected"]
    for node in TWO_HOSTS.hosts:
        assert not tiny.said(node, said[node], "] state "), "protection was lost for a while"
        # All refused datagrams are counted by reason, or as dropped by the kernel.
        new = {name: count - before[node].get(name, 0) for name, count in refused(tiny, node).items()}
        assert {name for name, count in new.items() if count} >= {
            *("datagram-bad-mac", "datagram-reflected", "datagram-wrong-session"),
            *("datagram-truncated", "datagram-oversized", "datagram-bad-version"),
        }
    print(f"median exchange: {calm * 1000:.2f} ms, during the flood {flooded * 1000:.2f} ms")


def aloud(made: FaultWorld, node: str, what: str) -> bool:
    """Whether the daemon comes to have said it, in this minute or before: then it is only counted for a while."""
    return made.comes(node, 0, "error", what)


def test_packets_that_a_queue_has_no_room_for_are_said_aloud_and_repeated(tiny: FaultWorld) -> None:
    """The backup's daemon stands still while the tap goes on."""
    assert eventually(tiny.is_protected)
    backup = tiny.lab.resolve("backup")
    before = tiny.ask(backup)["counters"].get("queue-overrun-in", 0)

    def dropped() -> int:
        with netns.entered(namespace(tiny.lab.name, backup)):
            row = queue_row(DEFAULT_QUEUE_IN)
        return 0 if row is None else row.dropped_full + row.dropped_unread

    lost = dropped()
    with tiny.start("upload", "--size", "20M") as upload:
        with tiny.stopped([tiny.lab.daemon_pid(backup)]):
            assert eventually(lambda: dropped() > lost)
        ended_well(upload)
    assert eventually(lambda: tiny.ask(backup)["counters"].get("queue-overrun-in", 0) > before)
    assert aloud(tiny, backup, "packet queue overrun")
    assert tiny.ask(backup)["shell"]["queues"]["in"]["dropped"] >= dropped() - lost
    assert eventually(tiny.is_protected)


def test_datagrams_that_the_sync_socket_has_no_room_for_are_said_aloud(tiny: FaultWorld) -> None:
    assert eventually(tiny.is_protected)
    backup = tiny.lab.resolve("backup")
    before = tiny.ask(backup)["counters"].get("datagrams-lost", 0)
    with tiny.stopped([tiny.lab.daemon_pid(backup)]), Flood(tiny, backup) as flood:
        assert eventually(lambda: flood.sent > 1000)
    assert eventually(lambda: tiny.ask(backup)["counters"].get("datagrams-lost", 0) > before)
    assert aloud(tiny, backup, "sync datagrams lost")
    assert tiny.ask(backup)["shell"]["sync_socket"]["full"] > 0
    assert eventually(tiny.is_protected)


def test_lines_of_the_configuration_are_in_force(tiny: FaultWorld) -> None:
    for node in TWO_HOSTS.hosts:
        shell = tiny.ask(node)["shell"]
        assert shell["queues"]["in"]["limit"] == shell["queues"]["out"]["limit"] == 16
        assert shell["sync_socket"]["limit"] in (65536, 131072)
        assert Path(tiny.lab.store.directory / node / "config.toml").read_text().count("queue_max_packets") == 1

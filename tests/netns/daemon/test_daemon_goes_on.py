"""One real daemon in a namespace goes on, whatever happens to it: lost rules, bugs, garbage, a vanished interface."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nfq_failover.errors import CommandError
from tests.support.daemon_world import SERVER, DaemonWorld, daemon_world, pings, wait_until
from tests.support.namespaces import SERVICE, run

pytestmark = pytest.mark.netns


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DaemonWorld]:
    with daemon_world(tmp_path) as w:
        yield w


def test_rules_that_somebody_flushed_are_put_back_with_an_alarm(world: DaemonWorld) -> None:
    _, log = world.ready(world.config())
    installed = world.snapshot()["rules"]
    world.server.run("iptables", "-t", "mangle", "-F")
    assert not pings(world)  # the second layer
    wait_until(lambda: world.snapshot()["rules"] == installed)
    wait_until(lambda: world.status()["counters"].get("rules-lost"))
    assert "firewall rules lost" in log.read_text()
    assert "[error" in log.read_text()


def send_syn(world: DaemonWorld, source_port: int, data_offset: int = 5) -> None:
    """A TCP SYN to the service, from the client."""
    header = bytearray(20)
    header[0:2], header[2:4] = source_port.to_bytes(2, "big"), (80).to_bytes(2, "big")
    header[12], header[13] = data_offset << 4, 0x02
    with world.client.entered(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(header, (SERVICE, 0))


def reach(world: DaemonWorld) -> None:
    """Let the client's packets for the service come to the server without ARP."""
    mac = world.server.run("ip", "-br", "link", "show", "dev", "eth0").split()[2]
    world.client.run("ip", "neighbour", "replace", SERVICE, "lladdr", mac, "dev", "eth0")


def test_malformed_packets_are_counted_and_dropped(world: DaemonWorld) -> None:
    world.ready(world.config())
    reach(world)
    for offset in (0, 4, 15):
        send_syn(world, 1234, offset)
    wait_until(lambda: sum(n for name, n in world.status()["counters"].items() if name.startswith("malformed")) >= 3)
    assert world.status()["shell"]["internal_errors"] == 0


BUG = """
from nfq_failover.core.node import Node
right = Node._inbound
def wrong(self, event, seg, now):
    if seg.sport == 666:
        raise ZeroDivisionError("a bug in the core")
    right(self, event, seg, now)
Node._inbound = wrong
"""


def test_a_bug_in_the_core_costs_one_packet_and_raises_an_alarm(world: DaemonWorld) -> None:
    process, log = world.ready(world.config(), BUG)
    reach(world)
    send_syn(world, 666)
    wait_until(lambda: world.status()["shell"]["internal_errors"] == 1)
    send_syn(world, 667)
    wait_until(lambda: world.status()["counters"].get("not-serving") == 1)
    queues = world.server.run("cat", "/proc/net/netfilter/nfnetlink_queue").splitlines()
    assert [line.split()[2] for line in queues] == ["0", "0"]  # nothing waits for a verdict
    wait_until(lambda: "internal error" in log.read_text())
    alarm = next(line for line in log.read_text().splitlines() if "internal error" in line)
    assert "a bug in the core" in alarm
    assert "029a0050" in alarm  # ports 666 and 80: the packet's bytes
    process.terminate()
    assert process.wait(15) == 0


NO_MEMORY = """
from nfq_failover.core.node import Node
right = Node._inbound
def wrong(self, event, seg, now):
    if seg.sport == 666:
        raise MemoryError
    right(self, event, seg, now)
Node._inbound = wrong
"""


def test_without_memory_it_ends_as_if_killed_and_the_host_stays_silent(world: DaemonWorld) -> None:
    process, log = world.ready(world.config(), NO_MEMORY)
    reach(world)
    installed = world.snapshot()["rules"]
    send_syn(world, 666)
    assert process.wait(10) == 71
    assert "no memory" in log.read_text()
    assert world.snapshot()["rules"] == installed
    assert not pings(world)
    process, _ = world.ready(world.config())
    assert world.status()["state"] == "waiting"


TICK_BUG = """
from nfq_failover.core.node import Node
def wrong(self, now):
    self._ticks.took(now)
    raise ZeroDivisionError("no time")
right = Node._timer
ticks = [0]
def later(self, now):
    ticks[0] += 1
    (right if ticks[0] < 20 else wrong)(self, now)
Node._timer = later
from nfq_failover.shell.peer.heartbeat_process import HeartbeatProcess
touches = open(TOUCHES, "ab", 0)  # now, as root
progress = HeartbeatProcess.progress
def counted(self):
    touches.write(b"x")
    progress(self)
HeartbeatProcess.progress = counted
"""


def test_a_core_whose_clock_fails_does_not_pretend_to_make_progress(world: DaemonWorld) -> None:
    touches = world.disk / "touches"
    process, log = world.ready(world.config(), f"TOUCHES = {str(touches)!r}\n{TICK_BUG}")
    wait_until(lambda: "no time" in log.read_text())
    time.sleep(0.2)
    size = touches.stat().st_size
    time.sleep(0.5)
    assert touches.stat().st_size == size  # its heartbeats now tell the peer that the loop stands still
    assert log.read_text().count("internal error") < 30  # an alarm, not a flood
    process.terminate()
    assert process.wait(15) == 0


def test_garbage_at_the_sync_port_is_counted_and_nothing_stops(world: DaemonWorld) -> None:
    world.ready(world.config())
    sent = 0
    with world.client.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        stop = time.monotonic() + 2
        while time.monotonic() < stop:
            for _ in range(50):
                udp.sendto(os.urandom(1 + sent % 1400), (SERVER, 7766))
                sent += 1
            time.sleep(0.005)
            if sent % 2000 == 0:
                assert world.status()["state"] == "waiting"
    wait_until(
        lambda: sum(n for name, n in world.status()["counters"].items() if name.startswith("datagram")) >= sent * 0.9
    )
    assert world.status()["shell"]["internal_errors"] == 0


def test_the_heartbeat_sender_is_replaced_when_it_dies(world: DaemonWorld) -> None:
    process, log = world.ready(world.config())

    def sender() -> list[int]:
        found = []
        for pid in run("ip", "netns", "pids", world.server.name).split():
            with suppress(FileNotFoundError, ProcessLookupError):  # a check of the rules has just ended
                if b"nfq_failover.shell.peer.heartbeat_sender" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
        return found

    wait_until(sender)
    (first,) = sender()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: sender() not in ([], [first]))
    assert "heartbeat sender died" in log.read_text()
    assert world.status()["state"] == "waiting"
    process.terminate()
    assert process.wait(15) == 0


def test_an_interface_that_vanishes_does_not_end_the_daemon(world: DaemonWorld) -> None:
    process, _ = world.ready(world.config())
    world.server.run("ip", "link", "delete", "eth0")
    time.sleep(0.5)
    assert world.status()["state"] == "waiting"
    process.terminate()
    assert process.wait(15) == 0


def test_after_the_end_nobody_answers(world: DaemonWorld) -> None:
    process, _ = world.ready(world.config())
    process.terminate()
    process.wait(15)
    with pytest.raises(CommandError, match="nfq-failover run"):
        world.status()

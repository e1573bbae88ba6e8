"""One real daemon in a namespace: silence, status, robustness, and that every way out leaves the host as it was."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.shell.control import ask
from tests.support.namespaces import SERVICE, Namespace, pair, run

pytestmark = pytest.mark.netns

SERVER = "10.77.0.2"
TAP_MAC = "01:00:5e:4d:00:64"
# The daemon as the command line starts it. What a test puts before it makes it fail on purpose.
MAIN = "from nfq_failover.cli import main; import sys; sys.exit(main(sys.argv[1:]))"


class DaemonWorld:
    """A client and a server host with a disk."""

    def __init__(self, client: Namespace, server: Namespace, disk: Path) -> None:
        self.client, self.server, self.disk = client, server, disk
        self.state = disk / "state"
        key = disk / "key"
        key.write_text("0123456789abcdef0123456789abcdef")
        key.chmod(0o600)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.logs: list[IO[bytes]] = []

    def config(self, **changes: Any) -> Path:
        settings = {
            "name": "a",
            "service": SERVICE,
            "ports": [80],
            "interface": "eth0",
            "listen": SERVER,
            "key_file": str(self.disk / "key"),
            "state_dir": str(self.state),
            "run_dir": str(self.disk / "run"),
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in (settings | changes).items()]
        path = self.disk / "config.toml"
        path.write_text("\n".join(lines) + '\n[[peer]]\nname = "b"\naddress = "10.77.0.3"\n')
        return path

    def start(
        self, config: Path, sabotage: str = "", before: tuple[str, ...] = ()
    ) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        """The process, and its log, which both streams go to."""
        return self._popen([*before, sys.executable, "-c", sabotage + MAIN, "run", "--config", str(config)])

    def run_program(self, program: str, *words: str) -> tuple[subprocess.Popen[bytes], Path]:
        """A Python program with arguments, and the path of its log."""
        process, log = self._popen([sys.executable, "-c", program, *words])
        return process, Path(str(log.name))

    def _popen(self, argv: list[str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        log = open(self.disk / f"log-{len(self.processes)}", "w+b")  # noqa: SIM115  # closed with the world
        self.logs.append(log)
        process = subprocess.Popen(
            self.server.argv(*argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        self.processes.append(process)
        return process, log

    def ready(
        self, config: Path, sabotage: str = "", before: tuple[str, ...] = ()
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """The same, when it says that it is ready."""
        process, log = self.start(config, sabotage, before)
        path = Path(str(log.name))
        wait_until(lambda: "ready" in path.read_text() or process.poll() is not None)
        assert process.poll() is None, path.read_text()
        return process, path

    def status(self) -> dict[str, Any]:
        return ask(self.state / "control.sock", "status")

    def snapshot(self) -> dict[str, object]:
        """Everything that a daemon touches."""

        def rules(program: str) -> list[str]:
            return [line for line in self.server.run(program).splitlines() if line.startswith(("-A", ":NFQF"))]

        def there(command: str) -> str:
            return self.server.run("sh", "-c", command)

        return {
            "rules": rules("iptables-save"),
            "legacy rules": rules("iptables-legacy-save"),
            "nft": [line for line in there("nft list ruleset").splitlines() if "nfq" in line],
            "tc": there("tc qdisc show dev eth0; tc filter show dev eth0 egress 2>/dev/null || true"),
            "addresses": there("ip -br address"),
            "groups": there("ip maddress show dev eth0"),
            "sysctls": there("grep -H . /proc/sys/net/ipv4/conf/*/arp_*"),
            "queues": there("cat /proc/net/netfilter/nfnetlink_queue"),
            "sockets": [line for line in there("cat /proc/net/unix").splitlines() if "nfq-failover" in line],
            "udp": [line.split()[1] for line in there("cat /proc/net/udp").splitlines() if ":1E56" in line],
            "processes": run("ip", "netns", "pids", self.server.name),
        }

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for pid in run("ip", "netns", "pids", self.server.name).split():  # what a killed daemon has left
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for log in self.logs:
            log.close()


@contextmanager
def daemon_world(disk: Path) -> Iterator[DaemonWorld]:
    with pair(server_address=SERVER) as (client, server):
        server.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")  # its addresses come and settle late
        wait_until(lambda: " UP " in server.run("ip", "-br", "link", "show", "dev", "eth0"))
        world = DaemonWorld(client, server, disk)
        try:
            yield world
        finally:
            world.stop()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DaemonWorld]:
    with daemon_world(tmp_path) as w:
        yield w


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come about"
        time.sleep(0.02)


def pings(world: DaemonWorld) -> bool:
    """Whether the service address is heard at the client, which needs no ARP for it."""
    mac = world.server.run("ip", "-br", "link", "show", "dev", "eth0").split()[2]
    world.client.run("ip", "neighbour", "replace", SERVICE, "lladdr", mac, "dev", "eth0")
    argv = world.client.argv("ping", "-c", "1", "-W", "0.3", SERVICE)
    return subprocess.run(argv, capture_output=True, timeout=20).returncode == 0


# ------------------------------------------------------------------------------------------ coming and going


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_waits_in_silence_and_leaves_the_host_as_it_was(world: DaemonWorld, number: signal.Signals) -> None:
    before = world.snapshot()
    process, log = world.ready(world.config())
    during = world.snapshot()
    assert all(during[part] != before[part] for part in ("rules", "addresses", "sysctls", "queues", "sockets", "udp"))
    assert f"{SERVICE}/32" in str(during["addresses"])
    status = world.status()
    assert (status["role"], status["state"]) == ("joining", "waiting")
    assert status["shell"]["rules"]["installed"] == "backup"
    assert not pings(world)
    os.kill(process.pid, number)
    assert process.wait(15) == 0, log.read_text()
    assert world.snapshot() == before
    assert sorted(path.name for path in world.state.iterdir() if path.is_file()) == ["epoch.json", "lock"]


def test_group_signals_as_a_terminal_or_a_service_manager_sends_them(world: DaemonWorld) -> None:
    before = world.snapshot()
    process, log = world.ready(world.config())
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(15) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert world.snapshot() == before


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    with suppress(OSError, StopIteration):
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
        return bool(int(next(row for row in rows if row.startswith("SigCgt")).split()[1], 16) >> (number - 1) & 1)
    return False


def parts(world: DaemonWorld, daemon: int) -> list[int]:
    """The daemon and its helpers, without the programs that these run."""
    found = [daemon]
    for pid in map(int, run("ip", "netns", "pids", world.server.name).split()):
        with suppress(OSError):
            if b"nfq_failover.shell" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_signals_that_end_nothing(world: DaemonWorld) -> None:
    """Sent while it starts, and then to the daemon and each of its helpers, as `systemctl kill` does."""
    numbers = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

    def send() -> list[int]:
        pids = parts(world, process.pid)
        for pid in pids:
            for number in numbers:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        return pids

    process, log = world.start(world.config())
    path = Path(str(log.name))
    wait_until(lambda: handles(process.pid, signal.SIGUSR2))
    assert "ready" not in path.read_text()
    wait_until(lambda: send() and "ready" in path.read_text())
    assert process.poll() is None, path.read_text()
    before = send()
    assert len(before) == 3  # daemon, helper, heartbeat sender
    wait_until(lambda: "peer_heard" in path.read_text())
    assert world.status()["state"] == "waiting"
    wait_until(lambda: parts(world, process.pid) == before)  # a child looks like the helper until it is a script
    process.terminate()
    assert process.wait(15) == 0, path.read_text()


def test_the_capabilities_that_the_service_unit_names_are_enough(world: DaemonWorld) -> None:
    unit = (Path(__file__).parents[3] / "vagrant" / "nfq-failover.service").read_text()
    (line,) = (line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet="))
    names = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in line.partition("=")[2].split())
    before = world.snapshot()
    process, log = world.ready(world.config(), before=("setpriv", f"--bounding-set=-all,{names}", "--no-new-privs"))
    status = Path(f"/proc/{process.pid}/status").read_text()
    effective = next(int(row.split()[1], 16) for row in status.splitlines() if row.startswith("CapEff"))
    assert effective == 1 << 12 | 1 << 13  # CAP_NET_ADMIN, CAP_NET_RAW
    world.server.run("iptables", "-t", "mangle", "-F")
    wait_until(lambda: world.snapshot()["rules"] != [] and "firewall rules lost" in log.read_text())
    process.terminate()
    assert process.wait(15) == 0, log.read_text()
    assert world.snapshot() == before
    errors = [line for line in log.read_text().splitlines() if "[error" in line]
    assert not [line for line in errors if "firewall rules lost" not in line and "never-acts" not in line]


def test_with_the_multicast_tap_too(world: DaemonWorld) -> None:
    before = world.snapshot()
    process, log = world.ready(world.config(tap="multicast", tap_mac=TAP_MAC, conntrack="liberal"))
    assert TAP_MAC in str(world.snapshot()["groups"])
    process.terminate()
    assert process.wait(15) == 0, log.read_text()
    assert world.snapshot() == before


def test_killed_it_leaves_silence_and_the_next_life_copes_and_cleans(world: DaemonWorld) -> None:
    before = world.snapshot()
    process, _ = world.ready(world.config())
    process.kill()
    process.wait()
    wait_until(lambda: not world.snapshot()["processes"])  # the heartbeat sender does not outlive it
    left = world.snapshot()
    assert left["rules"] != before["rules"]
    assert f"{SERVICE}/32" in str(left["addresses"])
    assert not pings(world)
    process, log = world.ready(world.config())
    assert world.status()["state"] == "waiting"
    process.terminate()
    assert process.wait(15) == 0, log.read_text()
    assert world.snapshot() == before


def test_an_address_that_the_operator_manages_keeps_its_silence(world: DaemonWorld) -> None:
    world.server.run("ip", "address", "add", f"{SERVICE}/32", "dev", "lo")
    process, log = world.ready(world.config(manage_address=False))
    process.terminate()
    assert process.wait(15) == 0
    assert "firewall rules stay in force" in log.read_text()
    assert not pings(world)
    world.server.run("ip", "address", "del", f"{SERVICE}/32", "dev", "lo")


# ------------------------------------------------------------------------------------------ refusals


def test_a_refused_start_leaves_nothing_that_alarms_the_next(world: DaemonWorld) -> None:
    """As when the network is late at boot: exit code 1, and tried again."""
    process, _ = world.start(world.config(interface="eth7"))
    assert process.wait(30) == 1
    process, _ = world.start(world.config(ports=[0]))
    assert process.wait(30) == 2
    _, log = world.ready(world.config(fence=["/bin/true"]))
    assert not [line for line in log.read_text().splitlines() if "[error" in line]


def refused(world: DaemonWorld, config: Path) -> str:
    process, log = world.start(config)
    code = process.wait(30)
    text = Path(str(log.name)).read_text()
    assert code in (1, 2), text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"interface": "eth7"}, "no interface 'eth7'"),
        ({"listen": "10.77.0.9"}, "can't listen on 10.77.0.9:7766"),
        ({"rules_script": "/no/such/script"}, "rules script"),
        ({"state_dir": "/proc/nowhere"}, "check 'state_dir'"),
    ],
)
def test_a_start_that_fails_says_why_and_undoes_what_it_did(
    world: DaemonWorld, change: dict[str, Any], says: str
) -> None:
    before = world.snapshot()
    assert says in refused(world, world.config(**change))
    assert world.snapshot() == before


def test_a_damaged_epoch_record_is_a_refusal(world: DaemonWorld) -> None:
    before = world.snapshot()
    world.state.mkdir()
    (world.state / "epoch.json").write_text("{")
    assert "epoch record" in refused(world, world.config())
    assert world.snapshot() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "already uses"),
        ({"state_dir": "other"}, "another daemon of instance 'default' runs here"),
        ({"state_dir": "other", "instance": "second"}, "queue 7760 is already bound"),
    ],
)
def test_a_second_daemon_is_refused_and_does_not_touch_the_first(
    world: DaemonWorld, change: dict[str, str], says: str
) -> None:
    process, _ = world.ready(world.config())
    during = world.snapshot()
    if "state_dir" in change:
        change = change | {"state_dir": str(world.disk / "other")}
    assert says in refused(world, world.config(**change))
    passing = {"processes": None}  # checks of the rules come and go
    assert world.snapshot() | passing == during | passing
    assert world.status()["state"] == "waiting"
    process.terminate()
    assert process.wait(15) == 0


# ------------------------------------------------------------------------------------------ going on


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
    self._next_tick = now + 0.02
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

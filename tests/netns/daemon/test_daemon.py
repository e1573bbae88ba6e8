"""One real daemon in a namespace: silence, status, refusals, and that every way out leaves the host as it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon_world import DaemonWorld, daemon_world, pings, refused, wait_until
from tests.support.namespaces import SERVICE, run

pytestmark = pytest.mark.netns

TAP_MAC = "01:00:5e:4d:00:64"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DaemonWorld]:
    with daemon_world(tmp_path) as w:
        yield w


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

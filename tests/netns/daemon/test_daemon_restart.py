"""Daemons that die and come back: what was taken over goes on, nothing untranslated leaves, and protection returns."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from nfq_failover.core.shadow.checkpoint import HEADER_BYTES
from nfq_failover.lab.measure.verdict import read_capture
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS
from tests.support.fault_world import (
    CALM_MS,
    FaultWorld,
    ended_well,
    faultless,
    heard,
    speakers,
    talk,
    whole,
)
from tests.support.lab_world import eventually
from tests.support.shared_lab import each_world, shared_lab

pytestmark = [pytest.mark.netns, pytest.mark.slow]

OPTIONS = Options(rate="100mbit", heartbeat_ms=CALM_MS)
LOADS = ("bulk --size 12M", "upload --size 12M", "echo --seconds 2 --rate 50")
PATIENCE_S = 30  # a client that repeats its request at growing intervals


shared = shared_lab(OPTIONS)
world = each_world()


def end_daemon(world: FaultWorld, node: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Ends the node's daemon by a signal, and waits for its end."""
    pid = world.lab.daemon_pid(node)
    os.kill(pid, number)
    assert eventually(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)


def left_alone(world: FaultWorld) -> str:
    """Crashes the backup; the primary goes on, unprotected. Returns its name."""
    primary = world.lab.resolve("primary")
    world.lab.crash("backup")
    world.becomes(**{primary: "unprotected"})
    return primary


def takes_over(world: FaultWorld) -> str:
    """Crashes the primary. Returns the name of the one that goes on."""
    primary = world.lab.resolve("primary")
    world.lab.crash(primary)
    world.becomes(**{TWO_HOSTS.other(primary): "unprotected"})
    return TWO_HOSTS.other(primary)


def record(world: FaultWorld, node: str) -> Path:
    """The file with the translations of the node's daemon: the one that was written last."""
    files = (world.lab.store.directory / node / "run").glob("*.translations")
    return max(files, key=lambda path: path.stat().st_mtime)


# ------------------------------------------------------------------------------------- connections taken over


def test_what_was_taken_over_outlives_several_daemons(world: FaultWorld, tmp_path: Path) -> None:
    primary, epoch = world.lab.resolve("primary"), world.epoch()
    with ExitStack() as stack:
        running = stack.enter_context(world.capture(tmp_path / "client.pcap"))
        idle = stack.enter_context(talk(world, PATIENCE_S))
        loads = [stack.enter_context(world.start(*words.split())) for words in LOADS]
        survivor = takes_over(world)
        assert len(world.ask(survivor)["connections"]) > len(LOADS)
        for away_s in (0.0, 0.2):
            since = len(world.log(survivor))
            # What is acknowledged, and our TCP has not taken yet, would be lost with the daemon.
            assert eventually(lambda: not any(row["lag_bytes"] for row in world.ask(survivor)["connections"]))
            end_daemon(world, survivor)
            time.sleep(away_s)
            world.restart_daemon(survivor)
            world.becomes(**{survivor: "unprotected"})
            assert world.comes(survivor, since, "connections taken over before the restart", "cut=0")
            idle.exchange()
        for load in loads:
            ended_well(load)
        idle.exchange()
    assert world.epoch() == epoch + 1
    faultless(running)
    assert speakers(running.path) == [primary, survivor]
    world.lab.restore(primary)  # and they do not stand in the way of a new protection
    with talk(world) as new:
        assert world.protects(new.connection)


@pytest.mark.parametrize("fault", ["a damaged slot", "no record"])
def test_without_its_record_a_connection_is_cut_and_never_let_through(
    world: FaultWorld, fault: str, tmp_path: Path
) -> None:
    with (
        world.capture(tmp_path / "client.pcap") as running,
        talk(world, PATIENCE_S) as one,
        talk(world, PATIENCE_S) as two,
    ):
        survivor = takes_over(world)
        path, since = record(world, survivor), len(world.log(survivor))
        end_daemon(world, survivor)
        if fault == "no record":
            path.unlink()
        else:
            data = bytearray(path.read_bytes())
            address, port = two.connection.getsockname()
            at = data.index(socket.inet_aton(address) + port.to_bytes(2, "big"), HEADER_BYTES)
            data[at + 8] ^= 1
            path.write_bytes(data)
        world.restart_daemon(survivor)
        assert world.comes(survivor, since, "error", "the record of the daemon's earlier life can't be used")
        if fault == "no record":
            # Whether another host serves can't be told any more.
            world.becomes(**{survivor: "waiting"})
            since_waiting = time.time()
            one.connection.sendall(b"anybody?")
            two.connection.sendall(b"anybody?")
            assert one.stays_silent(0.5) and two.stays_silent(0.1)
            one.abort()  # a host that serves again would have to reset them
            two.abort()
        else:
            world.becomes(**{survivor: "unprotected"})
            assert goes_on(one.connection)
            assert not goes_on(two.connection)
    if fault == "no record":
        assert [p for p in heard(running.path) if p.time > since_waiting] == []
    result = whole(running)
    assert result.unseen_acknowledged == []
    # The replica's own numbers would be far away: the hosts' numbers are scrambled.
    assert all(0 <= p.seq < 10_000 for p in read_capture(running.path, TWO_HOSTS.service) if p.from_service)


def goes_on(connection: socket.socket) -> bool:
    """Whether an echo comes back; else the connection must have been reset."""
    connection.sendall(bytes(150))
    try:
        return bool(connection.recv(150))
    except ConnectionResetError:
        return False


# ------------------------------------------------------------------------------------- a host that serves alone


def test_an_unprotected_primary_serves_without_its_daemon_and_with_the_next(world: FaultWorld, tmp_path: Path) -> None:
    epoch = world.epoch()
    with ExitStack() as stack:
        running = stack.enter_context(world.capture(tmp_path / "client.pcap"))
        primary = left_alone(world)
        idle = stack.enter_context(talk(world, PATIENCE_S))
        loads = [stack.enter_context(world.start(*words.split())) for words in LOADS]
        for number in (signal.SIGKILL, signal.SIGTERM):
            end_daemon(world, primary, number)
            idle.exchange()
            with talk(world) as native:  # also one that is opened while there is no daemon
                world.restart_daemon(primary)
                world.becomes(**{primary: "unprotected"})
                native.exchange()
                assert "no daemon" in world.why_not(native.connection)
        for load in loads:
            ended_well(load)
        idle.exchange()
        # A backup comes, and the protection with it.
        world.lab.restore(TWO_HOSTS.other(primary))
        world.becomes(**{primary: "protected", TWO_HOSTS.other(primary): "shadowing"})
        with talk(world) as new:
            assert world.protects(new.connection)
        idle.exchange()
    assert world.epoch() == epoch
    faultless(running)
    assert speakers(running.path) == [primary]


def test_a_daemon_that_hangs_is_ended_by_the_watchdog_and_the_service_goes_on(
    world: FaultWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary = left_alone(world)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "600000")
        end_daemon(world, primary)
        with talk(world, PATIENCE_S) as idle:
            world.restart_daemon(primary)
            assert manager.recv(4096).startswith(b"READY=1")
            while manager.recv(4096) != b"WATCHDOG=1":
                pass
            pid = world.lab.daemon_pid(primary)
            os.kill(pid, signal.SIGSTOP)
            idle.connection.sendall(b"")
            manager.settimeout(0.6)
            with pytest.raises(TimeoutError):  # what the service manager waits for; at most two are on their way
                for _ in range(3):
                    manager.recv(4096)
            end_daemon(world, primary)  # what it does then
            world.restart_daemon(primary)
            idle.exchange()
            world.becomes(**{primary: "unprotected"})


def test_a_daemon_that_stood_still_goes_on(world: FaultWorld, tmp_path: Path) -> None:
    with talk(world, PATIENCE_S) as inherited, world.capture(tmp_path / "client.pcap") as running:
        survivor = takes_over(world)
        with world.start(*LOADS[1].split()) as load:
            with world.stopped([world.lab.daemon_pid(survivor)]):
                time.sleep(1.0)
            inherited.exchange()
            ended_well(load)
        world.becomes(**{survivor: "unprotected"})
    faultless(running)


# ------------------------------------------------------------------------------------- a backup


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_backup_that_restarts_costs_no_connection_and_protects_again(
    world: FaultWorld, number: signal.Signals, tmp_path: Path
) -> None:
    primary, backup, epoch = world.lab.resolve("primary"), world.lab.resolve("backup"), world.epoch()
    with talk(world) as idle, world.capture(tmp_path / "client.pcap") as running:
        with world.start(*LOADS[1].split()) as load:
            since = len(world.log(primary))
            end_daemon(world, backup, number)
            world.restart_daemon(backup)
            began = time.monotonic()
            world.becomes(**{primary: "protected", backup: "shadowing"})
            assert world.comes(primary, since, "error", "after=unprotected")
            with talk(world) as new:
                assert world.protects(new.connection)
            print(f"protected again {time.monotonic() - began:.2f} s after the daemon answered")
            ended_well(load)
        idle.exchange()
        world.why_not(idle.connection)
    assert world.epoch() == epoch
    faultless(running)
    assert speakers(running.path) == [primary]

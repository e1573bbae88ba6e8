"""Who serves, with the real daemons: boots, claims, daemons that die, stop, stand still and come back."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.lab.measure.verdict import read_capture
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS
from tests.support.fault_world import (
    CALM_MS,
    DETECTION_S,
    HOLD_AT_LEAST_S,
    HOLD_AT_MOST_S,
    FaultWorld,
    adding,
    clock_set_back,
    ended_well,
    faultless,
    heard,
    speakers,
    talk,
    whole,
)
from tests.support.lab_world import eventually
from tests.support.shared_lab import Shared, each_world, shared_lab

pytestmark = [pytest.mark.netns, pytest.mark.slow]

BOOT_WAIT_S = 3.0  # the daemon's default
OPTIONS = Options(rate="100mbit", heartbeat_ms=CALM_MS)
SERVING = ("unprotected", "arming", "protected", "backup-lost")


shared = shared_lab(OPTIONS)
world = each_world()


@contextlib.contextmanager
def watched(world: FaultWorld) -> Iterator[list[tuple[str | None, ...]]]:
    """Both hosts' states as they have agreed on them (a backup that knows of a concern is shown as unprotected, too),
    sampled all the time in another thread."""
    seen: list[tuple[str | None, ...]] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            seen.append(tuple(world.membership().values()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def never_both(seen: list[tuple[str | None, ...]]) -> bool:
    """Whether one host served at most, at every moment that was looked at."""
    assert len(seen) > 10
    return all(sum(state in SERVING for state in row) <= 1 for row in seen)


# ------------------------------------------------------------------------------------------------------------ boots


def test_two_hosts_that_boot_together_elect_one(world: FaultWorld, tmp_path: Path) -> None:
    epoch = world.epoch()
    with world.capture(tmp_path / "client.pcap") as running:
        for node in TWO_HOSTS.hosts:
            world.lab.crash(node)
        assert world.states() == {"a": "off", "b": "off"}
        with watched(world) as seen:
            boots = [threading.Thread(target=world.lab.restore, args=(node,)) for node in TWO_HOSTS.hosts]
            for boot in boots:
                boot.start()
            for boot in boots:
                boot.join()
            assert eventually(world.is_protected)
            with talk(world) as new:
                assert world.protects(new.connection)
    assert never_both(seen)
    assert world.epoch() == epoch + 1
    faultless(running)
    assert speakers(running.path) == [world.lab.resolve("primary")]


def test_a_host_that_boots_alone_waits_until_it_is_told_to_serve(world: FaultWorld, tmp_path: Path) -> None:
    epoch = world.epoch()
    backup = world.lab.resolve("backup")
    with world.capture(tmp_path / "client.pcap") as running:
        with talk(world) as old:
            world.lab.crash("primary")
            world.lab.crash(backup)
            assert "waiting" in world.lab.restore(backup)
            time.sleep(BOOT_WAIT_S + 1)
            status = world.ask(backup)
            assert (status["state"], status["role"]) == ("waiting", "joining")
            assert "will not serve alone" in status["reason"]
            assert "claim" in status["reason"]
            assert old.stays_silent(0.1)
            old.abort()  # a host that was booted anew would have to reset it some time
        silent_until = time.time()

        assert claim(world, backup).returncode == 0
        world.becomes(**{backup: "unprotected", TWO_HOSTS.other(backup): "off"})
        assert world.epoch() == epoch + 1
        with talk(world) as alone:
            # The other host comes back and finds somebody who serves.
            world.lab.restore(TWO_HOSTS.other(backup))
            world.becomes(**{backup: "protected", TWO_HOSTS.other(backup): "shadowing"})
            world.why_not(alone.connection)
            alone.exchange()
    faultless(running)
    assert {p.node for p in heard(running.path) if p.time > silent_until} == {backup}


def claim(world: FaultWorld, node: str) -> subprocess.CompletedProcess[str]:
    """The operator says on this host that the other one is off."""
    config = world.lab.store.directory / node / "config.toml"
    return world.lab.run(node, [sys.executable, "-m", "nfq_failover", "claim", "--yes", "--config", str(config)])


def test_a_claim_against_a_peer_that_serves_is_refused(world: FaultWorld) -> None:
    backup = world.lab.resolve("backup")
    said = len(world.log(backup))
    assert claim(world, backup).returncode == 1
    assert world.comes(backup, said, "warning", "nothing to claim: this host is backup")
    assert world.is_protected()


# ---------------------------------------------------------------------------------------------------------- daemons


def test_a_killed_daemon_of_the_primary_is_a_dead_primary(world: FaultWorld, tmp_path: Path) -> None:
    primary, epoch = world.lab.resolve("primary"), world.epoch()
    with talk(world) as idle:
        with world.capture(tmp_path / "client.pcap") as running, world.start("bulk", "--size", "15M") as workload:
            time.sleep(0.4)
            world.kill_daemon(primary)
            ended_well(workload)
            idle.exchange()
        faultless(running)
        assert speakers(running.path) == [primary, TWO_HOSTS.other(primary)]
        assert world.events("fenced")[-1]["node"] == primary
        assert world.states() == {primary: "off", TWO_HOSTS.other(primary): "unprotected"}
        assert world.epoch() == epoch + 1


def test_a_killed_daemon_of_the_backup_leaves_a_primary_that_says_so(world: FaultWorld, tmp_path: Path) -> None:
    primary, backup, epoch = world.lab.resolve("primary"), world.lab.resolve("backup"), world.epoch()
    with talk(world) as idle:
        said = len(world.log(primary))
        with world.capture(tmp_path / "client.pcap") as running, world.start("upload", "--size", "20M") as workload:
            time.sleep(0.4)
            world.kill_daemon(backup)
            began = time.monotonic()
            world.becomes(**{primary: "unprotected", backup: "no-daemon"})
            waited = time.monotonic() - began
            ended_well(workload)
            idle.exchange()
        # Not before the backup could have taken over no more, for all that the primary knows; and not much later.
        assert HOLD_AT_LEAST_S <= waited <= HOLD_AT_MOST_S
        faultless(running)
        assert speakers(running.path) == [primary]
        assert world.comes(primary, said, "error", "after=unprotected", "the backup is silent")
        world.why_not(idle.connection)

        world.restart_daemon(backup)
        world.becomes(**{primary: "protected", backup: "shadowing"})
        world.why_not(idle.connection)
        idle.exchange()
        with talk(world) as new:
            assert world.protects(new.connection)
    assert world.epoch() == epoch


def test_a_primary_that_is_stopped_hands_over_without_a_fence(world: FaultWorld, tmp_path: Path) -> None:
    primary, epoch, fences = world.lab.resolve("primary"), world.epoch(), len(world.events("fenced"))
    with talk(world) as idle:
        with world.capture(tmp_path / "client.pcap") as running, world.start("bulk", "--size", "15M") as workload:
            time.sleep(0.4)
            world.kill_daemon(primary, signal.SIGTERM)
            ended_well(workload)
            idle.exchange()
        result = faultless(running)
        assert speakers(running.path) == [primary, TWO_HOSTS.other(primary)]
        assert result.silence is not None
        assert result.silence.ms / 1000 < DETECTION_S  # it was told, it had nothing to detect
        assert world.states() == {primary: "no-daemon", TWO_HOSTS.other(primary): "unprotected"}
        assert len(world.events("fenced")) == fences
        assert world.epoch() == epoch + 1
        world.restart_daemon(primary)
        world.becomes(**{primary: "shadowing", TWO_HOSTS.other(primary): "protected"})
        idle.exchange()


def test_both_daemons_killed_leak_nothing_and_elect_one_when_they_are_back(world: FaultWorld, tmp_path: Path) -> None:
    epoch = world.epoch()
    with (
        world.capture(tmp_path / "client.pcap") as running,
        talk(world) as idle,
        world.start("upload", "--size", "60M"),
        world.start("bulk", "--size", "60M"),
    ):
        time.sleep(0.5)
        for node in TWO_HOSTS.hosts:
            world.kill_daemon(node)
        killed = time.time()
        time.sleep(1.0)
        idle.connection.sendall(b"anybody?")
        assert idle.stays_silent(0.2)
        back = time.time()
        with watched(world) as seen:
            for node in TWO_HOSTS.hosts:
                world.restart_daemon(node)
            assert eventually(world.is_protected)
        time.sleep(0.5)
    assert never_both(seen)
    assert world.epoch() == epoch + 1
    with talk(world) as new:
        assert world.protects(new.connection)
    assert [p for p in heard(running.path) if killed + 0.1 < p.time < back] == []
    result = whole(running)
    assert result.resets_from_service == []
    assert result.unseen_acknowledged == []
    assert clock_set_back(running.path) == []
    # Numbers of another host's TCP would be far away: the hosts' sequence numbers are scrambled.
    assert all(0 <= p.seq <= 61_000_000 for p in read_capture(running.path, TWO_HOSTS.service) if p.from_service)


# ------------------------------------------------------------------------------------------------------------ pauses


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def decided_late(world: FaultWorld, node: str) -> int:
    """How many packets the daemon has dropped since it was paused between its decision and the act."""
    return int(world.ask(node)["shell"]["decided_late"])


STOPS_ITSELF = """
import os, signal
from nfq_failover.core.events import Queue
from nfq_failover.shell.packets.nfqueue import PacketQueue

decide, order = PacketQueue.verdict, {order!r}

def verdict(self, packet_id, accept, *more):
    decide(self, packet_id, accept, *more)
    if accept and self.queue is Queue.OUT and os.path.exists(order):
        with open(order) as file: pid = int(file.read())
        if pid == os.getpid():
            os.unlink(order)
            os.kill(pid, signal.SIGSTOP)

PacketQueue.verdict = verdict
"""
"""A daemon stops itself when it has decided to let a packet out, and has not yet done it: as soon as its process id is
in the file `order`."""


@pytest.fixture(scope="module")
def order() -> Iterator[Path]:
    """The file that makes a daemon stop itself. Daemons started from now on know it."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        site = Path(directory)
        site.chmod(0o777)  # a daemon has no rights of its own
        (site / "sitecustomize.py").write_text(STOPS_ITSELF.format(order=str(site / "order")))
        patch.setenv("PYTHONPATH", directory)
        yield site / "order"


# A fence, and if it fails, a split brain is accepted.
accepting = shared_lab(OPTIONS, edit=adding('split_brain = "accepted"'), after="order")


@pytest.mark.parametrize("whole_daemon", [False, True], ids=["packet loop", "whole daemon"])
@pytest.mark.parametrize("kind", ["bulk", "upload"])
def test_a_host_that_wakes_in_an_older_epoch_steps_down_unheard(
    accepting: Shared, kind: str, whole_daemon: bool, tmp_path: Path
) -> None:
    world = accepting.ready()
    primary, epoch = world.lab.resolve("primary"), world.epoch()
    backup = TWO_HOSTS.other(primary)
    said = len(world.log(primary))
    daemon = world.lab.daemon_pid(primary)
    with world.fence_fails(backup), talk(world) as idle:
        with world.capture(tmp_path / "client.pcap") as running, world.start(kind, "--size", "30M") as workload:
            time.sleep(0.4)
            with world.stopped([daemon, *(children(daemon) if whole_daemon else [])]):
                assert eventually(lambda: world.membership()[backup] == "unprotected")
                idle.exchange()
                time.sleep(0.3)
            ended_well(workload)
            world.becomes(**{primary: "shadowing", backup: "protected"})
            idle.exchange()
        faultless(running)
    # The packets that waited in its queues, and all that its TCP has sent since, have gone nowhere.
    old = [packet for packet in heard(running.path) if packet.node == primary]
    assert speakers(running.path) == [primary, backup], old[-20:]
    assert world.epoch() == epoch + 1
    assert world.comes(primary, said, "after=waiting", f"the peer serves in epoch {epoch + 1}")


def test_what_was_decided_before_a_pause_is_not_heard_after_it(accepting: Shared, order: Path, tmp_path: Path) -> None:
    """The daemon stands still between its decision and the act."""
    world = accepting.ready()
    primary = world.lab.resolve("primary")
    backup = TWO_HOSTS.other(primary)
    daemon, late = world.lab.daemon_pid(primary), decided_late(world, primary)
    with world.fence_fails(backup):
        with world.capture(tmp_path / "client.pcap") as running, world.start("bulk", "--size", "30M") as workload:
            time.sleep(0.4)
            (order.parent / "new").write_text(str(daemon))
            (order.parent / "new").rename(order)
            assert eventually(lambda: not order.exists())
            with world.stopped([daemon]):
                assert eventually(lambda: world.membership()[backup] == "unprotected")
                time.sleep(0.3)
            ended_well(workload)
            world.becomes(**{primary: "shadowing", backup: "protected"})
        faultless(running)
    assert speakers(running.path) == [primary, backup]
    # Not by the log, which says a warning once a minute: the tests before may have paused the daemon there as well.
    assert decided_late(world, primary) > late


def test_a_paused_primary_whose_backup_has_refused_goes_on_unprotected(world: FaultWorld, tmp_path: Path) -> None:
    primary, epoch = world.lab.resolve("primary"), world.epoch()
    backup = TWO_HOSTS.other(primary)
    said = len(world.log(primary))
    with world.fence_fails(backup), talk(world) as idle:
        with world.capture(tmp_path / "client.pcap") as running, world.start("bulk", "--size", "20M") as workload:
            time.sleep(0.4)
            with world.stopped([world.lab.daemon_pid(primary)]):
                assert eventually(lambda: world.state(backup) == "refused")
            ended_well(workload)
            idle.exchange()
        faultless(running)
        assert speakers(running.path) == [primary]
        assert world.comes(primary, said, "error", "after=unprotected", "refused")
        assert world.epoch() == epoch
        world.becomes(**{primary: "protected", backup: "shadowing"})
        world.why_not(idle.connection)

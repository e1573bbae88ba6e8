"""The sync channel is cut, in every way: nothing acknowledged is lost, and one host is heard."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.measure.verdict import read_capture
from nfq_failover.lab.state import Cut, Options
from nfq_failover.lab.topology import TWO_HOSTS
from tests.support.fault_world import (
    ALLOWANCE_S,
    CALM_MS,
    DETECTION_S,
    HOLD_AT_LEAST_S,
    HOLD_AT_MOST_S,
    FaultWorld,
    adding,
    ended_well,
    faultless,
    heard,
    speakers,
    talk,
    whole,
    without_fence,
)
from tests.support.fault_world import world as lab_world
from tests.support.lab_world import eventually
from tests.support.shared_lab import each_world, shared_lab

pytestmark = [pytest.mark.netns, pytest.mark.slow]

# As slow as it takes to last through a partition: at the rate of the link this would be over before it is noticed.
SIZES = {"upload": "25M", "bulk": "25M"}
# When the primary lets go, its acknowledgements go out at once; what the client had lost by then it repeats later.
BACKOFF_S = 1.0
OPTIONS = Options(rate="100mbit", heartbeat_ms=CALM_MS)


shared = shared_lab(OPTIONS, edit=adding("fence_retry_ms = 60000"))  # one refusal is enough to look at
world = each_world()


class Partition:
    """One workload through one partition: what the client saw of it."""

    def __init__(self, world: FaultWorld, kind: str, capture: Path) -> None:
        self.world, self.kind = world, kind
        self.primary = world.lab.resolve("primary")
        self.backup = TWO_HOSTS.other(self.primary)
        self.lines = {node: len(world.log(node)) for node in (self.primary, self.backup)}
        self.epoch = world.epoch()
        self.running: Capture = world.capture(capture)
        self.report: dict[str, Any] = {}
        self.cut_at = 0.0

    def run(self, direction: str | None) -> None:
        """To the end of the workload, which must end well."""
        with self.running, self.world.start(self.kind, "--size", SIZES[self.kind]) as workload:
            time.sleep(0.4)
            self.cut(direction)
            self.report = ended_well(workload)
            # Till the last acknowledgement, also when that is held longer than the connection lasts.
            assert eventually(lambda: self.world.membership()[self.primary] in (None, "unprotected"))
            time.sleep(0.1)

    def cut(self, direction: str | None) -> None:
        """Cut the primary's sync channel."""
        self.world.lab.cut(Cut(self.primary, "sync", direction))
        self.cut_at = time.time()

    def nothing_acknowledged_is_lost(self) -> None:
        """All that the client was told is delivered has been read by the application that is heard now."""
        packets = read_capture(self.running.path, TWO_HOSTS.service)
        stream = packets[0].stream
        acked = max(p.ack for p in packets if p.from_service and p.stream == stream) - 1
        # The request of 150 bytes, the body (of which the receipt tells, with its SHA-256), and the FIN.
        assert acked == 150 + (self.report["bytes"] if self.kind == "upload" else 0) + 1

    def held_after_cut(self) -> float:
        """The longest time after the cut in which nothing new was acknowledged, in seconds."""
        times, acked = [self.cut_at], 0
        for packet in heard(self.running.path):
            if packet.ack > acked and packet.time > self.cut_at:
                times.append(packet.time)
            acked = max(acked, packet.ack)
        return max(b - a for a, b in pairwise(times))

    def chatter(self) -> int:
        """How many packets the service sent that said the same as the one before."""
        packets = [p for p in read_capture(self.running.path, TWO_HOSTS.service) if p.from_service]
        return sum((a.seq, a.ack, a.window, a.length) == (b.seq, b.ack, b.window, 0) for a, b in pairwise(packets))


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("direction", [None, "out"])
def test_a_backup_that_hears_nothing_fences_and_has_every_acknowledged_byte(
    world: FaultWorld, kind: str, direction: str | None, tmp_path: Path
) -> None:
    run = Partition(world, kind, tmp_path / "client.pcap")
    run.run(direction)
    faultless(run.running)
    run.nothing_acknowledged_is_lost()
    # The old primary is off before the new one is heard: they take one turn each.
    assert speakers(run.running.path) == [run.primary, run.backup]
    off = world.events("fenced")[-1]
    assert off["node"] == run.primary
    assert min(p.time for p in heard(run.running.path) if p.node == run.backup) > off["time_s"]
    assert world.states() == {run.primary: "off", run.backup: "unprotected"}
    assert world.epoch() == run.epoch + 1
    assert not world.said(run.primary, run.lines[run.primary], "after=unprotected")


@pytest.mark.parametrize("kind", SIZES)
def test_a_primary_that_hears_nothing_goes_unprotected_when_the_backups_time_is_over(
    world: FaultWorld, kind: str, tmp_path: Path
) -> None:
    """The backup hears the primary, so it has no cause to fence it."""
    run = Partition(world, kind, tmp_path / "client.pcap")
    run.run("in")
    faultless(run.running)
    run.nothing_acknowledged_is_lost()
    assert speakers(run.running.path) == [run.primary]
    assert world.membership() == {run.primary: "unprotected", run.backup: "shadowing"}
    world.becomes(**{run.primary: "unprotected", run.backup: "unprotected"})  # each tells the other what is wrong
    assert world.epoch() == run.epoch
    world.lab.heal(run.primary)
    world.becomes(**{run.primary: "protected", run.backup: "shadowing"})


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("direction", [None, "out"])
def test_without_a_working_fence_the_backup_refuses_and_the_primary_waits_for_that(
    world: FaultWorld, kind: str, direction: str | None, tmp_path: Path
) -> None:
    run = Partition(world, kind, tmp_path / "client.pcap")
    with world.fence_fails(run.backup), talk(world) as idle:
        run.run(direction)
        faultless(run.running)
        run.nothing_acknowledged_is_lost()
        assert speakers(run.running.path) == [run.primary]
        world.becomes(**{run.primary: "unprotected", run.backup: "refused"})
        refusals = world.said(run.backup, run.lines[run.backup], "error", "after=refused", "the fence failed")
        assert len(refusals) == 1
        assert world.comes(run.primary, run.lines[run.primary], "error", "after=unprotected")
        if direction is None and kind == "upload":
            # Not one byte that the backup might lack was acknowledged before the backup's time was over.
            assert HOLD_AT_LEAST_S <= run.held_after_cut() <= HOLD_AT_MOST_S + BACKOFF_S
            assert run.chatter() < 20
        world.why_not(idle.connection)
        world.lab.heal(run.primary)
        world.becomes(**{run.primary: "protected", run.backup: "shadowing"})
        idle.exchange()
        world.why_not(idle.connection)  # what the backup has of it would have a hole
        with talk(world) as new:
            assert world.protects(new.connection)
    assert world.epoch() == run.epoch


def test_no_fence_and_no_acceptance_means_no_takeover(tmp_path: Path) -> None:
    with lab_world(OPTIONS, without_fence("refuse")) as world, talk(world) as idle:
        assert world.comes("b", 0, "warning", "the backup never takes over by itself")
        with world.capture(tmp_path / "client.pcap") as running:
            world.lab.crash("a")
            world.becomes(b="refused")
            assert world.comes("b", 0, "error", "there is no fence")
            assert idle.stays_silent(HOLD_AT_MOST_S)
            assert world.states() == {"a": "off", "b": "refused"}
        assert heard(running.path) == []


def test_an_accepted_split_brain_takes_over_at_the_detection_time(tmp_path: Path) -> None:
    with lab_world(OPTIONS, without_fence("accepted")) as world:
        with world.capture(tmp_path / "client.pcap") as running, world.start("bulk", "--size", "15M") as workload:
            time.sleep(0.4)
            crash = world.lab.crash("a")
            ended_well(workload)
        faultless(running)
        assert speakers(running.path) == ["a", "b"]
        first = min(p.time for p in heard(running.path) if p.node == "b")
        interval = CALM_MS / 1000
        assert DETECTION_S - interval - 0.05 <= first - crash["time_s"] <= DETECTION_S + ALLOWANCE_S
        assert world.states() == {"a": "off", "b": "unprotected"}

        # A primary that has lost its backup does not wait for a fence that there is not, either.
        world.lab.restore("a")
        upload = Partition(world, "upload", tmp_path / "upload.pcap")
        with upload.running, world.start("upload", "--size", "20M") as workload:
            time.sleep(0.4)
            world.lab.crash("backup")
            upload.cut_at = time.time()
            ended_well(workload)
        whole(upload.running)
        assert upload.held_after_cut() <= DETECTION_S + ALLOWANCE_S

"""Takeovers with the real daemons: every workload, on each tap, crash after crash."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS
from tests.support.fault_world import (
    ALLOWANCE_S,
    CALM_MS,
    DETECTION_S,
    FaultWorld,
    Talk,
    ended_well,
    faultless,
    speakers,
    talk,
)
from tests.support.lab_world import eventually
from tests.support.shared_lab import each_world, shared_lab

pytestmark = [pytest.mark.netns, pytest.mark.slow]

WORKLOADS = {
    "echo": ["echo", "--seconds", "1.5"],
    "interactive": ["interactive", "--seconds", "1.5"],
    "bulk": ["bulk", "--size", "15M"],
    "upload": ["upload", "--size", "15M"],
}


shared = shared_lab(*(Options(tap=tap, rate="100mbit", heartbeat_ms=CALM_MS) for tap in ("clone", "multicast")))
world = each_world()


def listed(world: FaultWorld, old: Talk) -> tuple[bool, str]:
    """How the status lists this connection: (protected, reason)."""
    assert eventually(lambda: world.row(old.connection) is not None)
    row = world.row(old.connection)
    assert row is not None
    return row["protected"], row["reason"]


@pytest.mark.parametrize("kind", WORKLOADS)
def test_takeover_and_restore(world: FaultWorld, kind: str, tmp_path: Path) -> None:
    before = world.lab.status()
    crashed = world.lab.resolve("primary")
    survivor = TWO_HOSTS.other(crashed)
    with talk(world) as old:
        assert listed(world, old) == (True, "")
        with world.capture(tmp_path / "client.pcap") as running, world.start(*WORKLOADS[kind]) as workload:
            time.sleep(0.5)
            world.lab.crash("primary")
            report = ended_well(workload)
            old.exchange()

        result = faultless(running)
        assert result.connections == 1
        assert speakers(running.path) == [crashed, survivor]
        limit = DETECTION_S + ALLOWANCE_S  # the client's own retransmission is made to come at once
        assert 0.5 * DETECTION_S <= report["longest_silence_ms"] / 1000 <= limit
        assert result.silence is not None
        assert result.silence.ms / 1000 <= limit

        after = world.lab.status()
        assert after["epoch"] == before["epoch"] + 1
        assert world.states() == {crashed: "off", survivor: "unprotected"}
        assert "taken over" in listed(world, old)[1]
        assert listed(world, old)[0] is False

        world.lab.restore(crashed)
        assert world.states() == {crashed: "shadowing", survivor: "protected"}
        assert world.lab.status()["epoch"] == after["epoch"]
        protected, reason = listed(world, old)
        assert not protected
        assert "taken over" in reason
        old.exchange()  # it goes on all the same
        with talk(world) as new:
            assert eventually(lambda: listed(world, new) == (True, ""))


def test_a_second_crash_takes_what_was_opened_after_the_first(world: FaultWorld, tmp_path: Path) -> None:
    first = world.lab.resolve("primary")
    with talk(world) as old:
        world.lab.crash(first)
        old.exchange()
        world.lab.restore(first)
        with talk(world) as new, world.capture(tmp_path / "client.pcap") as running:
            assert eventually(lambda: listed(world, new) == (True, ""))
            world.lab.crash("primary")
            new.exchange()
            # The connection that had survived one failure is not continued by a host that does not know it.
            assert old.stays_silent()
        faultless(running)
        assert world.lab.resolve("primary") == first

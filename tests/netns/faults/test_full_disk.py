"""The backup's disk is full when it has to take over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS
from tests.support.fault_world import CALM_MS, Edit, FaultWorld, talk
from tests.support.fault_world import world as lab_world
from tests.support.lab_world import eventually
from tests.support.namespaces import run

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def test_a_takeover_needs_no_room_on_the_disk() -> None:
    disks: list[Path] = []

    def edit(text: str) -> str:
        """Give the state directory of host b a small disk of its own."""
        if 'name = "b"' in text.split("[[peer]]")[0]:
            (path,) = re.findall(r'(?m)^state_dir = "(.*)"$', text)
            Path(path).mkdir(parents=True, exist_ok=True)
            run("mount", "-t", "tmpfs", "-o", "size=4m", "none", path)
            disks.append(Path(path))
        return text

    try:
        takes_over_on_a_full_disk(edit, disks)
    finally:
        for each in disks:
            run("umount", "-l", str(each))


def takes_over_on_a_full_disk(edit: Edit, disks: list[Path]) -> None:
    with lab_world(Options(rate="100mbit", heartbeat_ms=CALM_MS), edit) as world:
        primary = world.lab.resolve("primary")
        backup = TWO_HOSTS.other(primary)
        (disk,) = disks
        assert backup == "b"
        with talk(world) as living, (disk / "core").open("wb", buffering=0) as file:
            assert eventually(lambda: world.protects(living.connection))
            with pytest.raises(OSError, match="No space left"):
                for _ in range(2000):
                    file.write(bytes(4096))
            for host in (backup, primary):  # each is told by the other
                assert eventually(lambda: "state-disk-full" in codes(world, host)), codes(world, host)  # noqa: B023
                assert world.ask(host)["state"] == "degraded"
            world.lab.crash(primary)
            living.exchange()
            assert world.ask(backup)["membership"] == "unprotected"
            file.truncate(0)
            assert eventually(lambda: "state-disk-full" not in codes(world, backup))
            assert eventually(lambda: "rules-not-applied" not in codes(world, backup))
            world.lab.restore(primary)
            assert eventually(lambda: world.ask(backup).get("state") == "protected"), world.ask(backup)


def codes(world: FaultWorld, host: str) -> set[str]:
    return {each["code"] for each in world.ask(host).get("concerns", ())}

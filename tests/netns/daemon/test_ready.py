"""Could this host act now? What else on a host can take from the daemon is known before it is needed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon_world import DaemonWorld, daemon_world, refused, wait_until
from tests.support.namespaces import run

pytestmark = pytest.mark.netns


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DaemonWorld]:
    with daemon_world(tmp_path) as made:
        yield made


def concerns(world: DaemonWorld) -> dict[str, dict[str, Any]]:
    return {each["code"]: each for each in world.status()["concerns"]}


def process_of(world: DaemonWorld, module: str) -> int:
    for pid in run("ip", "netns", "pids", world.server.name).split():
        if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    raise AssertionError(f"{module} does not run")


def fill(directory: Path) -> None:
    with contextlib.suppress(OSError), (directory / "core").open("wb", buffering=0) as file:
        for _ in range(10_000):
            file.write(bytes(4096))


@pytest.mark.parametrize(
    ("size", "more", "lived"), [("16k", "", False), ("1m", ",nr_inodes=2", False), ("64k", "", True)]
)
def test_a_full_disk_at_the_start_is_one_sentence(world: DaemonWorld, size: str, more: str, lived: bool) -> None:
    world.state.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size}{more}", "none", str(world.state))
    try:
        if lived:  # the epoch has its room already
            process, _ = world.ready(world.config())
            process.terminate()
            assert process.wait(15) == 0
        before = world.snapshot()
        fill(world.state)
        said = refused(world, world.config())
        assert "Traceback" not in said and "I/O error" not in said and ("room" in said or "No space left" in said), said
        assert str(world.state) in said
        assert world.snapshot() == before
    finally:
        run("umount", str(world.state))
    process, log = world.ready(world.config())
    assert "damaged" not in log.read_text() and "can't be used" not in log.read_text()
    assert world.status()["state"] == "waiting"
    process.terminate()
    assert process.wait(15) == 0


def test_parts_that_are_stopped_or_taken_away_are_concerns_until_they_are_back(world: DaemonWorld) -> None:
    fence = world.disk / "fence"
    fence.write_text("#!/no/such/interpreter\n")
    fence.chmod(0o755)
    process, _ = world.ready(world.config(fence=[str(fence)], fence_deadline_ms=1000))
    wait_until(lambda: "fence-fails" in concerns(world))
    assert "/no/such/interpreter" in concerns(world)["fence-fails"]["what"]
    sender = process_of(world, "nfq_failover.shell.peer.heartbeat_sender")
    helper = process_of(world, "nfq_failover.shell.privileged.helper")
    for pid in (sender, helper):
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: {"heartbeats-stopped", "helper-hangs"} <= concerns(world).keys())
    assert concerns(world)["helper-hangs"]["weight"] == "unprotected"
    for pid in (sender, helper):
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not {"heartbeats-stopped", "helper-hangs"} & concerns(world).keys())
    process.terminate()
    assert process.wait(15) == 0

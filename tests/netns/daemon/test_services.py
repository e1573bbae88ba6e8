"""Two services in one daemon: each has its own node, queues, rules, address, helper and state; both leave no trace."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.shell.control import ask
from tests.support.daemon_world import DaemonWorld, daemon_world, wait_until
from tests.support.namespaces import SERVICE

pytestmark = pytest.mark.netns

OTHER = "10.77.0.200"
# The command line starts one service. This starts one for each configuration that it is given.
MAIN = """
import sys
from pathlib import Path
from nfq_failover.config import load
from nfq_failover.shell.daemon import Daemon
from nfq_failover.shell.start import prepare
Daemon(prepare(*(load(Path(name)) for name in sys.argv[1:]))).run(lambda: print("ready", flush=True))
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DaemonWorld]:
    with daemon_world(tmp_path) as w:
        yield w


def _configurations(world: DaemonWorld) -> tuple[Path, Path]:
    first = world.config().rename(world.disk / "first.toml")
    second = world.config(
        service=OTHER,
        ports=[81],
        listen="10.77.0.2:7800",
        instance="second",
        state_dir=str(world.disk / "second-state"),
        queue_in=7770,
        queue_out=7771,
        mark=0x20000000,
    )
    return first, second


def test_a_daemon_runs_two_services_and_leaves_nothing_of_either(world: DaemonWorld) -> None:
    before = world.snapshot()
    process, log = world.run_program(MAIN, *map(str, _configurations(world)))
    wait_until(lambda: "ready" in log.read_text() or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    during = world.snapshot()
    for address, queue in ((SERVICE, "7760"), (OTHER, "7770")):
        assert f"{address}/32" in str(during["addresses"])
        assert any(address in rule for rule in during["rules"])  # type: ignore[attr-defined]
        assert queue in str(during["queues"])
    socket = world.state / "control.sock"
    with pytest.raises(CommandError, match=r"name one 'service' of 10\.77\.0\.100, 10\.77\.0\.200"):
        ask(socket, "status")
    for address in (SERVICE, OTHER):
        status = ask(socket, "status", service=address)
        assert (status["state"], status["shell"]["rules"]["installed"]) == ("waiting", "backup")
    claimed = ask(socket, "claim", service=OTHER)  # one of them begins to serve, the other is as it was
    assert claimed["before"] == "waiting"
    wait_until(lambda: ask(socket, "status", service=OTHER)["state"] == "unprotected")
    assert ask(socket, "status", service=SERVICE)["state"] == "waiting"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(15) == 0, log.read_text()
    assert world.snapshot() == before


def test_a_daemon_ends_when_the_helper_of_one_service_has_ended(world: DaemonWorld) -> None:
    process, log = world.run_program(MAIN, *map(str, _configurations(world)))
    wait_until(lambda: "ready" in log.read_text())
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    helpers = [int(pid) for pid in children if b"privileged.helper" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(helpers) == 2
    os.kill(helpers[1], signal.SIGKILL)
    assert process.wait(15) == 70, log.read_text()
    assert "the privileged helper has ended" in log.read_text()

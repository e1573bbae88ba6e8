"""The program of `script/vagrant-test`, rehearsed: the machines are the lab's namespaces, all else is the real thing.

What it must find in a run (and what it must not call good) is then known before an hour is spent on virtual machines.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.lab import nodes
from nfq_failover.lab.driver import LabDriver
from nfq_failover.lab.machines import numbers
from nfq_failover.lab.machines.machines import Machines
from nfq_failover.lab.machines.trial import Options, Trials
from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.state import Cut
from nfq_failover.lab.state import Options as LabOptions
from nfq_failover.lab.testbed import Workload
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.lab_world import fresh_name

pytestmark = pytest.mark.netns

NODES = {"primary": "a", "backup": "b"}
# What the machines have and the namespaces lack, as far as the program uses it.
STUBS = {
    "sudo": 'exec "$@"',
    "systemctl": """case "$*" in
*MainPID*) cat "$PID_FILE" ;;
stop*)
    [ -s "$HERE/unit" ] || exit 0
    kill "$(cat "$HERE/unit")"
    while kill -0 "$(cat "$HERE/unit")"; do sleep 0.1; done
    rm "$HERE/unit"
    ;;
esac""",
    "systemd-run": """output=/dev/null
while [ "${1#--}" != "$1" ]; do
    case $1 in --property=StandardOutput=truncate:*) output=${1#*truncate:} ;; esac
    shift
done
"$@" >"$output" 2>/dev/null </dev/null &
echo $! >"$HERE/unit\"""",
    "journalctl": 'cat "$LOG"',
}


class Rehearsal(Machines):
    """The lab `driver`, in the place of two virtual machines."""

    def __init__(self, driver: LabDriver, scratch: Path) -> None:
        self.service = TWO_HOSTS.service
        self.driver = driver
        self.scratch = scratch
        self.ups = 0
        for name, text in STUBS.items():
            stub = scratch / name
            stub.write_text(f"#!/bin/sh\n{text}\n")
            stub.chmod(stub.stat().st_mode | stat.S_IXUSR)

    def up(self, *machines: str, log: Path | None = None) -> None:
        raise LabError("the machines are up")

    def restore(self, machine: str) -> None:
        self.ups += 1
        self.driver.lab.restore(NODES[machine])

    def exists(self, machine: str) -> bool:
        return True

    def is_on(self, machine: str) -> bool:
        return bool(self.driver.lab.status()["nodes"][NODES[machine]]["alive"])

    def crash(self, machine: str) -> float:
        return self.driver.crash(NODES[machine])

    def cut(self, machine: str) -> float:
        moment = time.time()
        self.driver.lab.cut(Cut(NODES[machine]))
        return moment

    def mend(self, machine: str) -> None:
        self.driver.lab.heal(NODES[machine])

    def status(self, machine: str) -> dict[str, Any] | None:
        return nodes.ask_daemon(self.driver.lab.store, NODES[machine])

    def use_tap(self, tap: str) -> None:
        pass

    def run(self, machine: str, command: str, timeout_s: float = 180.0) -> str:
        node = NODES[machine]
        disk = self.driver.lab.store.directory / node
        env = {"PATH": f"{self.scratch}:{os.environ['PATH']}:/usr/sbin:/sbin", "HERE": str(self.scratch)}
        done = subprocess.run(
            ["ip", "netns", "exec", namespace(self.driver.name, node), "sh", "-c", command],
            env=env | {"PID_FILE": str(disk / "daemon.pid"), "LOG": str(self.driver.lab.store.log(f"daemon-{node}"))},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise LabError(f"{command}: {done.stderr}")
        return done.stdout

    def fetch(self, machine: str, path: str, target: Path) -> None:
        target.write_bytes(Path(path).read_bytes())

    def capture(self, path: Path) -> Capture:
        return self.driver.capture(path)

    def start_workload(self, arguments: Sequence[str]) -> Workload:
        return self.driver.start_workload(arguments)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with LabDriver(fresh_name()) as driver:
        driver.up(LabOptions(heartbeat_ms=100))
        driver.serve_workloads("7000")
        yield Rehearsal(driver, tmp_path_factory.mktemp("stubs"))
    Path(numbers._FILE).unlink(missing_ok=True)


def options(output: Path, **changes: Any) -> Options:
    given: dict[str, Any] = {"count": 1, "faults": ("off",), "workloads": ("bulk",), "taps": ("clone",)}
    given |= {"size": 100_000, "seconds": 5.0, "rate": 20.0, "seed": 1, "output": output}
    return Options(**(given | changes))


def test_faults_are_struck_survived_and_reported(machines: Rehearsal, tmp_path: Path) -> None:
    faults = ("hang", "cut")
    runs = Trials(machines, options(tmp_path, count=2, faults=faults, workloads=("upload", "bulk"))).all()
    assert [run.faults_found() for run in runs] == [[], []]
    assert [run.fault for run in runs] == ["hang", "cut"]
    assert [run.primary for run in runs] == ["primary", "backup"]
    assert all(len(run.seq_difference) == 1 and run.fenced for run in runs)
    assert all(run.fence_ms is not None and run.heard_ms is not None for run in runs)
    assert machines.ups == 2
    stored = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [line["silence_ms"] for line in stored] == [run.silence_ms for run in runs]
    assert "2 of 2 good" in (tmp_path / "report.md").read_text()
    assert not list(tmp_path.rglob("*.pcap"))


def test_a_transfer_that_is_over_before_the_fault_proves_nothing(machines: Rehearsal, tmp_path: Path) -> None:
    class Late(Trials):
        def _strike(self, fault: str, primary: str) -> float:
            time.sleep(2)
            return super()._strike(fault, primary)

    # Long enough to be seen as protected, and over when the fault comes.
    (run,) = Late(machines, options(tmp_path, seconds=1.5, workloads=("echo",), seed=3)).all()
    assert not run.in_time
    assert not run.good
    assert list(tmp_path.rglob("client.pcap"))

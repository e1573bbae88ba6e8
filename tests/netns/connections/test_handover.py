"""`on_failure = "connection"`: a server process dies on the primary alone, and its connection goes on from the backup,
while all others stay."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.lab import nodes
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.client_capture import senders
from tests.support.connection_world import CALM, SERVER_PROGRAM, Case, SharedLab, Steps, Talk, pause
from tests.support.lab_world import PORT, declare_whole, eventually
from tests.support.scripted_server import content

HALF = 400_000
ECHO = [["echo_all"]]
RELAY = '[application]\non_failure = "connection"'


class Forking(SharedLab):
    """A lab with a server that has a process for each connection."""

    def __init__(self, tap: str, seed: int) -> None:
        options = Options(tap=tap, ports=(f"{PORT}-{PORT + 9}",), heartbeat_ms=CALM, health=True, settings=(RELAY,))
        self.tap = tap
        self._again: list[subprocess.Popen[str]] = []
        super().__init__(options, seed, (f"{PORT}",))

    def _start(self) -> None:
        super()._start()
        self.states(a="protected", b="shadowing")

    def states(self, **states: str) -> None:
        """Waits for states, like a="yielded"."""

        def there() -> bool:
            return all(self.says(node).get("state") == state for node, state in states.items())

        assert eventually(there, 20), {node: self.says(node).get("state") for node in states}

    @staticmethod
    def program(*ports: str) -> list[str]:
        return [sys.executable, SERVER_PROGRAM, "--fork", *(word for port in ports for word in ("--port", port))]

    def says(self, node: str) -> dict[str, Any]:
        """The daemon's own status."""
        return nodes.ask_daemon(self.lab.store, node) or {}

    def pids(self, node: str) -> list[int]:
        """The server's processes on the node."""
        command = ["ip", "netns", "pids", namespace(self.lab.name, node)]
        pids = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        return [pid for pid in pids if is_server(pid)]

    def kill_application(self, node: str) -> None:
        """Kill all of it."""
        pids = self.pids(node)
        assert pids
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not self.pids(node))

    def kill_listener(self, node: str) -> None:
        """Kill the process that accepts; those of the connections go on."""
        pids = self.pids(node)
        (listener,) = [pid for pid in pids if parent(pid) not in pids]
        os.kill(listener, signal.SIGKILL)
        assert eventually(lambda: listener not in self.pids(node))

    def start_again(self, node: str) -> None:
        """Another server, beside what the old one still has."""
        with self.lab.store.log(f"serve-0-{node}").open("a") as log:  # where the next case looks for its ends
            self._again.append(self.lab.popen(node, self.program(f"{PORT}"), stdout=log, text=True))

    def down(self) -> None:
        super().down()
        for process in self._again:
            process.wait(10)

    def reason(self, node: str, talk: Talk) -> str:
        """What that daemon says of the connection; empty if it does not list it."""
        rows = [row for row in self.says(node).get("connections", []) if row["client"] == talk.name]
        return str(rows[0]["reason"]) if rows else ""

    def becomes(self, talk: Talk, **reasons: str) -> None:
        """Waits until the daemons say so of the connection."""
        deadline = eventually(lambda: all(text in self.reason(node, talk) for node, text in reasons.items()), 20)
        assert deadline, {node: self.reason(node, talk) for node in reasons}

    def neighbour(self) -> str:
        """Where the client sends what is for the service."""
        command = ["ip", "-j", "-n", namespace(self.lab.name, TWO_HOSTS.client), "neigh", "show", TWO_HOSTS.service]
        (row,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return str(row["lladdr"])


@pytest.fixture(scope="module")
def world() -> Iterator[Forking]:
    made = Forking("clone", seed=67)
    yield made
    made.down()


def is_server(pid: int) -> bool:
    """Whether a process is the scripted server, or was a moment ago."""
    try:
        return b"scripted_server.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def parent(pid: int) -> int:
    """The process id of its parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def reusable(connection: socket.socket, port: int = 0) -> None:
    """A port that can be used again."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.bind(("0.0.0.0", port))


def open_failing(case: Case, primary: str, name: str) -> Talk:
    """A connection whose server will be killed on the primary when its gate opens, in mid-response."""
    gate = str(case.gate(name))
    steps: Steps = [
        ["send", HALF, 1],
        ["gate", gate],
        ["send", HALF, 2],
        ["kill", primary],
        ["send", HALF, 3],
        ["echo_all"],
    ]
    return case.open(steps, prepare=reusable)


def hand_over(world: Forking, case: Case) -> tuple[str, Talk]:
    """A connection that the backup goes on with; and the primary's name."""
    primary = world.lab.resolve("primary")
    failing = open_failing(case, primary, "die")
    got = failing.receive(HALF)
    case.assert_protected(failing)
    case.gate("die").touch()
    got += failing.receive(2 * HALF)
    assert sha256(got) == sha256(b"".join(content(seed, HALF) for seed in (1, 2, 3)))
    failing.echo(4, 50_000)
    world.becomes(
        failing, **{primary: "handed over to the backup", TWO_HOSTS.other(primary): "handed over by the primary"}
    )
    return primary, failing


def one_moves_and_then_all(world: Forking, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        primary = world.lab.resolve("primary")
        backup = TWO_HOSTS.other(primary)
        others = [case.open(ECHO) for _ in range(3)]
        for number, talk in enumerate(others):
            talk.echo(number)
        case.assert_protected(*others)
        _, failing = hand_over(world, case)
        for number, talk in enumerate(others):
            talk.echo(10 + number)
            assert case.row(talk)["protected"]
        case.open(ECHO).echo(20)
        states = {node: world.says(node)["state"] for node in (primary, backup)}
        assert states == {primary: "protected", backup: "shadowing"}
        expected = TWO_HOSTS.hardware(primary) if world.tap == "clone" else TWO_HOSTS.multicast_hardware
        assert world.neighbour() == expected
        case.crash()
        for number, talk in enumerate([failing, *others]):
            talk.echo(30 + number, 20_000)
        world.becomes(failing, **{backup: "taken over"})
        case.finish()
    heard = senders(tmp_path / "client.pcap")
    both = [TWO_HOSTS.hardware(primary), TWO_HOSTS.hardware(backup)]
    assert all(heard[talk.port] == both for talk in (failing, *others)), heard  # never one of them between the other


def test_one_connection_moves_and_then_all(world: Forking, tmp_path: Path) -> None:
    one_moves_and_then_all(world, tmp_path)


def test_the_same_with_the_multicast_tap(tmp_path: Path) -> None:
    world = Forking("multicast", seed=68)
    try:
        one_moves_and_then_all(world, tmp_path)
    finally:
        world.down()


def test_it_goes_on_without_protection_and_in_the_next_one(world: Forking, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        primary, failing = hand_over(world, case)
        backup = TWO_HOSTS.other(primary)
        world.kill_listener(backup)
        world.states(**{primary: "unprotected", backup: "shadowing"})
        for seed in range(2):
            failing.echo(seed, 50_000)
            pause(2.7)  # it would be given up after 5 s
        world.becomes(failing, **{primary: "handed over to the backup", backup: "handed over by the primary"})
        world.start_again(backup)
        assert eventually(lambda: "application-anew" in str(world.says(backup).get("concerns")))
        declare_whole(world.lab)
        world.states(**{primary: "protected", backup: "shadowing"})
        failing.echo(7, 50_000)
        new = case.open(ECHO)
        new.echo(8)
        case.assert_protected(new)
        case.crash()
        failing.echo(9, 50_000)
        new.echo(10)


def test_it_outlives_the_backups_daemon(world: Forking, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        primary, failing = hand_over(world, case)
        backup = TWO_HOSTS.other(primary)
        assert eventually(lambda: not any(row["lag_bytes"] for row in world.says(backup)["connections"]))
        pid = world.lab.daemon_pid(backup)
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)
        world.lab.start_daemon(backup)
        failing.echo(5, 50_000)
        world.states(**{primary: "protected", backup: "shadowing"})
        world.becomes(failing, **{primary: "handed over to the backup", backup: "handed over by the primary"})
        failing.echo(6, 50_000)


def test_it_ends_as_any_other_and_its_port_is_the_primarys_again(world: Forking, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        primary, failing = hand_over(world, case)
        failing.socket.shutdown(socket.SHUT_WR)
        failing.expect_end()
        failing.socket.close()
        case.assert_ends(failing, "done", TWO_HOSTS.other(primary))

        pause(1.1)  # a second of TIME_WAIT is enough for a client that uses timestamps (ip-sysctl, tcp_tw_reuse)
        case.set_client(tcp_tw_reuse="1")
        new = case.open(ECHO, prepare=lambda connection: reusable(connection, failing.port))
        new.echo(6)
        world.becomes(new, **{primary: ""})
        case.assert_protected(new)


def test_all_of_the_application_dies_and_the_service_moves(world: Forking, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        primary, failing = hand_over(world, case)
        idle = case.open(ECHO)
        idle.echo(1)
        case.assert_protected(idle)
        world.kill_application(primary)
        for seed in range(2, 5):
            failing.echo(seed)
            idle.echo(seed)
        world.states(**{primary: "yielded", TWO_HOSTS.other(primary): "unprotected"})
        failing.echo(6, 50_000)
        idle.echo(7, 50_000)
    world.start_again(primary)
    world.states(**{primary: "shadowing", TWO_HOSTS.other(primary): "protected"})


def test_it_is_lost_loudly_with_the_backup(world: Forking, tmp_path: Path) -> None:
    with world.case(tmp_path, judged=False) as case:  # what makes the client ask is no segment of a living connection
        primary, failing = hand_over(world, case)
        world.lab.crash(TWO_HOSTS.other(primary))
        with pytest.raises(ConnectionResetError):  # though this client says nothing
            failing.socket.recv(1)
        world.states(**{primary: "unprotected"})
        assert world.says(primary)["counters"]["handed-over-lost"] == 1
        case.open(ECHO).echo(1)

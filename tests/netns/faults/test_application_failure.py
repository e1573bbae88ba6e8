"""The application dies or hangs while its kernel lives, on either host: what the client sees of it is nothing."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.lab import netns, nodes
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.connection_world import CALM, Case, SharedLab, Talk, pause
from tests.support.lab_world import PORT, connect, declare_whole, eventually
from tests.support.scripted_server import content

HALF = 400_000
ECHO = [["echo_all"]]


class Applications(SharedLab):
    """A lab whose daemons check the health of the scripted server; it can be signalled, and started again."""

    def __init__(self, seed: int) -> None:
        self._again: list[subprocess.Popen[str]] = []
        super().__init__(Options(ports=(f"{PORT}-{PORT + 9}",), heartbeat_ms=CALM, health=True), seed, (f"{PORT}",))

    def _start(self) -> None:
        super()._start()
        self.becomes(a="protected", b="shadowing")

    def pids(self, node: str) -> list[int]:
        """The scripted server's processes on the node."""
        out = subprocess.run(
            ["ip", "netns", "pids", namespace(self.lab.name, node)], capture_output=True, text=True, check=True
        )
        return [pid for pid in map(int, out.stdout.split()) if _is_server(pid)]

    def signal(self, node: str, number: int) -> None:
        """Send the application on the node a signal."""
        pids = self.pids(node)
        assert pids
        for pid in pids:
            os.kill(pid, number)

    def start(self, node: str, kind: str = "") -> None:
        """Start the application on the node, if it is not there. It listens when this returns."""
        if not self.pids(node):
            # A session of its own: else a stopped one is continued when the process group of the tests is orphaned.
            with self.lab.store.log(f"serve-0-{node}").open("a") as log:
                options = {"stdout": log, "text": True, "start_new_session": True}
                self._again.append(self.lab.popen(node, self.program(f"{PORT}{kind}"), **options))
            inside = namespace(self.lab.name, node)
            assert eventually(lambda: bool(netns.listeners(inside, lambda port: port == PORT)))

    def says(self, node: str) -> dict[str, object]:
        """The daemon's own status."""
        return nodes.ask_daemon(self.lab.store, node) or {}

    def becomes(self, **states: str) -> None:
        """Waits for states, like a="yielded"."""

        def there() -> bool:
            return all(self.says(node).get("state") == state for node, state in states.items())

        assert eventually(there, 20), {node: self._why(node) for node in states}

    def _why(self, node: str) -> dict[str, object]:
        said = self.says(node)
        return {key: said.get(key) for key in ("state", "reason", "membership", "concerns", "mishaps")}

    def heal(self, node: str) -> None:
        """The application on the node is well again, and the pair protected."""
        killed = set()
        for pid in self.pids(node):
            os.kill(pid, signal.SIGCONT)
            if self.says(node).get("application", {}).get("well") is False:  # type: ignore[attr-defined]
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        # One that dies is there for a moment yet, and keeps the port.
        assert eventually(lambda: not killed & set(self.pids(node)))
        assert eventually(lambda: all(not _stopped(pid) for pid in self.pids(node)))
        self.start(node)
        # One that was killed as a replica has lost its state, for all that anybody knows. The operator says that it has
        # not, before anybody can have seen that there is another one.
        declare_whole(self.lab)
        self.becomes(**{node: "shadowing", TWO_HOSTS.other(node): "protected"})

    def down(self) -> None:
        super().down()
        for process in self._again:
            process.wait(10)


def _is_server(pid: int) -> bool:
    try:
        return b"scripted_server.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "TZ"
    except OSError:
        return False


@pytest.fixture(scope="module")
def world() -> Iterator[Applications]:
    made = Applications(seed=61)
    yield made
    made.down()


def goes_on(case: Case, *talks: Talk) -> None:
    """Old connections go on, and a new one can be opened."""
    for number, talk in enumerate(talks):
        talk.echo(100 + number)
    new = case.open(ECHO)
    new.echo(200)


def test_primary_is_killed(world: Applications, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        primary = world.lab.resolve("primary")
        idle = case.open(ECHO)
        idle.echo(1)
        half_closed = case.open([["take_all"], ["gate", str(case.gate("answer"))], ["send", 5000, 4]])
        half_closed.socket.sendall(content(5, 70_000))
        half_closed.socket.shutdown(1)
        busy = case.open([["send", 2 * HALF, 3]])
        case.assert_protected(idle, half_closed)
        begun = busy.receive(HALF)
        world.signal(primary, signal.SIGKILL)
        assert begun + busy.receive(HALF) == content(3, 2 * HALF)
        busy.expect_end()
        idle.echo(2)
        world.becomes(**{primary: "yielded", TWO_HOSTS.other(primary): "unprotected"})
        case.gate("answer").touch()
        assert half_closed.receive(5000) == content(4, 5000)
        half_closed.expect_end()
        goes_on(case, idle)
        pause(0.5)
        assert world.says(primary)["state"] == "yielded"  # nothing to join with yet
    world.heal(primary)
    with connect(world.lab) as new:
        new.close()


@pytest.mark.parametrize("unread", [False, True])  # unread data: the kernel sends RST instead of FIN
def test_primary_exits_in_mid_response(world: Applications, tmp_path: Path, unread: bool) -> None:
    with world.case(tmp_path) as case:
        primary = world.lab.resolve("primary")
        idle = case.open(ECHO)
        idle.echo(1)
        case.assert_protected(idle)
        gate = str(case.gate("die"))
        talk = case.open([["send", HALF, 1], ["gate", gate], ["die", primary], ["send", HALF, 2], ["echo", 100, 100]])
        assert talk.receive(HALF) == content(1, HALF)
        if unread:
            talk.socket.sendall(content(7, 100))
            pause(0.1)
        case.gate("die").touch()
        assert talk.receive(HALF) == content(2, HALF)
        if not unread:
            talk.socket.sendall(content(7, 100))
        assert talk.receive(100) == content(7, 100)
        talk.expect_end()
        world.becomes(**{primary: "yielded", TWO_HOSTS.other(primary): "unprotected"})
        goes_on(case, idle)
    world.heal(primary)


def test_primary_hangs(world: Applications, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        primary = world.lab.resolve("primary")
        talk = case.open(ECHO)
        talk.echo(1)
        case.assert_protected(talk)
        world.signal(primary, signal.SIGSTOP)
        talk.echo(2)  # answered when the service has moved
        world.becomes(**{primary: "yielded", TWO_HOSTS.other(primary): "unprotected"})
        assert "health" in str(world.says(primary)["reason"])
        goes_on(case, talk)
    world.heal(primary)


def test_primary_refuses_new_connections(world: Applications, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        primary = world.lab.resolve("primary")
        talk = case.open(ECHO)
        talk.echo(1)
        case.assert_protected(talk)
        case.open([["refuse", primary]]).expect_end()
        world.becomes(**{primary: "yielded", TWO_HOSTS.other(primary): "unprotected"})
        goes_on(case, talk)
    world.heal(primary)


@pytest.mark.parametrize("how", ["killed", "hangs", "refuses"])
def test_backup_loses_its_application(world: Applications, tmp_path: Path, how: str) -> None:
    with world.case(tmp_path) as case:
        primary = world.lab.resolve("primary")
        backup = TWO_HOSTS.other(primary)
        talk = case.open(ECHO)
        talk.echo(1)
        silent = case.open([["take", 1]])  # the server closes it without a word: a hung replica has sent as much
        busy = case.open([["send", 2 * HALF, 3]])
        case.assert_protected(talk, silent)
        begun = busy.receive(HALF)
        if how == "refuses":
            case.open([["refuse", backup]]).expect_end()
        else:
            world.signal(backup, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        assert begun + busy.receive(HALF) == content(3, 2 * HALF)
        busy.expect_end()
        talk.echo(2)
        silent.socket.sendall(b"x")
        silent.expect_end()
        states = {primary: "unprotected", backup: "shadowing"}  # what the backup's application has missed degrades it
        assert eventually(lambda: {node: world.says(node).get("membership") for node in states} == states, 20)
        assert world.says(primary)["reason"] == "the backup's application has failed"
        assert case.row(talk)["reason"]
        goes_on(case, talk)
    world.heal(backup)


def test_replica_that_exits_in_mid_response_is_not_continued(world: Applications, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        primary = world.lab.resolve("primary")
        backup = TWO_HOSTS.other(primary)
        gate = str(case.gate("die"))
        talk = case.open([["send", HALF, 1], ["gate", gate], ["die", backup], ["send", HALF, 2], ["echo_all"]])
        assert talk.receive(HALF) == content(1, HALF)
        case.assert_protected(talk)
        case.gate("die").touch()
        assert talk.receive(HALF) == content(2, HALF)
        assert eventually(lambda: case.row(talk).get("protected") is False)
        reason = case.row(talk)["reason"]
        assert "replica has closed" in reason or "backup's application" in reason
        goes_on(case, talk)
    world.heal(backup)


def test_replica_that_binds_its_socket_to_an_interface_is_named(world: Applications, tmp_path: Path) -> None:
    """It listens, and nothing reaches it: what a replica is given comes over lo."""
    with world.case(tmp_path) as case:
        primary = world.lab.resolve("primary")
        backup = TWO_HOSTS.other(primary)
        talk = case.open(ECHO)
        talk.echo(1)
        case.assert_protected(talk)
        world.signal(backup, signal.SIGKILL)
        assert eventually(lambda: not world.pids(backup))
        world.start(backup, "/device")
        for node in (primary, backup):
            assert eventually(lambda node=node: "is bound to eth0" in str(world.says(node).get("concerns")), 20)  # type: ignore[misc]
        assert world.says(primary)["state"] != "protected"
        goes_on(case, talk)
        world.signal(backup, signal.SIGKILL)
        assert eventually(lambda: not world.pids(backup))
    world.heal(backup)

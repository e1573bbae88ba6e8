"""`on_failure = "connection"`: a server process dies on the primary alone, and its connection goes on from the backup,
while all others stay."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from connection_world import CALM, SERVER_PROGRAM, Case, Talk, World
from lab_world import PORT, eventually
from scripted_server import content

from nfq_failover.lab import nodes
from nfq_failover.lab.nodes import other
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import CLIENT, HARDWARE, MULTICAST_HARDWARE, SERVICE_ADDRESS, namespace

HALF = 400_000
ECHO = [["echo_all"]]
RELAY = '[application]\non_failure = "connection"'


class Forking(World):
    """A lab with a server that has a process for each connection."""

    def __init__(self, tap: str, seed: int) -> None:
        options = Options(tap=tap, ports=(f"{PORT}-{PORT + 9}",), heartbeat_ms=CALM, health=True, settings=(RELAY,))
        self.tap = tap
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
        command = ["ip", "-j", "-n", namespace(self.lab.name, CLIENT), "neigh", "show", SERVICE_ADDRESS]
        (row,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return str(row["lladdr"])


@pytest.fixture(scope="module", params=["clone", "multicast"])
def world(request: pytest.FixtureRequest) -> Iterator[Forking]:
    made = Forking(request.param, seed=67)
    yield made
    made.down()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def open_failing(case: Case, primary: str, name: str) -> Talk:
    """A connection whose server will be killed on the primary when its gate opens, in mid-response."""
    gate = str(case.gate(name))
    steps = [["send", HALF, 1], ["gate", gate], ["send", HALF, 2], ["kill", primary], ["send", HALF, 3], ["echo_all"]]
    return case.open(steps)


def test_one_connection_moves_and_then_all(world: Forking, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        primary = world.lab.resolve("primary")
        backup = other(primary)
        others = [case.open(ECHO) for _ in range(3)]
        for number, talk in enumerate(others):
            talk.echo(number)
        failing = open_failing(case, primary, "die")
        got = failing.receive(HALF)
        case.assert_protected(failing, *others)
        case.gate("die").touch()
        got += failing.receive(2 * HALF)
        assert sha256(got) == sha256(b"".join(content(seed, HALF) for seed in (1, 2, 3)))
        failing.echo(4, 50_000)  # the client's bytes get there, too
        world.becomes(failing, **{primary: "handed over to the backup", backup: "handed over by the primary"})
        for number, talk in enumerate(others):
            talk.echo(10 + number)
            assert case.row(talk)["protected"]
        case.open(ECHO).echo(20)
        states = {node: world.says(node)["state"] for node in (primary, backup)}
        assert states == {primary: "protected", backup: "shadowing"}
        expected = HARDWARE[primary] if world.tap == "clone" else MULTICAST_HARDWARE
        assert world.neighbour() == expected
        case.crash()
        for number, talk in enumerate([failing, *others]):
            talk.echo(30 + number, 20_000)
        world.becomes(failing, **{backup: "taken over"})

"""What people look at: `top` in a real terminal, and the page's server, of a pair through a takeover."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.lab import netns
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.state import Options, Store
from nfq_failover.lab.topology import namespace
from tests.support.lab_world import SERVER, connect, eventually, lab

pytestmark = pytest.mark.netns


def program(pair: Lab, node: str, command: str, *more: str) -> list[str]:
    config = Store(pair.name).directory / node / "config.toml"
    return [sys.executable, "-m", "nfq_failover", command, "--config", str(config), *more]


class Terminal:
    """A terminal of tmux, on a server of its own, in which a program runs."""

    def __init__(self, path: Path, argv: list[str]) -> None:
        self._tmux = ["tmux", "-S", str(path), "-f", "/dev/null"]
        self._run("new-session", "-d", "-x", "140", "-y", "30", *argv)

    def _run(self, *words: str) -> str:
        done = subprocess.run([*self._tmux, *words], capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shows(self, *words: str) -> bool:
        """Whether all of these words are on the screen, within some seconds."""
        return eventually(lambda: all(word in self.text() for word in words), 15.0)

    def text(self, colours: bool = False) -> str:
        """The screen, with the sequences of ECMA-48 for colours or without."""
        return self._run("capture-pane", "-p", *(["-e"] if colours else []))

    def press(self, key: str) -> None:
        self._run("send-keys", key)

    @property
    def ended(self) -> bool:
        return subprocess.run([*self._tmux, "list-sessions"], capture_output=True, timeout=20).returncode != 0

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, timeout=20, check=False)


@contextmanager
def terminal(path: Path, argv: list[str]) -> Iterator[Terminal]:
    made = Terminal(path, argv)
    try:
        yield made
    finally:
        made.close()


def get(pair: Lab, node: str, path: str) -> tuple[int, str]:
    """Ask the page's server of a host, from that host."""
    with netns.entered(namespace(pair.name, node)):
        inside = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    inside.settimeout(10)
    inside.connect(("127.0.0.1", 9767))
    connection = http.client.HTTPConnection("127.0.0.1", 9767)
    connection.sock = inside
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def status(pair: Lab, node: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get(pair, node, "/status.json")[1])
    return found


def test_a_takeover_is_seen_in_a_terminal_on_the_page_and_in_the_metrics(tmp_path: Path) -> None:
    with lab(Options(heartbeat_ms=200)) as pair:
        pair.serve(SERVER)
        pair.detach("b", program(pair, "b", "web"))
        inside = ["ip", "netns", "exec", namespace(pair.name, "b"), *program(pair, "b", "top", "--every", "0.3")]
        with connect(pair), terminal(tmp_path / "tmux", inside) as screen:
            assert screen.shows("backup, shadowing", "peer a", "alive", "1 connections, 1 protected")
            assert status(pair, "b")["takeover"] is None
            pair.crash("a")
            assert screen.shows("primary, unprotected", "silent", "last takeover at", "1 of 1 connections went on")
            screen.press("u")
            assert screen.shows("unprotected only", "taken over: an open connection survives"), screen.text()
            screen.press("q")
            assert eventually(lambda: screen.ended)

            found = status(pair, "b")
            assert found["connections_in_all"] == 1
            took = found["takeover"]
            assert (took["connections"], took["reset"]) == (1, 0)
            steps = [step for step, _ in took["phases"]]
            assert steps[0] == "checking" and steps[-1] == "heard by the clients" and "storing" in steps
            times = [after_ms for _, after_ms in took["phases"]]
            assert times == sorted(times) and 600 <= times[0] <= times[-1] < 10_000
            states = [(each["role"], each["state"]) for each in reversed(found["happenings"])]
            assert states.index(("backup", "shadowing")) < states.index(("primary", "unprotected"))
            _, text = get(pair, "b", "/metrics")
            assert "nfq_failover_takeover_connections 1\n" in text
            assert 'nfq_failover_role{role="primary"} 1\n' in text
            assert get(pair, "b", "/")[0] == 200

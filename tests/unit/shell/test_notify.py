"""What the service manager is told, over a socket of our own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.shell.notify import SHARE, ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A manager's socket, and its name as in NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@nfqf-test-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(name if name[0] == "/" else "\0" + name[1:])
        s.setblocking(False)
        yield s, name


def said(s: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(s.recv(4096).decode())
        except BlockingIOError:
            return found


def test_a_life_in_its_words(manager: tuple[socket.socket, str]) -> None:
    s, name = manager
    daemon = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())})
    daemon.ready()
    daemon.status("primary, protected, epoch 3")
    daemon.status("primary, protected, epoch 3")
    daemon.alive(100.0)
    daemon.stopping()
    daemon.close()
    assert said(s) == [
        f"READY=1\nMAINPID={os.getpid()}",
        "STATUS=primary, protected, epoch 3",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_the_watchdog_is_fed_several_times_in_its_time_and_not_more(manager: tuple[socket.socket, str]) -> None:
    s, name = manager
    daemon = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000"})
    for millisecond in range(0, 6000, 10):
        daemon.alive(50 + millisecond / 1000)
    assert 2 * SHARE - 1 <= len(said(s)) <= 2 * SHARE
    daemon.close()


@pytest.mark.parametrize("changes", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": ""}])
def test_a_watchdog_that_is_not_ours_is_not_fed(manager: tuple[socket.socket, str], changes: dict[str, str]) -> None:
    s, name = manager
    daemon = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000"} | changes)
    daemon.alive(100.0)
    assert said(s) == []
    daemon.close()


@pytest.mark.parametrize("name", ["", "@", "relative", "/no/such/socket"])
def test_without_a_manager_nothing_happens(name: str) -> None:
    daemon = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1"})
    daemon.ready()
    daemon.alive(1.0)
    daemon.status("waiting")
    daemon.stopping()
    daemon.close()
    daemon.close()


def test_a_manager_that_does_not_read_does_not_hold_us_up(manager: tuple[socket.socket, str]) -> None:
    _, name = manager
    daemon = ServiceManager({"NOTIFY_SOCKET": name})
    for number in range(5000):
        daemon.status(f"{number}")
    daemon.close()

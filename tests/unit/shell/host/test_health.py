"""Health checks against real sockets and real commands."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nfq_failover.config import HealthConfig
from nfq_failover.core.events import HealthChecked
from nfq_failover.shell.host.health import HealthChecks
from tests.support.turns import Turns


class Checking(Turns):
    """Health checks, one round after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.checks: HealthChecks | None = None

    def start(self, port: int | None = None, command: tuple[str, ...] = (), timeout_ms: int = 300) -> None:
        config = HealthConfig(port, command, 50, timeout_ms, 3)
        self.checks = HealthChecks(config, "127.0.0.1", self.loop, self)

    def next(self) -> HealthChecked:
        """The next outcome; the loop never waits for one."""
        assert self.checks is not None
        self.answers.clear()
        event = self.until_answered(self.checks.tick)
        assert isinstance(event, HealthChecked)
        assert event.took_s >= 0
        return replace(event, took_s=0.0)


@pytest.fixture
def checking() -> Iterator[Checking]:
    made = Checking()
    yield made
    if made.checks is not None:
        made.checks.close()
    assert not made.watched


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def test_without_a_configuration_nothing_is_checked() -> None:
    turns = Turns()
    checks = HealthChecks(None, "127.0.0.1", turns.loop, turns)
    checks.tick(time.monotonic() + 100)
    checks.close()
    assert not turns.watched and not turns.answers


def test_application_that_accepts_is_well(checking: Checking, listener: socket.socket) -> None:
    listener.setblocking(False)
    accept = listener.accept
    checking.loop.watch(listener.fileno(), lambda: accept()[0].close())
    checking.start(listener.getsockname()[1], timeout_ms=5000)
    assert [checking.next() for _ in range(3)] == [HealthChecked(True)] * 3
    checking.loop.unwatch(listener.fileno())


def test_application_that_does_not_accept_is_not_well_though_its_kernel_answers(
    checking: Checking, listener: socket.socket
) -> None:
    port = listener.getsockname()[1]
    checking.start(port)
    assert checking.next() == HealthChecked(False, f"127.0.0.1:{port}: the connection is not accepted")


def test_full_accept_queue_is_not_well(checking: Checking, listener: socket.socket) -> None:
    listener.listen(0)
    port = listener.getsockname()[1]
    waiting = [socket.socket() for _ in range(4)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
    checking.start(port)
    outcome = checking.next()
    assert not outcome.ok and "no answer to a SYN" in outcome.detail
    for one in waiting:
        one.close()


def test_port_that_refuses_is_not_well_at_once(checking: Checking, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    checking.start(port, timeout_ms=60_000)
    assert checking.next() == HealthChecked(False, f"127.0.0.1:{port}: connection refused")


def test_command_decides(checking: Checking) -> None:
    checking.start(command=(sys.executable, "-c", "pass"), timeout_ms=15_000)
    assert checking.next() == HealthChecked(True)


def test_what_a_failed_command_says_is_told(checking: Checking) -> None:
    checking.start(command=(sys.executable, "-c", "print('no database'); raise SystemExit(3)"), timeout_ms=15_000)
    assert checking.next() == HealthChecked(False, "the command has ended with 3: no database")


def test_command_that_hangs_is_killed_with_its_children(checking: Checking, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    checking.start(command=("/bin/sh", "-c", f"echo $$ > {pid_file}; sleep 1000"), timeout_ms=2000)
    assert checking.next() == HealthChecked(False, "the command has not ended in time")
    pid = int(pid_file.read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_command_that_is_not_there_is_not_well(checking: Checking) -> None:
    checking.start(command=("/nonexistent/check",))
    outcome = checking.next()
    assert not outcome.ok and "can't be started" in outcome.detail


def test_both_must_be_well(checking: Checking, listener: socket.socket) -> None:
    checking.start(listener.getsockname()[1], (sys.executable, "-c", "pass"), timeout_ms=3000)
    outcome = checking.next()
    assert not outcome.ok and outcome.detail.endswith("the connection is not accepted")

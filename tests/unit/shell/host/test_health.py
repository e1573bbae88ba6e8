"""Health checks against real sockets and real commands."""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nfq_failover.config import HealthConfig
from nfq_failover.core.events import Event, HealthChecked
from nfq_failover.shell.host.health import HealthChecks


class Loop:
    """What the daemon's loop does for the checks."""

    def __init__(self) -> None:
        self.readers: dict[int, Callable[[], None]] = {}
        self.checks: HealthChecks | None = None
        self.outcomes: list[HealthChecked] = []

    def start(self, port: int | None = None, command: tuple[str, ...] = (), timeout_ms: int = 300) -> None:
        config = HealthConfig(port, command, 50, timeout_ms, 3)
        self.checks = HealthChecks(config, "127.0.0.1", self.readers.__setitem__, self._unwatch, self._answer)

    def _unwatch(self, fd: int) -> None:
        del self.readers[fd]

    def _answer(self, event: Event) -> None:
        assert isinstance(event, HealthChecked)
        assert event.took_s >= 0
        self.outcomes.append(replace(event, took_s=0.0))

    def next(self) -> HealthChecked:
        """The next outcome; the loop never waits for one."""
        checks, self.outcomes = self.checks, []
        assert checks is not None
        give_up = time.monotonic() + 20
        while not self.outcomes:
            began = time.monotonic()
            assert began < give_up
            for fd in select.select(list(self.readers), [], [], 0.01)[0]:
                self.readers[fd]()
            checks.tick(time.monotonic())
        return self.outcomes[0]


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    if made.checks is not None:
        made.checks.close()
    assert not made.readers


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def test_without_a_configuration_nothing_is_checked() -> None:
    checks = HealthChecks(None, "127.0.0.1", lambda fd, reader: None, lambda fd: None, lambda event: None)
    checks.tick(time.monotonic() + 100)
    checks.close()


def test_application_that_accepts_is_well(loop: Loop, listener: socket.socket) -> None:
    listener.setblocking(False)
    accept = listener.accept
    loop.readers[listener.fileno()] = lambda: accept()[0].close()
    loop.start(listener.getsockname()[1], timeout_ms=5000)
    assert [loop.next() for _ in range(3)] == [HealthChecked(True)] * 3
    del loop.readers[listener.fileno()]


def test_application_that_does_not_accept_is_not_well_though_its_kernel_answers(
    loop: Loop, listener: socket.socket
) -> None:
    port = listener.getsockname()[1]
    loop.start(port)
    assert loop.next() == HealthChecked(False, f"127.0.0.1:{port}: the connection is not accepted")


def test_full_accept_queue_is_not_well(loop: Loop, listener: socket.socket) -> None:
    listener.listen(0)
    port = listener.getsockname()[1]
    waiting = [socket.socket() for _ in range(4)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
    loop.start(port)
    outcome = loop.next()
    assert not outcome.ok and "no answer to a SYN" in outcome.detail
    for one in waiting:
        one.close()


def test_port_that_refuses_is_not_well_at_once(loop: Loop, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    loop.start(port, timeout_ms=60_000)
    assert loop.next() == HealthChecked(False, f"127.0.0.1:{port}: connection refused")


def test_command_decides(loop: Loop) -> None:
    loop.start(command=(sys.executable, "-c", "pass"), timeout_ms=15_000)
    assert loop.next() == HealthChecked(True)


def test_what_a_failed_command_says_is_told(loop: Loop) -> None:
    loop.start(command=(sys.executable, "-c", "print('no database'); raise SystemExit(3)"), timeout_ms=15_000)
    assert loop.next() == HealthChecked(False, "the command has ended with 3: no database")


def test_command_that_hangs_is_killed_with_its_children(loop: Loop, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    loop.start(command=("/bin/sh", "-c", f"echo $$ > {pid_file}; sleep 1000"), timeout_ms=2000)
    assert loop.next() == HealthChecked(False, "the command has not ended in time")
    pid = int(pid_file.read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_command_that_is_not_there_is_not_well(loop: Loop) -> None:
    loop.start(command=("/nonexistent/check",))
    outcome = loop.next()
    assert not outcome.ok and "can't be started" in outcome.detail


def test_both_must_be_well(loop: Loop, listener: socket.socket) -> None:
    loop.start(listener.getsockname()[1], (sys.executable, "-c", "pass"), timeout_ms=3000)
    outcome = loop.next()
    assert not outcome.ok and outcome.detail.endswith("the connection is not accepted")

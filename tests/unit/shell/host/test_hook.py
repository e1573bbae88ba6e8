"""The operator's program: once for each change, in order, one at a time, and never in anybody's way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nfq_failover.core.history import History
from nfq_failover.core.pair.roles import Role
from nfq_failover.shell.host import hook
from nfq_failover.shell.host.hook import Hook, words
from nfq_failover.shell.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def turn(loop: Loop, told: Hook, history: History, seconds: float = 10.0) -> None:
    """Ticks until nothing runs or waits, or for some seconds."""
    give_up = time.monotonic() + seconds
    while (now := time.monotonic()) < give_up:
        told.tick(history, now)
        loop.deadline(now + 0.01)
        loop.serve(loop.wait(now, 0.01))
        if told.idle:
            return


def test_placeholders_are_filled_in_once() -> None:
    values = {"role": "primary", "reason": "a {role} in the reason; $(reboot)"}
    assert words(("x", "{role}-{reason}", "{other}", "{", "}{role"), values) == (
        *("x", "primary-a {role} in the reason; $(reboot)", "{other}", "{", "}{role"),
    )


def test_each_change_is_told_once_and_in_order(tmp_path: Path, loop: Loop) -> None:
    out = tmp_path / "out"
    program = script(tmp_path / "hook", f'[ "$1" != start ] || sleep 0.1; echo "$*" >>{out}')
    told, history = (
        Hook((program, "{event}", "{role}", "{state}", "{epoch}", "{reason}"), "a", "10.0.0.1", loop),
        History(),
    )
    history.observe(Role.JOINING, "waiting", 0, "for the peer", 1.0)
    history.observe(Role.BACKUP, "shadowing", 1, "", 1.1)
    turn(loop, told, history)
    history.observe(Role.BACKUP, "degraded", 1, "a disk; full", 1.2)
    history.observe(Role.BACKUP, "degraded", 1, "another reason", 1.3)
    history.observe(Role.PRIMARY, "unprotected", 2, "", 1.4)
    turn(loop, told, history)
    assert out.read_text().splitlines() == [
        "start joining waiting 0 for the peer",
        "role backup shadowing 1 ",
        "state backup degraded 1 a disk; full",
        "role primary unprotected 2 ",
    ]
    told.close()


def test_one_that_hangs_is_killed_and_the_next_is_told(
    tmp_path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "TIMEOUT_S", 0.2)
    out = tmp_path / "out"
    program = script(tmp_path / "hook", f'[ "$1" != waiting ] || sleep 60; echo "$1" >>{out}')
    told, history = Hook((program, "{state}"), "a", "10.0.0.1", loop), History()
    history.observe(Role.JOINING, "waiting", 0, "", 1.0)
    history.observe(Role.BACKUP, "shadowing", 1, "", 1.1)
    with capture_logs() as logs:
        turn(loop, told, history)
    assert out.read_text() == "shadowing\n"
    assert [line["error"] for line in logs] == ["the command has not ended in time"]
    told.close()


def test_one_that_fails_or_is_not_there_is_a_warning(tmp_path: Path, loop: Loop) -> None:
    for command in ((script(tmp_path / "hook", "echo oh no; exit 3"),), ("/no/such/program",)):
        told, history = Hook(command, "a", "10.0.0.1", loop), History()
        history.observe(Role.JOINING, "waiting", 0, "", 1.0)
        with capture_logs() as logs:
            turn(loop, told, history)
        assert [line["log_level"] for line in logs] == ["warning"]
        assert logs[0]["program"] == command[0]
        told.close()


def test_what_the_end_of_the_daemon_has_to_tell_is_told(tmp_path: Path, loop: Loop) -> None:
    out = tmp_path / "out"
    told, history = Hook((script(tmp_path / "hook", f"echo $1 >>{out}"), "{state}"), "a", "10.0.0.1", loop), History()
    history.observe(Role.PRIMARY, "protected", 1, "", 1.0)
    history.observe(Role.LEAVING, "leaving", 1, "", 1.1)
    told.finish(history)
    told.close()
    assert out.read_text().split() == ["protected", "leaving"]


def test_the_end_of_the_daemon_waits_a_moment_at_most(
    tmp_path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, history = Hook((script(tmp_path / "hook", "sleep 60"),), "a", "10.0.0.1", loop), History()
    history.observe(Role.LEAVING, "leaving", 1, "", 1.1)
    monkeypatch.setattr(hook, "_LAST_WORDS_S", 0.2)
    began = time.monotonic()
    told.finish(history)
    told.close()
    assert time.monotonic() - began < 5.0


def test_without_a_program_nothing_is_run(loop: Loop) -> None:
    told, history = Hook((), "a", "10.0.0.1", loop), History()
    history.observe(Role.LEAVING, "leaving", 1, "", 1.1)
    told.tick(history, 1.0)
    assert told.idle
    told.close()

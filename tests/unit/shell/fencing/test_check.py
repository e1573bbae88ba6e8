"""Whether a fence could do its work, without doing it."""

from __future__ import annotations

import select
import sys
from pathlib import Path

import pytest

from nfq_failover.config.fence import FencePlan
from nfq_failover.shell.fencing.agent import FenceProgram
from nfq_failover.shell.fencing.check import OFF, ON, UNKNOWN, RunningCheck, fault
from tests.support import configured

PEER = configured.peer()


def program(path: Path, text: str, mode: int = 0o755) -> FencePlan:
    path.write_text(text)
    path.chmod(mode)
    return FencePlan((str(path),))


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("#!/bin/sh\n", 0o755, ""),
        ("#! /usr/bin/env sh\n", 0o755, ""),
        ("#!/usr/bin/env -S sh -e\n", 0o755, ""),
        ("#!/usr/bin/env no-such-shell\n", 0o755, "'no-such-shell', which is not in PATH"),
        ("#!/no/such/shell -e\n", 0o755, "wants the interpreter '/no/such/shell -e'"),
        ("#!\n", 0o755, "wants the interpreter ''"),
        ("echo off\n", 0o755, "no '#!' line"),
        ("", 0o755, "no '#!' line"),
        ("#!/bin/sh\n", 0o644, "is not executable: run 'chmod +x"),
    ],
)
def test_a_program_that_can_not_be_started(tmp_path: Path, text: str, mode: int, says: str) -> None:
    said = fault(program(tmp_path / "fence", text, mode))
    assert said == "" if not says else says in said


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in fault(FencePlan((str(tmp_path / "gone"),)))
    assert "is no file" in fault(FencePlan((str(tmp_path),)))
    assert "in PATH" in fault(FencePlan(("no-such-fence-agent",)))
    assert fault(FencePlan(("true",))) == ""
    assert fault(FencePlan((sys.executable,))) == ""


def check(tmp_path: Path, script: str, verify: bool = True, deadline_ms: int = 5000) -> tuple[bool, str]:
    plan = program(tmp_path / "agent", f"#!/bin/sh\nread action\n{script}\n")
    running = RunningCheck(FencePlan(plan.command, agent=True, verify=verify), PEER, deadline_ms)
    select.select([running], [], [], deadline_ms / 1000)
    return running.finish()


def test_an_agent_says_how_the_peer_is_and_turns_nothing_off(tmp_path: Path) -> None:
    seen = f'echo "$action" >>{tmp_path}/actions; '
    assert check(tmp_path, seen + "exit 0") == (True, ON)
    assert check(tmp_path, seen + "exit 2") == (True, OFF)
    assert check(tmp_path, seen + "echo refused; exit 1") == (
        False,
        "the fence agent fails with exit code 1: refused",
    )
    assert check(tmp_path, seen + "exit 0", verify=False) == (True, UNKNOWN)
    assert (tmp_path / "actions").read_text().split() == ["action=status"] * 3 + ["action=monitor"]


def test_an_agent_that_hangs_is_killed(tmp_path: Path) -> None:
    assert check(tmp_path, "sleep 60", deadline_ms=200) == (
        False,
        "the fence agent does not answer within the fence deadline",
    )


def test_what_a_fence_says_needs_no_disk() -> None:
    running = FenceProgram(FencePlan(("readlink", "/proc/self/fd/1")), PEER, "off")
    code, said = running.wait(5)
    assert code == 0 and said.startswith("/memfd:")

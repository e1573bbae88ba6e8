"""Fence agents: what they are told, what is believed, what is tried again, and what nobody gets to see."""

from __future__ import annotations

import gc
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.config.fence import FencePlan, fence
from nfq_failover.core.events import Fence, FenceFinished
from tests.unit.shell.fencing.test_runner import Fencing

SECRET = "hunter2-and-more"

# An agent as the API has it: parameters on standard input, a plug that is on or off, and a script of what goes wrong.
AGENT = """#!/bin/sh
cat >"$0.in"
cat "$0.in" >>"$0.all"
tr '\\0' ' ' </proc/$$/cmdline >>"$0.argv"
action=$(sed -n 's/^action=//p' "$0.in")
plug=$(sed -n 's/^plug=//p' "$0.in")
echo "$action" >>"$0.actions"
echo "password is $(sed -n 's/^password=//p' "$0.in")"
next=$(head -n 1 "$0.plan" 2>/dev/null)
[ -s "$0.plan" ] && sed -i 1d "$0.plan"
case $next in
    hang) sleep 60 ;;
    fail) echo "unable to connect" >&2; exit 1 ;;
    lie) exit 0 ;;
esac
case $action in
    off) echo off >"$0.plug-$plug"; exit 0 ;;
    status) [ "$(cat "$0.plug-$plug" 2>/dev/null)" = off ] && exit 2; exit 0 ;;
esac
exit 1
"""


class Agent:
    """The agent, the power switch that it drives, and what it was told."""

    def __init__(self, directory: Path, *plan: str) -> None:
        self.path = directory / "fence_toy"
        self.path.write_text(AGENT)
        self.path.chmod(0o700)
        self._of("plan").write_text("".join(f"{line}\n" for line in plan))
        (directory / "password").write_text(f"{SECRET}\n")
        (directory / "password").chmod(0o600)
        self.table: dict[str, Any] = {
            "agent": str(self.path),
            "parameters": {"plug": "outlet-{peer}", "ip": "{address}", "ssl_insecure": True, "retries": 3},
            "secrets": {"password": str(directory / "password")},
        }

    def _of(self, what: str) -> Path:
        return self.path.with_name(f"fence_toy.{what}")

    def fencing(self, attempts: int = 0) -> Fencing:
        """Fences by it."""
        plan = fence(self.table)
        plan = FencePlan(plan.command, True, plan.parameters, plan.secrets, plan.verify, attempts)
        return Fencing(plan)

    def fence(self, deadline_ms: int = 8000, attempts: int = 0) -> FenceFinished:
        """Order it, and wait for the outcome."""
        fencing = self.fencing(attempts)
        fencing.fences.start(Fence("b", deadline_ms))
        return fencing.run()

    def said(self, what: str) -> str:
        """Of `actions`, `all` (its standard input), `argv`."""
        return self._of(what).read_text()

    @property
    def actions(self) -> list[str]:
        return self.said("actions").split()

    @property
    def is_off(self) -> bool:
        return self._of("plug-outlet-b").exists()


def test_off_is_believed_when_the_status_says_off(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    assert agent.fence() == FenceFinished("b", True, "its status is off")
    assert agent.actions == ["off", "status"] and agent.is_off
    told = agent.said("in").splitlines()
    assert told[0] == "action=status"
    assert sorted(told[1:]) == [
        "ip=10.77.0.3",
        f"password={SECRET}",
        "plug=outlet-b",
        "retries=3",
        "ssl_insecure=true",
    ]


def test_without_verification_its_off_is_believed(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "lie")
    agent.table["verify"] = False
    assert agent.fence().ok
    assert agent.actions == ["off"]


def test_an_off_that_did_nothing_is_not_believed(tmp_path: Path) -> None:
    agent = Agent(tmp_path, *["lie"] * 200)
    answer = agent.fence(1500)
    assert not answer.ok and "still on" in answer.detail
    assert agent.actions.count("off") >= 1


def test_an_off_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "ok", "lie")  # its first status lies
    assert agent.fence().ok
    assert agent.actions == ["off", "status", "status"]


def test_failures_are_tried_again_within_the_deadline(tmp_path: Path) -> None:
    agent = Agent(tmp_path, *["fail"] * 4)  # off and status, twice
    answer = agent.fence()
    assert answer.ok and "after 3 attempts" in answer.detail, answer


def test_as_often_as_told(tmp_path: Path) -> None:
    agent = Agent(tmp_path, *["fail"] * 200)
    answer = agent.fence(attempts=2)
    assert not answer.ok and "unable to connect" in answer.detail and "(2 attempts)" in answer.detail
    assert agent.actions.count("off") == 2


def test_a_failed_off_of_what_is_off_already_is_a_success(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "fail")
    (tmp_path / "fence_toy.plug-outlet-b").write_text("off\n")
    assert agent.fence().ok
    assert agent.actions == ["off", "status"]


def test_past_the_deadline_it_is_killed_and_nothing_is_believed(tmp_path: Path) -> None:
    agent = Agent(tmp_path, "ok", "hang")
    began = time.monotonic()
    answer = agent.fence(1500)
    assert not answer.ok and "deadline" in answer.detail
    assert 1.4 < time.monotonic() - began < 8


def test_a_command_is_tried_again_too(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    plan = FencePlan(("sh", "-c", f"echo x >>{tries}; [ $(wc -l <{tries}) -ge 3 ]"))
    fencing = Fencing(plan)
    fencing.fences.start(Fence("b", 10_000))
    assert fencing.run() == FenceFinished("b", True, "(after 3 attempts)")


@pytest.mark.parametrize("where", ["secrets", "parameters"])
def test_a_secret_is_in_no_argument_no_answer_and_no_repr(tmp_path: Path, where: str) -> None:
    agent = Agent(tmp_path, *["fail"] * 200)
    if where == "parameters":
        del agent.table["secrets"]
        agent.table["parameters"] = {"plug": "{peer}", "password": SECRET}
    answer = agent.fence(1000)
    assert "password is ***" in answer.detail
    assert f"password={SECRET}" in agent.said("all")
    assert SECRET not in agent.said("argv")
    for shown in (repr(answer), repr(fence(agent.table))):
        assert SECRET not in shown


def test_a_secret_at_the_cut_of_a_long_answer_is_hidden(tmp_path: Path) -> None:
    for size in range(170, 210):
        plan = FencePlan(("printf", f"{SECRET}{'x' * size}"), secrets=frozenset([SECRET]), attempts=1)
        fencing = Fencing(plan)
        fencing.fences.start(Fence("b", 5000))
        detail = fencing.run().detail
        assert detail.strip("x*") == ""


def test_a_pause_between_attempts_can_be_closed(tmp_path: Path) -> None:
    agent = Agent(tmp_path, *["fail"] * 200)
    fencing = agent.fencing()
    gc.collect()  # what earlier tests have left would go at any moment, with its descriptors
    before = len(list(Path("/proc/self/fd").iterdir()))
    fencing.fences.start(Fence("b", 20_000))
    give_up = time.monotonic() + 10
    while fencing.watched and time.monotonic() < give_up:  # until a program has ended, and there is a pause
        fencing.turn()
    fencing.fences.close()
    assert not fencing.watched and not fencing.answers
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.skipif(shutil.which("fence_dummy") is None, reason="the package fence-agents is not there")
def test_a_real_agent(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("on")
    plan = fence({"agent": "fence_dummy", "parameters": {"status_file": str(status)}})
    fencing = Fencing(plan)
    fencing.fences.start(Fence("b", 20_000))
    assert fencing.run(20) == FenceFinished("b", True, "its status is off")
    assert status.read_text().strip() == "off"

"""The keeper of the rules, with a helper that never answers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog

from nfq_failover.core.events import ApplyRules, Profile, RulesApplied
from nfq_failover.shell.firewall.keeper import STUCK_S, RulesKeeper
from nfq_failover.shell.firewall.script import RulesError
from nfq_failover.shell.loop import Loop


class Script:
    """A run that takes as long as the test wants."""

    def __init__(self) -> None:
        self.event = os.eventfd(0)
        self.outcome: str | None = None

    def pidfd(self) -> int:
        return self.event

    def wait(self) -> tuple[int, str]:
        return (1, self.outcome) if self.outcome is not None else (0, "")

    def finish(self) -> str:
        if self.outcome is not None:
            raise RulesError(1, self.outcome)
        return ""

    def finish_check(self) -> str | None:
        if self.outcome == "broken":
            raise RulesError(-1, "no iptables")
        return self.outcome


class Runner:
    def __init__(self) -> None:
        self.scripts: list[Script] = []

    def start_apply(self, *_: object) -> Script:
        self.scripts.append(Script())
        return self.scripts[-1]

    def apply(self, *_: object) -> str:
        return ""

    def start_check(self) -> Script:
        return self.start_apply()

    def remove(self) -> str:
        return ""


@pytest.fixture
def runner() -> Iterator[Runner]:
    made = Runner()
    yield made
    for script in made.scripts:
        os.close(script.event)


def test_rules_that_are_not_done_for_a_minute_are_an_alarm_once_a_minute(runner: Runner) -> None:
    keeper = RulesKeeper(runner, Loop())
    with structlog.testing.capture_logs() as said:
        keeper.apply(ApplyRules(Profile.ALONE))
        for now in range(100, 100 + int(2 * STUCK_S) + 2):
            assert keeper.tick(float(now)) == []
    assert [row["log_level"] for row in said] == ["error", "error"]
    assert keeper.describe()["pending"]
    keeper._ended()
    assert keeper.tick(1000.0) == [RulesApplied(Profile.ALONE, True)]
    with structlog.testing.capture_logs() as said:  # a check runs now: it has a minute of its own
        keeper.tick(1001.0)
        keeper.tick(1001.0 + STUCK_S - 1)
    assert said == []


def test_a_failure_is_an_event_and_is_tried_again(runner: Runner) -> None:
    keeper = RulesKeeper(runner, Loop())
    keeper.apply(ApplyRules(Profile.ALONE))
    runner.scripts[0].outcome = "no"
    keeper._ended()
    assert keeper.tick(10.0) == [RulesApplied(Profile.ALONE, False, "no")]
    keeper._ended()  # of a check
    keeper.tick(12.0)
    keeper._ended()
    assert keeper.tick(12.1) == [RulesApplied(Profile.ALONE, True)]


def test_what_is_wrong_with_the_rules_is_a_concern_until_it_is_mended(runner: Runner) -> None:
    keeper = RulesKeeper(runner, Loop())

    def codes(now: float) -> list[str]:
        return [each.code for each in keeper.concerns(now)]

    keeper.tick(1.0)
    runner.scripts[-1].outcome = "a rule is missing"
    keeper._ended()  # and puts them back
    assert codes(1.1) == ["rules-lost"]
    runner.scripts[-1].outcome = "the lock is held"
    keeper._ended()
    assert codes(1.2) == ["rules-lost", "rules-not-applied"]
    keeper.tick(1.3), keeper.tick(2.5)
    keeper._ended()
    keeper.tick(2.6)
    keeper._ended()
    assert codes(2.7) == []
    keeper.tick(5.0)
    runner.scripts[-1].outcome = "broken"
    keeper._ended()
    assert codes(5.1) == ["rules-unchecked"]
    keeper.tick(7.5)
    keeper._ended()
    assert codes(7.6) == []
    keeper.tick(10.0), keeper.tick(10.1)
    assert codes(10 + STUCK_S / 2 - 1) == []
    assert codes(10.1 + STUCK_S / 2) == ["rules-stuck"] == codes(10 + STUCK_S + 1)
    keeper._ended()
    assert codes(80.0) == []


class Changes:
    """The kernel tells of changes."""

    def __init__(self) -> None:
        self.event: int | None = os.eventfd(0, os.EFD_NONBLOCK)
        self.count = 0

    def fileno(self) -> int | None:
        return self.event

    def came(self) -> bool:
        assert self.event is not None
        try:
            return os.eventfd_read(self.event) > 0
        except BlockingIOError:
            return False

    def happens(self, loop: Loop) -> None:
        assert self.event is not None
        os.eventfd_write(self.event, 1)
        loop.serve(loop.wait(0.0, 0.0))

    def close(self) -> None:
        assert self.event is not None
        os.close(self.event)
        self.event = None


def test_rules_are_looked_at_soon_after_any_change_and_not_all_the_time(runner: Runner) -> None:
    loop, changes = Loop(), Changes()
    keeper = RulesKeeper(runner, loop, changes)

    def checks(*moments: float) -> int:
        before = len(runner.scripts)
        for now in moments:
            keeper.tick(now)
            keeper._ended()
        return len(runner.scripts) - before

    assert checks(10.0, 10.5, 11.5) == 1
    changes.happens(loop)
    assert checks(11.51) == 0  # there may be more to come
    assert checks(11.6, 11.7) == 1
    changes.happens(loop)
    assert checks(11.8, 12.5) == 0
    assert checks(12.65) == 1
    keeper.close()
    loop.close()


def test_what_changes_while_our_own_rules_are_installed_is_ours(runner: Runner) -> None:
    loop, changes = Loop(), Changes()
    keeper = RulesKeeper(runner, loop, changes)
    keeper.tick(10.0)
    keeper._ended()
    keeper.apply(ApplyRules(Profile.ALONE))
    changes.happens(loop)
    assert loop.wait(0.0, 0.0) == []  # it is read, and does not keep the loop busy
    keeper._ended()
    scripts = len(runner.scripts)
    keeper.tick(11.5)
    assert len(runner.scripts) == scripts
    keeper.close()
    loop.close()


def test_others_changes_are_told_at_once_but_not_all_the_time(runner: Runner) -> None:
    loop, changes, told = Loop(), Changes(), []
    keeper = RulesKeeper(runner, loop, changes, lambda: told.append(1))

    def change(now: float) -> int:
        before = len(told)
        changes.happens(loop)
        keeper.tick(now)
        keeper._ended()
        return len(told) - before

    keeper.tick(100.0)
    assert not told
    assert [change(100.1), change(100.2), change(100.3), change(100.4), change(105.0)] == [1, 1, 1, 0, 0]
    assert [change(111.0), change(112.0)] == [1, 0]
    keeper.apply(ApplyRules(Profile.ALONE))
    assert change(200.0) == 0  # our own
    keeper.close()
    loop.close()

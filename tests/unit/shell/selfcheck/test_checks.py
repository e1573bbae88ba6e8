"""The checks of this host: each in its rhythm, and a check that fails is no answer and no end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.shell.selfcheck.checks import SelfChecks

FULL = Concern("disk-full", Weight.UNPROTECTED, "no room")
GONE = Concern("address-missing", Weight.UNPROTECTED, "it is gone")


@dataclass
class Scripted:
    """A check that finds what it is told to."""

    name: str
    every_s: float
    finds: Sequence[Concern] | Exception | None = ()
    asked: list[float] = field(default_factory=list)

    def run(self, now: float) -> Sequence[Concern] | None:
        self.asked.append(now)
        if isinstance(self.finds, Exception):
            raise self.finds
        return self.finds


def test_each_runs_in_its_own_rhythm_and_only_changes_are_told() -> None:
    quick, slow = Scripted("quick", 1.0), Scripted("slow", 60.0)
    checks = SelfChecks([quick, slow])
    assert checks.tick(0.0) is None, "all is well, as before"
    assert checks.tick(0.5) is None
    quick.finds, slow.finds = [GONE], [FULL]
    told = checks.tick(1.0)
    assert told is not None
    assert told.concerns == (GONE,)
    assert checks.tick(2.0) is None
    told = checks.tick(60.0)
    assert told is not None
    assert told.concerns == (GONE, FULL)
    assert (quick.asked, slow.asked) == ([0.0, 1.0, 2.0, 60.0], [0.0, 60.0])
    quick.finds = []
    told = checks.tick(61.0)
    assert told is not None
    assert told.concerns == (FULL,)


def test_who_asks_for_another_look_gets_one_that_begins_afterwards() -> None:
    slow = Scripted("slow", 60.0)
    checks = SelfChecks([slow])
    checks.tick(0.0)
    checks.look_again("slow")
    checks.tick(0.1)
    assert slow.asked == [0.0, 0.1]
    checks.look_again("slow")
    slow.finds = None
    checks.tick(0.2)
    checks.look_again("slow")  # while one is under way
    slow.finds = []
    for now in (0.3, 0.4, 0.5):
        checks.tick(now)
    assert slow.asked == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_an_answer_that_takes_time_is_asked_for_at_every_tick_and_what_was_known_stands() -> None:
    slow = Scripted("slow", 60.0, [FULL])
    checks = SelfChecks([slow])
    assert checks.tick(0.0) is not None
    slow.finds = None
    assert [checks.tick(60.0), checks.tick(60.1)] == [None, None]
    slow.finds = []
    told = checks.tick(60.2)
    assert told is not None
    assert told.concerns == ()
    assert slow.asked == [0.0, 60.0, 60.1, 60.2]


def test_a_check_that_fails_says_so_and_stops_nobody() -> None:
    bad, good = Scripted("bad", 1.0, OSError("too many open files")), Scripted("good", 1.0, [FULL])
    told = SelfChecks([bad, good]).tick(0.0)
    assert told is not None
    assert [(each.code, each.weight) for each in told.concerns] == [
        ("check-failed-bad", Weight.WARNING),
        ("disk-full", Weight.UNPROTECTED),
    ]
    assert "too many open files" in told.concerns[0].what

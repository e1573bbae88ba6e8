"""Two hosts whose clocks differ: said on both in the same words, and not because something came late."""

from __future__ import annotations

import pytest

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.clocks import CODE, DIFFER_S, READINGS, Clocks
from nfq_failover.core.pair.told import Telling, Told
from nfq_failover.wire.records import WallClock


class Two:
    """Host `a`, whose clock is right, and what `b` tells of its own."""

    def __init__(self, name: str = "a", peer: str = "b") -> None:
        self.out = Outbox()
        self.told = Told(peer, self.out.concerns)
        self.telling = Telling(self.out.concerns, ())
        self.telling.clock_is(1e9)
        self.clocks = Clocks(name, self.told, self.telling, self.out.concerns)
        self.now = 100.0

    def tell(self, ahead_s: float, *late_s: float) -> Two:
        for late in late_s or (0.0,) * READINGS:
            self.now += 1.0
            self.told.take(WallClock(round((self.now - late + 1e9 + ahead_s) * 1000)), self.now)
            self.clocks.review(self.now)
        return self

    @property
    def said(self) -> list[str]:
        return [each.concern.what for each in self.out.concerns.standing() if each.concern.code == CODE]


@pytest.mark.parametrize("ahead_s", [0.0, 1.5, -2.9])
def test_a_small_difference_is_not_said(ahead_s: float) -> None:
    assert Two().tell(ahead_s).said == []


def test_both_say_it_in_the_same_words() -> None:
    here, there = Two("a", "b").tell(12.0), Two("b", "a").tell(-12.0)
    assert here.said == there.said == ["the clock of b is 12 s ahead of that of a: the logs of both do not line up"]


def test_one_reading_is_not_enough_and_a_late_one_says_nothing() -> None:
    two = Two().tell(0.0, 0.0, 9.0, 9.0, 9.0)
    assert two.said == []
    two.tell(9.0, 0.0)
    two.tell(0.0, 0.0)
    assert two.said == []


def test_what_comes_late_makes_no_clock_seem_behind() -> None:
    two = Two().tell(0.0)
    for _ in range(20):
        two.tell(0.0, 6.0, 6.0, 6.0, 0.0)
    assert two.said == []


def test_it_is_over_when_the_clocks_agree_again() -> None:
    two = Two().tell(-DIFFER_S - 1)
    assert len(two.said) == 1
    two.tell(-DIFFER_S + 0.5)  # neither well nor wrong: it stands
    assert len(two.said) == 1
    assert two.tell(0.1).said == []


def test_words_follow_a_clock_that_runs_away() -> None:
    two = Two().tell(5.0)
    version = two.out.concerns.version
    two.tell(5.2)
    assert two.out.concerns.version == version  # nothing new, and no chatter
    two.tell(60.0)
    assert "60 s" in two.said[0]


def test_a_peer_that_starts_anew_has_told_nothing() -> None:
    two = Two().tell(9.0)
    two.told.session_started()
    two.clocks.review(two.now)
    assert two.said == []


def test_a_host_that_does_not_know_its_own_time_says_nothing() -> None:
    out = Outbox()
    told, telling = Told("b", out.concerns), Telling(out.concerns, ())
    clocks = Clocks("a", told, telling, out.concerns)
    for second in range(10):
        told.take(WallClock(second * 1000), 100.0 + second)
        clocks.review(100.0 + second)
    assert not list(out.concerns.codes())

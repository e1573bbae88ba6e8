"""A few times at once, and then once in a while."""

from __future__ import annotations

from nfq_failover.shell.host.allowance import Allowance


def test_a_burst_and_then_a_rate() -> None:
    allowance = Allowance(3, 0.5)
    taken = [allowance.take(10.0 + tick * 0.1) for tick in range(25)]
    assert taken[:3] == [True] * 3
    assert taken.count(True) == 3 + 4, "2.4 s at one in half a second"
    assert sum(allowance.take(100.0) for _ in range(9)) == 3, "no more is saved than a burst"


def test_a_clock_that_stands_still_gives_nothing() -> None:
    allowance = Allowance(1, 1.0)
    assert [allowance.take(5.0) for _ in range(3)] == [True, False, False]
    assert not allowance.take(4.0)

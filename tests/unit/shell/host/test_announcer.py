"""Announcements: fast, then until clients are heard, then now and then."""

from __future__ import annotations

import itertools

from nfq_failover.shell.host.announcer import LONGEST_S, PATIENCE_S, Announcer


def run(announcer: Announcer, begin: float, end: float) -> list[float]:
    """When it announces, looked at every 5 ms."""
    times = []
    for step in range(round((end - begin) * 200)):
        now = begin + step / 200
        if announcer.due(now):
            times.append(round(now - begin, 2))
    return times


def test_fast_at_first_then_less_and_less_often() -> None:
    announcer = Announcer(30.0)
    announcer.start(5, 100.0)
    assert run(announcer, 100.0, 132.0) == [0.0, 0.02, 0.1, 0.5, 1.0, 3.0, 7.0, 15.0, 23.0, 31.0]
    assert announcer.describe() == {"announced": 10, "client_heard_after_ms": None}


def test_clients_that_are_heard_end_the_haste_but_not_the_refresh() -> None:
    announcer = Announcer(30.0)
    announcer.start(5, 100.0)
    run(announcer, 100.0, 101.5)
    assert announcer.waiting
    assert announcer.heard(101.5)
    assert not announcer.heard(101.6) and not announcer.waiting
    times = run(announcer, 101.5, 200.0)
    assert times[0] <= LONGEST_S, "what was planned still goes out"
    assert [round(b - a) for a, b in itertools.pairwise(times)] == [30] * (len(times) - 1)
    assert len(times) >= 3
    assert announcer.describe()["client_heard_after_ms"] == 1500


def test_a_copy_of_before_the_takeover_is_no_client_heard() -> None:
    announcer = Announcer(30.0)
    announcer.start(5, 100.0)
    assert not announcer.heard(100.05) and announcer.waiting


def test_nobody_heard_for_long_means_refreshes_only() -> None:
    announcer = Announcer(60.0)
    announcer.start(5, 0.0)
    times = run(announcer, 0.0, PATIENCE_S + 200)
    late = [b - a for a, b in itertools.pairwise(times) if a > PATIENCE_S]
    assert late and all(59.9 < gap < 60.1 for gap in late)


def test_no_refresh_and_as_many_as_told() -> None:
    announcer = Announcer(0.0)
    announcer.start(7, 0.0)
    run(announcer, 0.0, 0.3)
    announcer.heard(0.3)
    assert run(announcer, 0.3, 300.0) and announcer.sent == 7
    announcer.start(0, 300.0)
    assert run(announcer, 300.0, 400.0) == []


def test_stop() -> None:
    announcer = Announcer(30.0)
    announcer.start(5, 0.0)
    announcer.stop()
    assert run(announcer, 0.0, 100.0) == []
    assert not announcer.heard(5.0) and not announcer.waiting

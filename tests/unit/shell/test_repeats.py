"""What is said again and again is said once, and counted."""

from __future__ import annotations

import random
from typing import Any

from nfq_failover.shell.repeats import MAX_KINDS, MAX_SINGLE_KINDS, PERIOD_S, SINGLE_LINES, Repeats


def event(name: str = "connection unprotected", level: str = "warning", **fields: Any) -> dict[str, Any]:
    return {"level": level, "event": name, **fields}


def test_four_thousand_of_a_kind_are_two_lines_in_a_minute() -> None:
    repeats = Repeats()
    said = [repeats.admit(event(conn=n, reason=f"no backup for {n} s"), 100 + n / 1000) for n in range(4000)]
    assert said == [True] + [False] * 3999
    assert not list(repeats.due(100 + PERIOD_S - 1))
    assert list(repeats.due(100 + PERIOD_S)) == [event(conn=3999, reason="no backup for 3999 s", more=3999, seconds=60)]
    assert not list(repeats.due(100 + PERIOD_S))


def test_what_goes_on_has_a_line_a_minute_and_what_comes_back_later_is_said_at_once() -> None:
    repeats = Repeats()
    firsts, sums = 0, []
    for second in range(600):
        firsts += repeats.admit(event(), second)
        sums += [each["more"] for each in repeats.due(second)]
    assert (firsts, len(sums)) == (1, 9)
    sums += [each["more"] for each in repeats.due(660)]
    assert sum(sums) == 599
    assert not list(repeats.due(720))
    assert repeats.admit(event(), 720)


def test_another_reason_is_another_kind() -> None:
    repeats = Repeats()
    assert repeats.admit(event(reason="no backup"), 0)
    assert repeats.admit(event(reason="replica not ready"), 0)
    assert repeats.admit(event(reason="no backup", level="error"), 0)
    assert not repeats.admit(event(reason="no backup"), 0)


def test_texts_that_always_differ_are_counted_together() -> None:
    repeats = Repeats()
    texts = random.Random(1)
    said = [repeats.admit(event(error=texts.randbytes(8).hex()), 0) for _ in range(1000)]
    assert sum(said) == MAX_KINDS + 1
    assert sum(each["more"] for each in repeats.due(60)) == 1000 - MAX_KINDS - 1


def test_each_change_of_state_is_said_and_not_even_those_without_end() -> None:
    repeats = Repeats()
    said = [repeats.admit(event("state", after=after), n) for n in range(10) for after in ("checking", "shadowing")]
    assert all(said)
    texts = random.Random(1)
    flood = [repeats.admit(event("state", after=texts.randbytes(8).hex()), 10) for _ in range(10_000)]
    assert sum(flood) < 2 * (MAX_SINGLE_KINDS + SINGLE_LINES)


def test_information_is_said_up_to_a_bound() -> None:
    repeats = Repeats()
    said = [repeats.admit(event("session established", "info", peer="b"), 0) for _ in range(100)]
    assert sum(said) == SINGLE_LINES


def test_at_the_end_all_is_said() -> None:
    repeats = Repeats()
    for second in range(5):
        repeats.admit(event(), second)
    assert list(repeats.due(5, at_once=True)) == [event(more=4, seconds=5)]

"""Sets of ports: arithmetic against sets of numbers, and the text that hosts tell each other."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nfq_failover.core import ports
from nfq_failover.core.ports import Ports

SMALL = st.integers(1, 40)
RANGES = st.lists(st.tuples(SMALL, SMALL).map(lambda pair: (min(pair), max(pair))), max_size=6)


def numbers(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {port for low, high in ranges for port in range(low, high + 1)}


def check(made: Ports, expected: set[int]) -> None:
    assert numbers(made) == expected
    assert made == ports.union(made)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(made))


@given(RANGES, RANGES)
def test_as_sets_of_numbers(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    a, b = numbers(one), numbers(other)
    check(ports.union(one, other), a | b)
    check(ports.minus(one, other), a - b)
    check(ports.both(ports.union(one), ports.union(other)), a & b)
    assert ports.covers(ports.union(one), ports.union(other)) is (a >= b)
    assert {port for port in range(1, 41) if ports.has(ports.union(one), port)} == a
    assert (ports.digest(ports.union(one)) == ports.digest(ports.union(other))) is (a == b)


@given(RANGES)
def test_what_is_told_can_be_read(ranges: list[tuple[int, int]]) -> None:
    made = ports.union(ranges)
    assert ports.read(ports.text(made)) == made


def test_anything_else_is_nothing() -> None:
    assert ports.text(((80, 80), (7000, 7099))) == "80, 7000-7099"
    for said in ("80,81", "0", "65536", "90-80", "80, 70... (ab12)", "x", "80-", " 80", "²"):
        assert ports.read(said) is None

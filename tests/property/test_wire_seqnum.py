"""Sequence numbers against unbounded integers: the stream's true positions, taken modulo 2^32."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nfq_failover.wire.seqnum import HALF, MASK, add, diff, earlier, later, le, lt, unwrap
from tests.support.strategies import u32

positions = st.integers(0, 2**70)
steps = st.one_of(st.integers(-HALF + 1, HALF - 1), st.integers(-3, 3), st.sampled_from((-HALF + 1, HALF - 1)))


@given(positions, st.integers(-(2**70), 2**70))
def test_add(position: int, n: int) -> None:
    assert add(position & MASK, n) == (position + n) % 2**32


@given(positions, steps)
def test_comparisons_are_those_of_the_stream(position: int, step: int) -> None:
    a, b = position & MASK, (position + step) & MASK
    assert diff(b, a) == step
    assert diff(a, b) == -step
    assert lt(a, b) is (step > 0)
    assert le(a, b) is (step >= 0)
    assert later(a, b) == later(b, a) == (b if step > 0 else a)
    assert earlier(a, b) == earlier(b, a) == (a if step > 0 else b)


@given(u32, u32)
def test_exactly_one_of_before_same_after_but_at_half_the_circle(a: int, b: int) -> None:
    relations = (lt(a, b), a == b, lt(b, a))
    if (a - b) & MASK == HALF:
        assert relations == (True, False, True)  # undefined in RFC 1982; both look older to each other
    else:
        assert sum(relations) == 1
    assert le(a, b) is (lt(a, b) or a == b)
    assert {later(a, b), earlier(a, b)} <= {a, b}


@given(u32, u32)
def test_diff_is_in_its_half_open_range(a: int, b: int) -> None:
    distance = diff(a, b)
    assert -HALF <= distance < HALF
    assert add(b, distance) == a


@given(positions, steps)
def test_unwrap_finds_the_true_position(near: int, step: int) -> None:
    assert unwrap((near + step) & MASK, near) == near + step


@given(u32, st.integers(-(2**70), 2**70))
def test_unwrap_is_congruent_and_closest(seq: int, near: int) -> None:
    found = unwrap(seq, near)
    assert found % 2**32 == seq
    assert -HALF <= found - near < HALF

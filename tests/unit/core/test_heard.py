"""What a client had heard before it sent its bytes."""

from __future__ import annotations

from nfq_failover.core.tcp.heard import MAX_MARKS, Heard


def test_both_offsets_grow_in_whatever_order_they_are_noted() -> None:
    heard = Heard()
    for at, ack in ((0, 0), (30, 9), (10, 3), (10, 4), (20, 9), (40, 9), (5, 0)):
        heard.note(at, ack)
    assert heard.marks == [(0, 0), (10, 4), (20, 9)]


def test_bytes_belong_to_the_stretch_that_begins_before_them() -> None:
    heard = Heard()
    for at, ack in ((0, 1), (10, 2), (20, 3)):
        heard.note(at, ack)
    assert heard.between(5, 10) == [(0, 1)]
    assert heard.between(10, 11) == [(10, 2)]
    assert heard.between(5, 21) == [(0, 1), (10, 2), (20, 3)]
    heard.trim(15)
    assert heard.marks == [(10, 2), (20, 3)]
    assert heard.between(0, 5) == []
    assert not heard.drop(1)
    assert heard.drop(2)
    assert heard.marks == [(20, 3)]


def test_there_is_a_bound() -> None:
    heard = Heard()
    for at in range(2 * MAX_MARKS):
        heard.note(at, at)
    assert heard.marks == [(at, at) for at in range(MAX_MARKS)]

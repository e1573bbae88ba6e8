"""A peer of another release: what it does not know is said to it in the old way, or not at all; and that is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from nfq_failover.core.concerns import Weight
from nfq_failover.wire.records import DECLARED, Record, Towards, WholeSaid, decode_records, known_numbers
from nfq_failover.wire.records.base import declare
from tests.unit.core.pair.test_agreement import ENDS, PROTECTED, Pair

NOT_AT_ALL, ANOTHER_WAY, ONCE_MORE = 200, 201, 202


@pytest.fixture(autouse=True)
def later_records() -> Iterator[None]:
    """Three records of a release to come."""

    @declare(NOT_AT_ALL, Towards.HOST, "!I")
    @dataclass(frozen=True, slots=True)
    class NotAtAll(Record):
        conn: int

    @declare(ANOTHER_WAY, Towards.HOST, "!IB")
    @dataclass(frozen=True, slots=True)
    class AnotherWay(Record):
        conn: int
        well: int

        def instead(self) -> Record | None:
            return WholeSaid(self.conn)

    @declare(ONCE_MORE, Towards.HOST, "!IBB")
    @dataclass(frozen=True, slots=True)
    class OnceMore(Record):
        conn: int
        well: int
        why: int

        def instead(self) -> Record | None:
            return AnotherWay(self.conn, self.well)

    yield
    for number in (NOT_AT_ALL, ANOTHER_WAY, ONCE_MORE):
        del DECLARED[number]


def said(pair: Pair) -> list[Record]:
    """What alpha's link makes of the three records, on the wire."""
    link = pair.nodes["alpha"].protector
    link.lane[:] = [DECLARED[NOT_AT_ALL](1), DECLARED[ANOTHER_WAY](2, 1), DECLARED[ONCE_MORE](3, 1, 7)]  # type: ignore[call-arg]
    sealed: list[Record] = []
    link.session.seal = lambda records, epoch: sealed.extend(records) or []  # type: ignore[method-assign,func-returns-value]
    link.seal(0)
    return sealed


def test_a_peer_of_the_same_release_is_told_everything() -> None:
    assert [record.number for record in said(Pair().run(1))] == [NOT_AT_ALL, ANOTHER_WAY, ONCE_MORE]


def test_a_peer_of_the_release_before_is_told_what_it_knows() -> None:
    earlier = known_numbers().removesuffix(f" {NOT_AT_ALL}-{ONCE_MORE}")
    pair = Pair(kernel={"beta": {"records": earlier}}).run(1)
    assert pair.states() == PROTECTED
    for name in ENDS:
        weight, what = pair.found(name)["differs-records"]
        assert weight is Weight.WARNING and earlier in what
    assert said(pair) == [WholeSaid(2), WholeSaid(3)]
    assert pair.nodes["alpha"].out.counters["record-not-known-there"] == 1


def test_one_change_after_the_other_is_told_in_the_way_between() -> None:
    pair = Pair(kernel={"beta": {"records": known_numbers().replace("200-202", "200-201")}}).run(1)
    assert [record.number for record in said(pair)] == [NOT_AT_ALL, ANOTHER_WAY, ANOTHER_WAY]


@pytest.mark.parametrize("told", ["", "nonsense", "1-x"])
def test_who_tells_no_numbers_is_told_everything(told: str) -> None:
    assert len(said(Pair(kernel={"beta": {"records": told}}).run(1))) == 3


def test_what_a_later_release_says_is_skipped_and_counted() -> None:
    pair = Pair().run(1)
    alpha, beta = pair.nodes.values()
    [data] = alpha.protector.session.seal([DECLARED[NOT_AT_ALL](1), WholeSaid(2)], 0)  # type: ignore[call-arg]
    kept = DECLARED.pop(NOT_AT_ALL)
    try:
        pair.send("alpha", data)
    finally:
        DECLARED[NOT_AT_ALL] = kept
    assert beta.out.counters["record-unknown"] == 1
    assert decode_records(b"") == []
    assert pair.run(1).states() == PROTECTED

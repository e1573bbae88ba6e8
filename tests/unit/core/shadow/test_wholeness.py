"""Whether the application behind the replicas has got everything, and what makes it whole again."""

from __future__ import annotations

import pytest

from nfq_failover.core.concerns import Weight
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.wholeness import CODE, Wholeness
from nfq_failover.wire.records import Close, InputMissed, Whole, WholeSaid
from tests.support.shadow import Shadowing, from_client
from tests.support.transcript import FLOW, After

OLD, NEW = frozenset((10, 11)), frozenset((20, 21))


class Behind:
    """An application, and what the primary is told of it."""

    def __init__(self, shared: bool = True) -> None:
        self.out = Outbox()
        self.whole = Wholeness(self.out, shared)
        self.whole.sockets(OLD, 0.0)
        self.life = self.whole.instance
        self.now = 10.0

    def miss(self) -> None:
        self.whole.lacks(1, FLOW, "the replica reset the connection")
        self.whole.review(1.0)

    @property
    def concerned(self) -> bool:
        return CODE in self.out.concerns.codes()

    def told(self) -> Whole:
        self.out.records.clear()
        self.now += 2.0
        self.whole.on_timer(self.now)
        (record,) = self.out.records
        assert isinstance(record, Whole)
        return record


def test_whole_application_is_told_with_its_number() -> None:
    behind = Behind()
    assert behind.life and behind.told() == Whole(behind.life, 0, 0)
    assert not behind.concerned


def test_nothing_is_said_before_its_sockets_were_looked_at() -> None:
    out = Outbox()
    Wholeness(out, True).on_timer(1.0)
    assert not out.records


def test_missed_input_degrades_everything() -> None:
    behind = Behind()
    behind.miss()
    assert behind.told() == Whole(behind.life, 0, 1)
    (concern,) = behind.out.concerns.own
    assert (concern.code, concern.weight) == (CODE, Weight.DEGRADED)
    assert "missed input of 1 connections (the replica reset the connection)" in concern.what
    assert "replica-is-whole" in concern.cure


def test_state_that_no_other_connection_needs_is_no_concern() -> None:
    behind = Behind(shared=False)
    behind.miss()
    assert behind.told().missed == 1 and not behind.concerned


def test_primary_tells_what_it_has_seen() -> None:
    behind = Behind()
    behind.whole.on_missed(InputMissed(behind.life, 3), 1.0)
    assert behind.told() == Whole(behind.life, 3, 3) and behind.concerned
    behind.whole.on_missed(InputMissed(behind.life, 2), 1.0)  # overtaken
    assert behind.told() == Whole(behind.life, 3, 3)


def test_its_sockets_are_to_be_looked_at_when_it_has_missed_something() -> None:
    behind = Behind()
    assert not behind.whole.wants_look
    for _ in range(2):
        behind.miss()
        assert behind.whole.wants_look
        behind.whole.sockets(OLD, 2.0)
        assert not behind.whole.wants_look
        behind.whole.on_missed(InputMissed(behind.life, behind.whole.missed + 1), 2.0)
        assert behind.whole.wants_look
    behind.whole.sockets(OLD, 3.0)
    behind.whole.sockets(NEW, 4.0)
    assert not behind.concerned and not behind.whole.wants_look


def test_what_another_life_has_missed_is_no_matter() -> None:
    behind = Behind()
    behind.whole.on_missed(InputMissed(behind.life + 1, 3), 1.0)
    assert behind.told() == Whole(behind.life, 0, 0) and not behind.concerned


@pytest.mark.parametrize(
    ("sockets", "whole"),
    [(OLD, False), (frozenset(), False), (OLD | NEW, False), (frozenset((11, 20)), False), (NEW, True)],
)
def test_restart_makes_it_whole_and_a_reload_does_not(sockets: frozenset[int], whole: bool) -> None:
    behind = Behind()
    behind.miss()
    behind.whole.sockets(OLD, 1.5)
    behind.whole.sockets(sockets, 2.0)
    assert behind.concerned is not whole
    assert (behind.told().missed == 0) is whole and (behind.told().instance != behind.life) is whole


def test_restart_in_steps_makes_it_whole() -> None:
    behind = Behind()
    behind.miss()
    for sockets in (frozenset((11,)), frozenset(), NEW):
        behind.whole.sockets(sockets, 2.0)
    assert not behind.concerned


def test_restarted_application_may_miss_input_again() -> None:
    behind = Behind()
    behind.miss()
    behind.whole.sockets(OLD, 1.5)
    behind.whole.sockets(NEW, 2.0)
    assert not behind.concerned
    behind.miss()
    behind.whole.sockets(NEW, 3.0)
    behind.whole.sockets(NEW, 4.0)
    assert behind.concerned and behind.told().missed == 1


def test_application_that_was_not_there_and_starts_is_whole() -> None:
    behind = Behind()
    behind.whole.sockets(frozenset(), 1.0)
    behind.miss()
    behind.whole.sockets(frozenset(), 1.5)
    behind.whole.sockets(NEW, 2.0)
    assert not behind.concerned


@pytest.mark.parametrize("before", [frozenset(), OLD])
def test_application_that_began_before_it_missed_something_is_not_whole(before: frozenset[int]) -> None:
    """Its sockets are looked at now and then: those seen before it missed something may be of an earlier life."""
    behind = Behind()
    behind.whole.sockets(before, 1.0)
    behind.miss()
    behind.whole.sockets(NEW, 2.0)
    behind.whole.sockets(NEW, 3.0)
    assert behind.concerned


def test_operator_says_so() -> None:
    behind = Behind()
    behind.miss()
    behind.whole.said(2.0)
    assert not behind.concerned
    assert behind.told() == Whole(behind.whole.instance, 0, 0) and behind.whole.instance != behind.life


def test_operator_says_so_on_the_primary_of_this_life_only() -> None:
    behind = Behind()
    behind.miss()
    behind.whole.on_said(WholeSaid(behind.life + 1), 2.0)
    assert behind.concerned
    behind.whole.on_said(WholeSaid(behind.life), 2.0)
    assert not behind.concerned


def test_number_of_a_life_is_the_same_after_a_restart_of_the_daemon() -> None:
    assert Behind().life == Behind().life


def test_bytes_that_the_replica_could_not_be_given_are_missed_input() -> None:
    with Shadowing() as t:
        t >> from_client(0, 100)
        t.effects.clear()
        t >> Close(1, "closed")
        t.effects.clear()
        for _ in range(300):
            t >> After(0.05)
            t.effects.clear()
        assert t.side.wholeness.missed == 1


def test_hole_at_the_takeover_of_what_is_reset_is_missed_input() -> None:
    from nfq_failover.wire.records import Fed

    with Shadowing() as t:
        t >> Fed(1, "diverged")
        t.effects.clear()
        t >> from_client(100, 100)
        t.effects.clear()
        t >> "takeover"
        t.effects.clear()
        assert t.side.wholeness.missed == 1

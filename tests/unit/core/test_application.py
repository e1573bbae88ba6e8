"""What an application's listening sockets tell: where it listens, and whether it has been started anew."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nfq_failover.core.application import APART_S, Application, Begun
from nfq_failover.core.events import ListenersSeen, Sockets

A, B = 7000, 7010


def sockets(*pairs: tuple[int, int]) -> Sockets:
    return frozenset(pairs)


class Looks:
    """An application that is looked at once a second."""

    def __init__(self, *first: tuple[int, int]) -> None:
        self.now = 100.0
        self.application = Application()
        self.began = self.look(*first)

    def look(self, *pairs: tuple[int, int], after_s: float = 1.0) -> Begun | None:
        self.now += after_s
        return self.application.seen(ListenersSeen(sockets(*pairs), after_s), self.now)


def test_first_program_follows_nobody() -> None:
    looks = Looks()
    assert looks.began is None and looks.application.life == 0 and not looks.application.listening
    assert looks.look((B, 11), (A, 10)) == Begun((), 101.0)
    assert looks.application.life and looks.application.listening == (A, B)


@pytest.mark.parametrize(
    ("steps", "anew"),
    [
        ([((A, 20), (B, 21))], (A, B)),
        ([((A, 20),)], (A,)),  # it listens at fewer ports now
        ([((7005, 20),)], (7005,)),  # and at others
        ([(), (), ((A, 20),)], (A,)),
        ([((B, 11),), (), ((A, 20), (B, 21))], (A, B)),  # it ends in steps
        ([((A, 10), (B, 21))], None),  # one of two ports, opened a moment ago
        ([((A, 10), (A, 20), (B, 11)), ((A, 20), (B, 11))], None),  # a worker of several at one port has gone
        ([((A, 10), (A, 20)), ((A, 20),), ((A, 20), (B, 30))], None),  # a reload keeps one until the next is there
        ([((A, 10), (B, 11), (7001, 12))], None),  # one more port
        ([((A, 10),), ()], None),
    ],
)
def test_program_that_has_no_socket_of_the_one_before_is_another(
    steps: list[Sequence[tuple[int, int]]], anew: tuple[int, ...] | None
) -> None:
    looks = Looks()
    looks.look((A, 10), (B, 11))
    life = looks.application.life
    for step in steps:
        began = looks.look(*step)
    assert anew == (None if began is None else began.anew)
    assert (looks.application.life != life) is (anew is not None)


def test_what_began_was_not_there_at_the_last_look() -> None:
    looks = Looks((A, 10))
    assert looks.look((A, 20), after_s=0.5) == Begun((A,), looks.now - 0.5)


def test_one_program_of_several_is_started_anew() -> None:
    looks = Looks()
    looks.look((A, 10), (B, 11))
    looks.look((A, 10), after_s=APART_S)
    began = looks.look((A, 10), (B, 21))
    assert began is not None and began.anew == (B,)


def test_ports_that_are_opened_for_a_transfer_are_no_programs() -> None:
    looks = Looks((A, 10))
    for number in range(5):
        assert looks.look((A, 10), (B, 20 + number), after_s=APART_S) is None
        assert looks.look((A, 10), after_s=APART_S - 1) is None


def test_what_was_there_at_the_first_look_has_been_there_for_long() -> None:
    looks = Looks((A, 10), (B, 11))
    began = looks.look((A, 10), (B, 21))
    assert began is not None and began.anew == (B,)


@pytest.mark.parametrize("gone", [False, True])
def test_what_has_ended_before_the_hosts_met_is_no_matter(gone: bool) -> None:
    looks = Looks((A, 10))
    if gone:
        looks.look()
        assert looks.application.gone_at == looks.now
    assert not looks.application.unsettled
    looks.application.settle()
    assert looks.application.unsettled and looks.application.gone_at is None
    assert looks.look((A, 20)) == Begun((), looks.now - 1.0)
    assert not looks.application.unsettled
    began = looks.look((A, 30))
    assert began is not None and began.anew == (A,)


def test_what_listens_when_the_hosts_meet_is_known() -> None:
    looks = Looks((A, 10))
    life = looks.application.life
    looks.application.settle()
    assert looks.look((A, 10), (B, 11)) is None and looks.application.life == life
    began = looks.look((A, 20))
    assert began is not None and began.anew == (A,)


def test_what_is_not_there_when_the_hosts_meet_begins_later() -> None:
    looks = Looks((A, 10))
    looks.application.settle()
    assert looks.look() is None
    assert looks.look((A, 20)) == Begun((), looks.now - 1.0)
